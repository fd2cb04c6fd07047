// Compiled once for each element type of two bytes, MMER_ELEMENT.

#include "kernel_names.h"
#include "once_backward.h"

namespace mmer::cuda {

// X(columns)
#ifdef MMER_ONLY_COLUMNS
#define MMER_FOR_EACH_SHAPE(X) X(MMER_ONLY_COLUMNS)
#else
#define MMER_FOR_EACH_SHAPE(X) X(16) X(32) X(64)
#endif

#define MMER_KERNEL(columns)                                                                 \
  extern "C" __global__ void __launch_bounds__(once_backward_threads) MMER_KERNEL_NAME(      \
      once_backward, columns, rows64)(const __grid_constant__ OnceBackwardProblem problem) { \
    once_backward<MMER_ELEMENT, columns>(problem);                                           \
  }
MMER_FOR_EACH_SHAPE(MMER_KERNEL)
#undef MMER_KERNEL

const void* MMER_FINDER(once_backward)(const KernelId& kernel) {
#define MMER_FIND(class_columns)                                                                   \
  if (kernel.columns == class_columns) {                                                           \
    return reinterpret_cast<const void*>(&MMER_KERNEL_NAME(once_backward, class_columns, rows64)); \
  }
  MMER_FOR_EACH_SHAPE(MMER_FIND)
#undef MMER_FIND
  return nullptr;
}

}  // namespace mmer::cuda
