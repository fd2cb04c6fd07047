// Compiled once for each element type of two bytes, MMER_ELEMENT.

#include "kernel_names.h"
#include "shared_forward.h"

namespace mmer::cuda {

// X(columns, row_class)
#define MMER_FOR_ROWS(X, columns) X(columns, 128) X(columns, 384)
#if !defined(MMER_ONLY_COLUMNS)
#define MMER_FOR_EACH_SHAPE(X) \
  MMER_FOR_ROWS(X, 16) MMER_FOR_ROWS(X, 32) MMER_FOR_ROWS(X, 64) X(128, 128)
#elif MMER_ONLY_COLUMNS == 128
#define MMER_FOR_EACH_SHAPE(X) X(128, 128)
#else
#define MMER_FOR_EACH_SHAPE(X) MMER_FOR_ROWS(X, MMER_ONLY_COLUMNS)
#endif

#define MMER_KERNEL(columns, row_class)                                                         \
  extern "C" __global__ void __launch_bounds__(                                                 \
      shared_config(row_class, columns).threads(),                                              \
      shared_config(row_class, columns).blocks_a_multiprocessor)                                \
      MMER_KERNEL_NAME(shared_forward, columns,                                                 \
                       rows##row_class)(const __grid_constant__ SharedForwardProblem problem) { \
    shared_forward<MMER_ELEMENT, columns, row_class>(problem);                                  \
  }
MMER_FOR_EACH_SHAPE(MMER_KERNEL)
#undef MMER_KERNEL

const void* MMER_FINDER(shared_forward)(const KernelId& kernel) {
#define MMER_FIND(class_columns, row_class)                                 \
  if (kernel.columns == class_columns && kernel.rows == row_class) {        \
    return reinterpret_cast<const void*>(                                   \
        &MMER_KERNEL_NAME(shared_forward, class_columns, rows##row_class)); \
  }
  MMER_FOR_EACH_SHAPE(MMER_FIND)
#undef MMER_FIND
  return nullptr;
}

}  // namespace mmer::cuda
