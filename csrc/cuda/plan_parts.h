// What the plans of every kernel share: the views of tensors that kernels read, and the launch
// around a kernel's parameters. Only plan_*.cpp include it; the interface is plan.h.

#pragma once

#include <cstring>
#include <limits>
#include <stdexcept>

#include "plan.h"
#include "smem.h"

namespace mmer::cuda {

constexpr double log2_of_e = 1.4426950408889634;
constexpr int64_t longest = int64_t{1} << 29;  // twice it, and a chunk more, still fit into 32 bits

inline int64_t tiles_of(int64_t steps, int64_t tile) {
  return (steps + tile - 1) / tile;
}

int32_t position(int64_t value);

// What every kernel of a call shares.
struct Shape {
  int64_t batch, heads, dim;
  int columns;
  int element_bytes;
  bool extras;

  Config forward() const { return forward_config(columns, element_bytes); }
  Config backward() const { return backward_config(columns, element_bytes); }
  int64_t batch_heads() const { return batch * heads; }
};

Shape shape_of(const PairCall& call);
Shape shape_of(const ChunkedCall& call);

Rows rows_of(const TensorView& tensor, const Shape& shape);
Steps steps_of(const TensorView& tensor);
HeadSteps head_steps_of(const TensorView& tensor);
Window all_steps(int64_t own_time, int64_t other_time);
Extras extras_of(const CallOptions& options);

// One flag of each tile of the longer sequence where max_gap may skip it; otherwise none.
int64_t flag_bytes(const Shape& shape, const CallOptions& options, const TensorView& times,
                   int64_t longer, int tile);

template <class Problem>
Plan make_plan(KernelId kernel, int64_t blocks, int threads, int64_t shared_bytes,
               const Problem& problem) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("a call needs more than 2**31 - 1 blocks of " +
                                kernel_name(kernel));
  }
  Plan plan{kernel, blocks, threads, shared_bytes, {}};
  plan.parameters.resize(sizeof(Problem));
  std::memcpy(plan.parameters.data(), &problem, sizeof(Problem));
  return plan;
}

template <class Problem>
Plan small_plan(KernelRole role, Element element, int64_t warps, const Problem& problem) {
  return make_plan({role, element, 0, false, 0}, tiles_of(warps, small_kernel_threads / 32),
                   small_kernel_threads, 0, problem);
}

// Of so many rows of each head.
template <class Problem>
Plan row_plan(KernelRole role, Element element, const Shape& shape, int64_t rows,
              const Problem& problem) {
  return make_plan({role, element, 0, false, 0}, shape.batch_heads() * tiles_of(rows, block_rows),
                   small_kernel_threads, 0, problem);
}

}  // namespace mmer::cuda
