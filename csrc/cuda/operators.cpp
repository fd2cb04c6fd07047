// The attention operators for CUDA: from tensors to plans, memory, and the launch on torch's
// current stream. Their schemas are those of kernels/registration.py, which also checks the
// arguments.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "launch.h"
#include "plan.h"

namespace {

using mmer::cuda::Allocate;
using mmer::cuda::CallOptions;
using mmer::cuda::ChunkedCall;
using mmer::cuda::Element;
using mmer::cuda::PairCall;
using mmer::cuda::Plan;
using mmer::cuda::SequenceView;
using mmer::cuda::TensorView;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

TensorView view(const Tensor& tensor) {
  TensorView seen;
  if (tensor.numel() > 0) seen.data = tensor.data_ptr();
  for (int64_t n = 0; n < tensor.dim(); ++n) {
    seen.shape[n] = tensor.size(n);
    seen.strides[n] = tensor.stride(n);
  }
  return seen;
}

TensorView view(const MaybeTensor& tensor) {
  return tensor ? view(*tensor) : TensorView{};
}

Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape,
                  std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype);
}

Tensor new_gradient(const Tensor& like) {
  return new_tensor(like, {like.size(0), like.size(1), like.size(2), like.size(3)});
}

Tensor new_gradient(const MaybeTensor& like, const Tensor& absent) {
  return like ? new_gradient(*like) : new_tensor(absent, {0});
}

// The device of a call while it lasts, and the memory that its plans need. The caching allocator
// keeps freed memory from other streams, so it may go as soon as the kernels are queued.
class Launcher {
 public:
  explicit Launcher(const Tensor& like)
      : like_(like), device_(like.get_device_index()), guard_(device_) {}

  Allocate allocate() {
    return [this](std::size_t bytes) {
      memory_.push_back(new_tensor(like_, {static_cast<int64_t>(std::max<std::size_t>(bytes, 1))},
                                   ScalarType::Byte));
      return memory_.back().mutable_data_ptr();
    };
  }

  void run(const std::vector<Plan>& plans) const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    mmer::cuda::launch(plans, stream);
  }

 private:
  const Tensor& like_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> memory_;
};

CallOptions call_options(const Tensor& first, double scale, double dropout_p,
                         const MaybeTensor& dropout_seed) {
  const ScalarType dtype = first.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Half || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
      "the CUDA kernels take float16, bfloat16 and float32");
  CallOptions options;
  options.element = dtype == ScalarType::Half       ? Element::float16
                    : dtype == ScalarType::BFloat16 ? Element::bfloat16
                                                    : Element::float32;
  options.scale = scale;
  options.dropout_p = dropout_p;
  if (dropout_seed && dropout_p > 0.0) {
    options.dropout_seed = static_cast<const int64_t*>(dropout_seed->const_data_ptr());
  }
  return options;
}

// The options of both cross-attention operators, in the order of their schema.
struct PairOptions {
  MaybeTensor decay, mask_a, mask_b, times_a, times_b, dropout_seed;
  double scale, max_gap, dropout_p;
};

// The tensors of one sequence; in the shared form the query is the key.
struct Sequence {
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
};

void set_inputs(SequenceView& target, const Sequence& sequence, const MaybeTensor& mask,
                const MaybeTensor& times) {
  target.query = view(sequence.query);
  target.key = view(sequence.key);
  target.value = view(sequence.value);
  target.mask = view(mask);
  target.times = view(times);
}

PairCall pair_call(const Sequence& a, const Sequence& b, const PairOptions& options, bool shared) {
  PairCall call;
  call.shared = shared;
  call.options = call_options(a.query, options.scale, options.dropout_p, options.dropout_seed);
  call.options.max_gap = options.max_gap;
  call.options.decay = view(options.decay);
  set_inputs(call.a, a, options.mask_a, options.times_a);
  set_inputs(call.b, b, options.mask_b, options.times_b);
  return call;
}

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

