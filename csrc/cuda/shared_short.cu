// Compiled once for each element type of two bytes, MMER_ELEMENT.

#include "kernel_names.h"
#include "shared_short.h"

namespace mmer::cuda {

// X(columns)
#ifdef MMER_ONLY_COLUMNS
#define MMER_FOR_EACH_SHAPE(X) X(MMER_ONLY_COLUMNS)
#else
#define MMER_FOR_EACH_SHAPE(X) X(16) X(32) X(64)
#endif

#define MMER_KERNEL(columns)                                                                    \
  extern "C" __global__ void __launch_bounds__(short_warps * 32, short_blocks_a_multiprocessor) \
      MMER_KERNEL_NAME(shared_short, columns,                                                   \
                       rows64)(const __grid_constant__ SharedForwardProblem problem) {          \
    shared_short<MMER_ELEMENT, columns>(problem);                                               \
  }
MMER_FOR_EACH_SHAPE(MMER_KERNEL)
#undef MMER_KERNEL

const void* MMER_FINDER(shared_short)(const KernelId& kernel) {
#define MMER_FIND(class_columns)                                                                  \
  if (kernel.columns == class_columns) {                                                          \
    return reinterpret_cast<const void*>(&MMER_KERNEL_NAME(shared_short, class_columns, rows64)); \
  }
  MMER_FOR_EACH_SHAPE(MMER_FIND)
#undef MMER_FIND
  return nullptr;
}

}  // namespace mmer::cuda
