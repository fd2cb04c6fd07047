// Compiled once for each element type, MMER_ELEMENT.

#include "directed_forward.h"
#include "kernel_names.h"

namespace mmer::cuda {

#define MMER_KERNEL(columns, extras, suffix)                                         \
  extern "C" __global__ void __launch_bounds__(                                      \
      forward_config(columns, MMER_ELEMENT::bytes).threads(),                        \
      blocks_a_multiprocessor(forward_config(columns, MMER_ELEMENT::bytes), extras)) \
      MMER_KERNEL_NAME(directed_forward, columns,                                    \
                       suffix)(const __grid_constant__ ForwardProblem problem) {     \
    directed_forward<MMER_ELEMENT, columns, extras>(problem);                        \
  }
MMER_FOR_EACH_CLASS(MMER_KERNEL)
#undef MMER_KERNEL

const void* MMER_FINDER(directed_forward)(const KernelId& kernel) {
#define MMER_FIND(class_columns, with_extras, suffix)                    \
  if (kernel.columns == class_columns && kernel.extras == with_extras) { \
    return reinterpret_cast<const void*>(                                \
        &MMER_KERNEL_NAME(directed_forward, class_columns, suffix));     \
  }
  MMER_FOR_EACH_CLASS(MMER_FIND)
#undef MMER_FIND
  return nullptr;
}

}  // namespace mmer::cuda
