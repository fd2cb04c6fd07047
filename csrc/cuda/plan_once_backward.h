// The plans of the shared backward pass with S computed once.

#pragma once

#include "plan_parts.h"

namespace mmer::cuda {

// Which rows a block owns:
//
//   shorter side   rows of a block        why
//   up to 64       the shorter side, 64   its gradients stay in registers, and those of the columns
//                                         are whole after each tile
//   up to 128      the shorter side, 128  the same
//   longer         tiles of the longer    more groups; the columns' gradients pass through float32
//   in
//                  side, 128              global memory, as often as FlashAttention-2's queries'
//
// Groups of row tiles share a head where heads alone would leave multiprocessors idle. 128 rows
// take 133 KiB of shared memory at 64 columns: 8.6, 8.9 and 12.0 take 64 in their place.
struct OnceBackwardForm {
  int row_class;  // 0: not for this call
  bool a_is_rows;
  int row_tiles, groups, tiles_a_group;
};

OnceBackwardForm once_backward_form(const PairCall& call, const Shape& shape,
                                    const DeviceLimits& device);

// `owners` holds both sequences, each with the gradients that are its own.
std::vector<Plan> once_backward_plans(const BackwardProblem& owners, const Shape& shape,
                                      const CallOptions& options, const OnceBackwardForm& form,
                                      const Allocate& allocate);

}  // namespace mmer::cuda