FourTensors pair_forward(const Sequence& a, const Sequence& b, const PairOptions& options,
                         bool shared) {
  const Tensor& first = a.query;
  const int64_t batch = first.size(0) == 1 ? b.query.size(0) : first.size(0);
  const int64_t heads = first.size(1);
  const int64_t time_a = first.size(2), time_b = b.query.size(2);
  const Tensor out_a = new_tensor(first, {batch, heads, time_a, b.value.size(3)});
  const Tensor out_b = new_tensor(first, {batch, heads, time_b, a.value.size(3)});
  const Tensor lse_a = new_tensor(first, {batch, heads, time_a}, ScalarType::Float);
  const Tensor lse_b = new_tensor(first, {batch, heads, time_b}, ScalarType::Float);
  PairCall call = pair_call(a, b, options, shared);
  call.a.out = view(out_a);
  call.b.out = view(out_b);
  call.a.lse = view(lse_a);
  call.b.lse = view(lse_b);
  Launcher launcher(first);
  launcher.run(plan_forward(call, mmer::cuda::device_limits(), launcher.allocate()));
  return {out_a, out_b, lse_a, lse_b};
}

FourTensors shared_cross_attention(Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b,
                                   MaybeTensor decay, MaybeTensor mask_a, MaybeTensor mask_b,
                                   MaybeTensor times_a, MaybeTensor times_b,
                                   MaybeTensor dropout_seed, double scale, double max_gap,
                                   double dropout_p, bool) {
  return pair_forward(
      {qk_a, qk_a, v_a}, {qk_b, qk_b, v_b},
      {decay, mask_a, mask_b, times_a, times_b, dropout_seed, scale, max_gap, dropout_p}, true);
}

FourTensors bidirectional_cross_attention(Tensor q_a, Tensor k_a, Tensor v_a, Tensor q_b,
                                          Tensor k_b, Tensor v_b, MaybeTensor decay,
                                          MaybeTensor mask_a, MaybeTensor mask_b,
                                          MaybeTensor times_a, MaybeTensor times_b,
                                          MaybeTensor dropout_seed, double scale, double max_gap,
                                          double dropout_p, bool) {
  return pair_forward(
      {q_a, k_a, v_a}, {q_b, k_b, v_b},
      {decay, mask_a, mask_b, times_a, times_b, dropout_seed, scale, max_gap, dropout_p}, false);
}

// What the backward pass has of one sequence's queries.
struct Results {
  const Tensor& grad_out;
  const MaybeTensor& grad_lse;
  const Tensor& out;
  const Tensor& lse;
};

void set_results(SequenceView& target, const Results& results) {
  target.grad_out = view(results.grad_out);
  target.grad_lse = view(results.grad_lse);
  target.out = view(results.out);
  target.lse = view(results.lse);
}

