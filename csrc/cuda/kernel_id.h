// Names a compiled kernel, for plans and for launches.

#pragma once

namespace mmer::cuda {

enum class Element { float16, bfloat16, float32 };

constexpr int bytes_of(Element element) {
  return element == Element::float32 ? 4 : 2;
}

enum class KernelRole {
  directed_forward,
  shared_forward,
  shared_short,
  query_backward,
  key_backward,
  shared_backward,
  once_backward,
  merge_gradients,
  row_state,
  chunk_counts,
  merge_groups,
  batch_sum,
  decay_sum,
};

struct KernelId {
  KernelRole role;
  Element element;
  int columns;  // class of the head dimension; 0 for the small kernels, which have none
  bool extras;
  int rows = 0;  // class of the shorter sequence where S is computed once; 0 for all others
};

}  // namespace mmer::cuda
