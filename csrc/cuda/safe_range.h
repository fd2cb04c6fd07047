// Where one reference serves the exponentials of both directions, and where it does not.

#pragma once

#include "elements.h"

namespace mmer::cuda {

// Where sums of P may lie, and where the first maximum is put, in log2. Of float16 the products
// must neither overflow nor lose what matters below 2^-24.
template <class Element>
struct SafeRange {
  static constexpr float lowest = 1e-16f, highest = 1e30f, first_maximum = 0.0f;
};
template <>
struct SafeRange<float16> {
  static constexpr float lowest = 0.015625f, highest = 32768.0f, first_maximum = 8.0f;
};

template <class Element>
MMER_DEVICE bool is_safe(float sum) {
  return (sum > SafeRange<Element>::lowest) & (sum < SafeRange<Element>::highest);
}

}  // namespace mmer::cuda