// The gradient of the slopes; empty where there are none.
Tensor new_decay_gradient(PairCall& call, const MaybeTensor& decay, const Tensor& like) {
  if (!decay) return new_tensor(like, {0});
  const Tensor gradient = new_tensor(*decay, {decay->size(0)}, ScalarType::Float);
  call.options.grad_decay = view(gradient);
  return gradient;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> shared_cross_attention_backward(
    Tensor grad_out_a, Tensor grad_out_b, MaybeTensor grad_lse_a, MaybeTensor grad_lse_b,
    Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b, MaybeTensor decay, MaybeTensor mask_a,
    MaybeTensor mask_b, MaybeTensor times_a, MaybeTensor times_b, MaybeTensor dropout_seed,
    double scale, double max_gap, double dropout_p, bool, Tensor out_a, Tensor out_b, Tensor lse_a,
    Tensor lse_b) {
  PairCall call = pair_call(
      {qk_a, qk_a, v_a}, {qk_b, qk_b, v_b},
      {decay, mask_a, mask_b, times_a, times_b, dropout_seed, scale, max_gap, dropout_p}, true);
  set_results(call.a, {grad_out_a, grad_lse_a, out_a, lse_a});
  set_results(call.b, {grad_out_b, grad_lse_b, out_b, lse_b});
  const Tensor grad_qk_a = new_gradient(qk_a), grad_qk_b = new_gradient(qk_b);
  const Tensor grad_v_a = new_gradient(v_a), grad_v_b = new_gradient(v_b);
  call.a.grad_query = call.a.grad_key = view(grad_qk_a);
  call.b.grad_query = call.b.grad_key = view(grad_qk_b);
  call.a.grad_value = view(grad_v_a);
  call.b.grad_value = view(grad_v_b);
  const Tensor grad_decay = new_decay_gradient(call, decay, qk_a);
  Launcher launcher(qk_a);
  launcher.run(plan_backward(call, mmer::cuda::device_limits(), launcher.allocate()));
  return {grad_qk_a, grad_qk_b, grad_v_a, grad_v_b, grad_decay};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
bidirectional_cross_attention_backward(Tensor grad_out_a, Tensor grad_out_b, MaybeTensor grad_lse_a,
                                       MaybeTensor grad_lse_b, Tensor q_a, Tensor k_a, Tensor v_a,
                                       Tensor q_b, Tensor k_b, Tensor v_b, MaybeTensor decay,
                                       MaybeTensor mask_a, MaybeTensor mask_b, MaybeTensor times_a,
                                       MaybeTensor times_b, MaybeTensor dropout_seed, double scale,
                                       double max_gap, double dropout_p, bool, Tensor out_a,
                                       Tensor out_b, Tensor lse_a, Tensor lse_b) {
  PairCall call = pair_call(
      {q_a, k_a, v_a}, {q_b, k_b, v_b},
      {decay, mask_a, mask_b, times_a, times_b, dropout_seed, scale, max_gap, dropout_p}, false);
  set_results(call.a, {grad_out_a, grad_lse_a, out_a, lse_a});
  set_results(call.b, {grad_out_b, grad_lse_b, out_b, lse_b});
  const Tensor grad_q_a = new_gradient(q_a), grad_k_a = new_gradient(k_a);
  const Tensor grad_q_b = new_gradient(q_b), grad_k_b = new_gradient(k_b);
  const Tensor grad_v_a = new_gradient(v_a), grad_v_b = new_gradient(v_b);
  call.a.grad_query = view(grad_q_a);
  call.a.grad_key = view(grad_k_a);
  call.a.grad_value = view(grad_v_a);
  call.b.grad_query = view(grad_q_b);
  call.b.grad_key = view(grad_k_b);
  call.b.grad_value = view(grad_v_b);
  const Tensor grad_decay = new_decay_gradient(call, decay, q_a);
  Launcher launcher(q_a);
  launcher.run(plan_backward(call, mmer::cuda::device_limits(), launcher.allocate()));
  return {grad_q_a, grad_k_a, grad_v_a, grad_q_b, grad_k_b, grad_v_b, grad_decay};
}

// The options of chunked attention, in the order of their schema.
struct ChunkOptions {
  MaybeTensor summary_k, summary_v, mask, dropout_seed;
  int64_t chunk_size, lookback, lookahead;
  bool causal;
  int64_t max_summaries;
  double scale, dropout_p;
};

ChunkedCall chunked_call(const Sequence& tokens, const ChunkOptions& options) {
  ChunkedCall call;
  call.options = call_options(tokens.query, options.scale, options.dropout_p, options.dropout_seed);
  set_inputs(call.tokens, tokens, options.mask, std::nullopt);
  call.summary_key = view(options.summary_k);
  call.summary_value = view(options.summary_v);
  call.chunk_size = options.chunk_size;
  call.lookback = options.lookback;
  call.lookahead = options.lookahead;
  call.causal = options.causal;
  call.max_summaries = options.max_summaries;
  return call;
}

std::tuple<Tensor, Tensor> chunked_attention(Tensor q, Tensor k, Tensor v, MaybeTensor summary_k,
                                             MaybeTensor summary_v, MaybeTensor mask,
                                             MaybeTensor dropout_seed, int64_t chunk_size,
                                             int64_t lookback, int64_t lookahead, bool causal,
                                             int64_t max_summaries, double scale, double dropout_p,
                                             bool) {
  const Tensor out = new_tensor(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  const Tensor lse = new_tensor(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  ChunkedCall call =
      chunked_call({q, k, v}, {summary_k, summary_v, mask, dropout_seed, chunk_size, lookback,
                               lookahead, causal, max_summaries, scale, dropout_p});
  call.tokens.out = view(out);
  call.tokens.lse = view(lse);
  Launcher launcher(q);
  launcher.run(plan_forward(call, launcher.allocate()));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> chunked_attention_backward(
    Tensor grad_out, MaybeTensor grad_lse, Tensor q, Tensor k, Tensor v, MaybeTensor summary_k,
    MaybeTensor summary_v, MaybeTensor mask, MaybeTensor dropout_seed, int64_t chunk_size,
    int64_t lookback, int64_t lookahead, bool causal, int64_t max_summaries, double scale,
    double dropout_p, bool, Tensor out, Tensor lse) {
  ChunkedCall call =
      chunked_call({q, k, v}, {summary_k, summary_v, mask, dropout_seed, chunk_size, lookback,
                               lookahead, causal, max_summaries, scale, dropout_p});
  set_results(call.tokens, {grad_out, grad_lse, out, lse});
  const Tensor grad_q = new_gradient(q), grad_k = new_gradient(k), grad_v = new_gradient(v);
  const Tensor grad_summary_k = new_gradient(summary_k, q);
  const Tensor grad_summary_v = new_gradient(summary_v, q);
  call.tokens.grad_query = view(grad_q);
  call.tokens.grad_key = view(grad_k);
  call.tokens.grad_value = view(grad_v);
  call.grad_summary_key = view(grad_summary_k);
  call.grad_summary_value = view(grad_summary_v);
  Launcher launcher(q);
  launcher.run(plan_backward(call, launcher.allocate()));
  return {grad_q, grad_k, grad_v, grad_summary_k, grad_summary_v};
}

}  // namespace

STABLE_TORCH_LIBRARY(mmer_cuda, library) {
  library.def(
      "shared_cross_attention(Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b, Tensor? decay, "
      "Tensor? mask_a, Tensor? mask_b, Tensor? times_a, Tensor? times_b, Tensor? dropout_seed, "
      "float scale, float max_gap, float dropout_p, bool deterministic) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  library.def(
      "shared_cross_attention_backward(Tensor grad_0, Tensor grad_1, Tensor? grad_lse_0, Tensor? "
      "grad_lse_1, Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b, Tensor? decay, Tensor? "
      "mask_a, Tensor? mask_b, Tensor? times_a, Tensor? times_b, Tensor? dropout_seed, float "
      "scale, float max_gap, float dropout_p, bool deterministic, Tensor out_0, Tensor out_1, "
      "Tensor lse_0, Tensor lse_1) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "bidirectional_cross_attention(Tensor q_a, Tensor k_a, Tensor v_a, Tensor q_b, Tensor k_b, "
      "Tensor v_b, Tensor? decay, Tensor? mask_a, Tensor? mask_b, Tensor? times_a, Tensor? "
      "times_b, Tensor? dropout_seed, float scale, float max_gap, float dropout_p, bool "
      "deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "bidirectional_cross_attention_backward(Tensor grad_0, Tensor grad_1, Tensor? grad_lse_0, "
      "Tensor? grad_lse_1, Tensor q_a, Tensor k_a, Tensor v_a, Tensor q_b, Tensor k_b, Tensor "
      "v_b, Tensor? decay, Tensor? mask_a, Tensor? mask_b, Tensor? times_a, Tensor? times_b, "
      "Tensor? dropout_seed, float scale, float max_gap, float dropout_p, bool deterministic, "
      "Tensor out_0, Tensor out_1, Tensor lse_0, Tensor lse_1) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "chunked_attention(Tensor q, Tensor k, Tensor v, Tensor? summary_k, Tensor? summary_v, "
      "Tensor? mask, Tensor? dropout_seed, SymInt chunk_size, SymInt lookback, SymInt lookahead, "
      "bool causal, SymInt max_summaries, float scale, float dropout_p, bool deterministic) -> "
      "(Tensor, Tensor)");
  library.def(
      "chunked_attention_backward(Tensor grad_0, Tensor? grad_lse_0, Tensor q, Tensor k, Tensor "
      "v, Tensor? summary_k, Tensor? summary_v, Tensor? mask, Tensor? dropout_seed, SymInt "
      "chunk_size, SymInt lookback, SymInt lookahead, bool causal, SymInt max_summaries, float "
      "scale, float dropout_p, bool deterministic, Tensor out_0, Tensor lse_0) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cuda, CUDA, library) {
  library.impl("shared_cross_attention", TORCH_BOX(&shared_cross_attention));
  library.impl("shared_cross_attention_backward", TORCH_BOX(&shared_cross_attention_backward));
  library.impl("bidirectional_cross_attention", TORCH_BOX(&bidirectional_cross_attention));
  library.impl("bidirectional_cross_attention_backward",
               TORCH_BOX(&bidirectional_cross_attention_backward));
  library.impl("chunked_attention", TORCH_BOX(&chunked_attention));
  library.impl("chunked_attention_backward", TORCH_BOX(&chunked_attention_backward));
}
