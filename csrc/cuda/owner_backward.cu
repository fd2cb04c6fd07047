// Compiled once for each element type, MMER_ELEMENT.

#include "kernel_names.h"
#include "owner_backward.h"

namespace mmer::cuda {

#define MMER_ROLE(role, as_query, as_key, columns, extras, suffix)                               \
  extern "C" __global__ void __launch_bounds__(                                                  \
      backward_config(columns, MMER_ELEMENT::bytes).threads(),                                   \
      blocks_a_multiprocessor(backward_config(columns, MMER_ELEMENT::bytes), extras))            \
      MMER_KERNEL_NAME(role, columns, suffix)(const __grid_constant__ BackwardProblem problem) { \
    owner_backward<MMER_ELEMENT, columns, as_query, as_key, extras>(problem);                    \
  }
#define MMER_KERNEL(columns, extras, suffix)                      \
  MMER_ROLE(query_backward, true, false, columns, extras, suffix) \
  MMER_ROLE(key_backward, false, true, columns, extras, suffix)   \
  MMER_ROLE(shared_backward, true, true, columns, extras, suffix)
MMER_FOR_EACH_CLASS(MMER_KERNEL)
#undef MMER_KERNEL
#undef MMER_ROLE

const void* MMER_FINDER(owner_backward)(const KernelId& kernel) {
#define MMER_FIND_ROLE(of_role, class_columns, with_extras, suffix)                          \
  if (kernel.role == KernelRole::of_role && kernel.columns == class_columns &&               \
      kernel.extras == with_extras) {                                                        \
    return reinterpret_cast<const void*>(&MMER_KERNEL_NAME(of_role, class_columns, suffix)); \
  }
#define MMER_FIND(class_columns, with_extras, suffix)                \
  MMER_FIND_ROLE(query_backward, class_columns, with_extras, suffix) \
  MMER_FIND_ROLE(key_backward, class_columns, with_extras, suffix)   \
  MMER_FIND_ROLE(shared_backward, class_columns, with_extras, suffix)
  MMER_FOR_EACH_CLASS(MMER_FIND)
#undef MMER_FIND
#undef MMER_FIND_ROLE
  return nullptr;
}

}  // namespace mmer::cuda
