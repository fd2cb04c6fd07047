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
// Groups of tiles of rows and of columns share a head where heads alone would leave multiprocessors
// idle: then merge_gradients adds up what each group of rows found for the columns, and each group
// of columns for the rows. 4 and 2 groups read and keep less than 8 and 1 for as many blocks. Of
// the two classes of rows, the groups, and shared_backward, the one is taken whose busiest
// multiprocessor has the least to do. 128 rows take 134 KiB of shared memory at 64
// columns: 8.6, 8.9 and 12.0 always take 64. 64 rows take 106 KiB at 128 columns, which are served
// with one tile of rows only.
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
