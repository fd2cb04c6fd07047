// The plans of the shared backward pass with S computed once.

#pragma once

#include "plan_parts.h"

namespace mmer::cuda {

// Which rows a block owns:
//
//   shorter side   rows of a block         why
//   up to 64       the shorter side, 64    its gradients stay in registers, and those of the
//   or 128         or 128                  columns are whole after each tile
//   longer         tiles of the longer     there are more of them to share out; the gradients of
//                  side, 64 or 128         the columns pass through float32 in global memory, as
//                                          often as those of FlashAttention-2's queries
//
// Groups of row tiles share a head where heads alone would leave multiprocessors idle. Of the two
// classes of rows and up to eight groups, and shared_backward, the one is taken whose busiest
// multiprocessor has the least to do. 128 rows take 134 KiB of shared memory at 64 columns: 8.6,
// 8.9 and 12.0 always take 64.
struct OnceBackwardForm {
  int row_class;  // 0: not for this call
  bool a_is_rows;
  int row_tiles, row_groups, row_tiles_a_group;
  int column_tiles, column_groups, column_tiles_a_group;
};

OnceBackwardForm once_backward_form(const PairCall& call, const Shape& shape,
                                    const DeviceLimits& device);

// `owners` holds both sequences, each with the gradients that are its own.
std::vector<Plan> once_backward_plans(const BackwardProblem& owners, const Shape& shape,
                                      const CallOptions& options, const OnceBackwardForm& form,
                                      const Allocate& allocate);

}  // namespace mmer::cuda
