// Compiled once for each element type, MMER_ELEMENT.

#include "kernel_names.h"
#include "shared_forward.h"
#include "shared_short.h"

namespace mmer::cuda {

// X(columns, row_class, suffix)
#define MMER_FOR_ROWS(X, columns) X(columns, 128, rows128) X(columns, 384, rows384)
#if !defined(MMER_ONLY_COLUMNS)
#define MMER_FOR_EACH_SHAPE(X) \
  MMER_FOR_ROWS(X, 16) MMER_FOR_ROWS(X, 32) MMER_FOR_ROWS(X, 64) X(128, 128, rows128)
#define MMER_FOR_EACH_SHORT_SHAPE(X) X(16) X(32) X(64)
#elif MMER_ONLY_COLUMNS == 128
#define MMER_FOR_EACH_SHAPE(X) X(128, 128, rows128)
#define MMER_FOR_EACH_SHORT_SHAPE(X)
#else
#define MMER_FOR_EACH_SHAPE(X) MMER_FOR_ROWS(X, MMER_ONLY_COLUMNS)
#define MMER_FOR_EACH_SHORT_SHAPE(X) X(MMER_ONLY_COLUMNS)
#endif

#define MMER_KERNEL(columns, row_class, suffix)                                        \
  extern "C" __global__ void __launch_bounds__(                                        \
      shared_config(row_class, columns).threads(),                                     \
      shared_config(row_class, columns).blocks_a_multiprocessor)                       \
      MMER_KERNEL_NAME(shared_forward, columns,                                        \
                       suffix)(const __grid_constant__ SharedForwardProblem problem) { \
    shared_forward<MMER_ELEMENT, columns, row_class>(problem);                         \
  }
MMER_FOR_EACH_SHAPE(MMER_KERNEL)
#undef MMER_KERNEL

#define MMER_SHORT_KERNEL(columns)                                                              \
  extern "C" __global__ void __launch_bounds__(short_warps * 32, short_blocks_a_multiprocessor) \
      MMER_KERNEL_NAME(shared_forward, columns,                                                 \
                       rows64)(const __grid_constant__ SharedForwardProblem problem) {          \
    shared_short_forward<MMER_ELEMENT, columns>(problem);                                       \
  }
MMER_FOR_EACH_SHORT_SHAPE(MMER_SHORT_KERNEL)
#undef MMER_SHORT_KERNEL

const void* MMER_FINDER(shared_forward)(const KernelId& kernel) {
#define MMER_FIND(class_columns, row_class, suffix)                  \
  if (kernel.columns == class_columns && kernel.rows == row_class) { \
    return reinterpret_cast<const void*>(                            \
        &MMER_KERNEL_NAME(shared_forward, class_columns, suffix));   \
  }
#define MMER_FIND_SHORT(class_columns) MMER_FIND(class_columns, short_rows, rows64)
  MMER_FOR_EACH_SHAPE(MMER_FIND)
  MMER_FOR_EACH_SHORT_SHAPE(MMER_FIND_SHORT)
#undef MMER_FIND_SHORT
#undef MMER_FIND
  return nullptr;
}

}  // namespace mmer::cuda
