// The names of the kernels: mmer_<kernel>_<element>_<columns>_<suffix>, so that a plan, a launch
// and a test all find the same one.

#pragma once

#include "kernel_id.h"

#define MMER_JOIN_NAME(kernel, element, columns, suffix) \
  mmer_##kernel##_##element##_##columns##_##suffix
#define MMER_EXPAND_NAME(kernel, element, columns, suffix) \
  MMER_JOIN_NAME(kernel, element, columns, suffix)
#define MMER_KERNEL_NAME(kernel, columns, suffix) \
  MMER_EXPAND_NAME(kernel, MMER_ELEMENT, columns, suffix)

// X(columns, extras, suffix) for the kernels of every class of head dimensions. MMER_ONLY_COLUMNS
// leaves one class, which compiles faster.
#ifdef MMER_ONLY_COLUMNS
#define MMER_FOR_EACH_CLASS(X) MMER_FOR_BOTH(X, MMER_ONLY_COLUMNS)
#else
#define MMER_FOR_EACH_CLASS(X) \
  MMER_FOR_BOTH(X, 16)         \
  MMER_FOR_BOTH(X, 32) MMER_FOR_BOTH(X, 64) MMER_FOR_BOTH(X, 128) MMER_FOR_BOTH(X, 256)
#endif
#define MMER_FOR_BOTH(X, columns) X(columns, false, plain) X(columns, true, extras)

// The function that a source exports: the address of one of its kernels, nullptr if it has none.
// MMER_FINDER(directed_forward) is find_directed_forward_float16, for example.
#define MMER_JOIN_FINDER(source, element) find_##source##_##element
#define MMER_EXPAND_FINDER(source, element) MMER_JOIN_FINDER(source, element)
#define MMER_FINDER(source) MMER_EXPAND_FINDER(source, MMER_ELEMENT)
