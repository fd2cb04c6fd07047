// Compiled once for each element type of two bytes, MMER_ELEMENT.

#include "kernel_names.h"
#include "once_backward.h"

namespace mmer::cuda {

// X(columns, row_class)
#if !defined(MMER_ONLY_COLUMNS)
#define MMER_FOR_EACH_SHAPE(X) \
  MMER_FOR_ROWS(X, 16) MMER_FOR_ROWS(X, 32) MMER_FOR_ROWS(X, 64) X(128, 64)
#elif MMER_ONLY_COLUMNS == 128
#define MMER_FOR_EACH_SHAPE(X) X(128, 64)
#else
#define MMER_FOR_EACH_SHAPE(X) MMER_FOR_ROWS(X, MMER_ONLY_COLUMNS)
#endif
#define MMER_FOR_ROWS(X, columns) X(columns, 64) X(columns, 128)

#define MMER_ROLE(role, columns, row_class, ...)                                             \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) MMER_KERNEL_NAME(                \
      role, columns, rows##row_class)(const __grid_constant__ OnceBackwardProblem problem) { \
    role<MMER_ELEMENT, columns, row_class>(problem);                                         \
  }
#define MMER_KERNEL(columns, row_class)                                          \
  MMER_ROLE(once_backward, columns, row_class, once_config(row_class).threads(), \
            once_blocks_a_multiprocessor(row_class, columns))                    \
  MMER_ROLE(merge_gradients, columns, row_class, once_merge_warps * 32)
MMER_FOR_EACH_SHAPE(MMER_KERNEL)
#undef MMER_KERNEL
#undef MMER_ROLE

const void* MMER_FINDER(once_backward)(const KernelId& kernel) {
#define MMER_FIND_ROLE(of_role, class_columns, row_class)                      \
  if (kernel.role == KernelRole::of_role && kernel.columns == class_columns && \
      kernel.rows == row_class) {                                              \
    return reinterpret_cast<const void*>(                                      \
        &MMER_KERNEL_NAME(of_role, class_columns, rows##row_class));           \
  }
#define MMER_FIND(columns, row_class)               \
  MMER_FIND_ROLE(once_backward, columns, row_class) \
  MMER_FIND_ROLE(merge_gradients, columns, row_class)
  MMER_FOR_EACH_SHAPE(MMER_FIND)
#undef MMER_FIND
#undef MMER_FIND_ROLE
  return nullptr;
}

}  // namespace mmer::cuda
