// From a call of an operator to the kernels that serve it: names, grids, shared memory, parameters.
// The operators launch exactly these plans, and tests without a GPU execute them.
//
// Which kernels serve a call:
//   shared, up to 64 rows   forward: shared_short, S once; one block owns a head, or a group of its
//                           rows: then merge_groups
//   shared, more rows       forward: shared_forward, the same; a block may take groups in turns
//   shared, bidirectional   forward: directed_forward, both directions in one launch
//   chunked                 forward: directed_forward over the window, then the summaries
//   shared                  backward: once_backward, S once; one block owns a head, or a group of
//                           its rows and of its columns: then merge_gradients
//   shared, all others      backward: shared_backward, one similarity for both roles of a row
//   bidirectional, chunked  backward: query_backward and key_backward

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernel_id.h"
#include "problem.h"

namespace mmer::cuda {

// A tensor of up to four dimensions; strides in elements. No data: absent.
struct TensorView {
  void* data = nullptr;
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t strides[4] = {0, 0, 0, 0};
};

struct CallOptions {
  Element element = Element::float16;
  double scale = 1.0;
  double max_gap = 0.0;
  double dropout_p = 0.0;
  const int64_t* dropout_seed = nullptr;
  TensorView decay, grad_decay;
};

struct SequenceView {
  TensorView query, key, value, out, lse, mask, times;
  TensorView grad_out, grad_lse, grad_query, grad_key, grad_value;
};

// In the shared form the query of a sequence is its key, and so are their gradients.
struct PairCall {
  CallOptions options;
  SequenceView a, b;
  bool shared = false;
};

struct ChunkedCall {
  CallOptions options;
  SequenceView tokens;
  TensorView summary_key, summary_value, grad_summary_key, grad_summary_value;
  int64_t chunk_size = 1, lookback = 0, lookahead = 0, max_summaries = 0;
  bool causal = false;
};

// The kernel's name in the compiled code.
std::string kernel_name(const KernelId& kernel);

struct Plan {
  KernelId kernel;
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
  std::vector<unsigned char> parameters;  // the kernel's one structure
};

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // of one block, with opt-in
};

// Gives memory of the device that lives until the plans have run.
using Allocate = std::function<void*(std::size_t bytes)>;

// Each throws std::invalid_argument for a call that the kernels' 32-bit positions cannot hold.
std::vector<Plan> plan_forward(const PairCall& call, const DeviceLimits& device,
                               const Allocate& allocate);
std::vector<Plan> plan_forward(const ChunkedCall& call, const Allocate& allocate);
std::vector<Plan> plan_backward(const PairCall& call, const DeviceLimits& device,
                                const Allocate& allocate);
std::vector<Plan> plan_backward(const ChunkedCall& call, const Allocate& allocate);

}  // namespace mmer::cuda
