// The attention operators for the CPU: from tensors to problems, memory, and the split of the work
// over torch's threads. Their schemas are those of kernels/registration.py, which also checks the
// arguments.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "capability.h"

namespace {

using mmer::cpu::Chunking;
using mmer::cpu::DirectedProblem;
using mmer::cpu::Dropout;
using mmer::cpu::ElementType;
using mmer::cpu::MaskView;
using mmer::cpu::merge_block;
using mmer::cpu::most_groups;
using mmer::cpu::Options;
using mmer::cpu::Range;
using mmer::cpu::Segment;
using mmer::cpu::SharedProblem;
using mmer::cpu::Side;
using mmer::cpu::TensorView;
using mmer::cpu::TimesView;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

ElementType element_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return ElementType::float32;
    case ScalarType::Half:
      return ElementType::float16;
    case ScalarType::BFloat16:
      return ElementType::bfloat16;
    default:
      STD_TORCH_CHECK(false, "the CPU kernels take float32, float16 and bfloat16");
  }
}

// Of a tensor (batch, heads, time, dim) or, without the last, (batch, heads, time).
TensorView view(const Tensor& tensor, int64_t batch) {
  TensorView seen;
  seen.data = tensor.data_ptr();
  seen.type = element_type(tensor);
  for (int64_t n = 0; n < tensor.dim(); ++n) seen.strides[n] = tensor.stride(n);
  if (tensor.size(0) == 1 && batch != 1) seen.strides[0] = 0;
  return seen;
}

TensorView view(const MaybeTensor& tensor, int64_t batch) {
  return tensor ? view(*tensor, batch) : TensorView{};
}

template <class View, class Element>
View steps_view(const MaybeTensor& tensor) {
  if (!tensor) return {};
  return {static_cast<const Element*>(tensor->const_data_ptr()),
          {tensor->size(0) == 1 ? 0 : tensor->stride(0), tensor->stride(1)}};
}

Tensor new_floats(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, ScalarType::Float);
}

Tensor new_like(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()});
}

Dropout make_dropout(const MaybeTensor& seed, double dropout_p) {
  Dropout dropout;
  if (!seed || dropout_p == 0.0) return dropout;
  dropout.active = true;
  dropout.seed = *static_cast<const int64_t*>(seed->const_data_ptr());
  dropout.threshold = static_cast<uint64_t>(std::nearbyint(dropout_p * 4294967296.0));
  dropout.scale = dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - dropout_p)) : 0.0f;
  return dropout;
}

// How many groups the rows of a head are split into: enough for many cores where there are few
// heads, but none so small that what a group adds is slow to merge.
int64_t group_count(const Options& options, int64_t rows) {
  constexpr int64_t tasks = 32, rows_a_group = 512;
  const int64_t heads = std::max<int64_t>(options.batch * options.heads, 1);
  const int64_t wanted = std::min((tasks + heads - 1) / heads, most_groups);
  return std::clamp<int64_t>(rows / rows_a_group, 1, wanted);
}

template <class Work>
void run_tasks(int64_t count, const Work& work) {
  torch::stable::parallel_for(0, count, 1,
                              [&](int64_t begin, int64_t end) { work(Range{begin, end}); });
}

int64_t task_count(const Options& options) {
  return options.batch * options.heads * options.groups;
}

int64_t merge_blocks(const Options& options, int64_t steps) {
  return options.batch * options.heads * ((steps + merge_block - 1) / merge_block);
}

// Memory that the groups of a problem keep their parts in; none for a single group. Heads that fall
// to one thread leave theirs untouched, so that it never becomes real memory.
class Partials {
 public:
  Partials(Options& options, const Tensor& like, int64_t floats_a_group)
      : is_merged_(std::make_unique<bool[]>(options.batch * options.heads)) {
    options.is_merged = is_merged_.get();
    if (options.groups == 1) return;
    memory_ = new_floats(like, {task_count(options) * floats_a_group});
    options.partials = static_cast<float*>(memory_->mutable_data_ptr());
  }

 private:
  std::unique_ptr<bool[]> is_merged_;
  std::optional<Tensor> memory_;
};

// A gradient in its tensor's own shape. Where the batch was broadcast, the kernels write every
// batch's part in float32, to be added up afterwards.
class Gradient {
 public:
  Gradient(const Tensor& input, int64_t batch)
      : batch_(batch),
        result_(new_like(input, {input.size(0), input.size(1), input.size(2), input.size(3)})) {
    const bool broadcast = input.size(0) == 1 && batch != 1;
    if (broadcast) {
      wide_ = new_floats(input, {batch, input.size(1), input.size(2), input.size(3)});
    }
  }

  TensorView target() const { return view(wide_ ? *wide_ : result_, batch_); }

  Tensor finish() const {
    if (wide_) {
      const TensorView parts = view(*wide_, batch_), sum = view(result_, 1);
      run_tasks(result_.size(1), [&](Range heads) {
        mmer::cpu::kernels().sum_batch(parts, sum, batch_, result_.size(2), result_.size(3), heads);
      });
    }
    return result_;
  }

 private:
  int64_t batch_;
  Tensor result_;
  std::optional<Tensor> wide_;
};

// The options of both cross-attention operators, in the order of their schema.
struct PairOptions {
  MaybeTensor decay, mask_a, mask_b, times_a, times_b, dropout_seed;
  double scale, max_gap, dropout_p;
};

Options make_options(const PairOptions& pair, const Tensor& first, int64_t batch) {
  Options options;
  options.batch = batch;
  options.heads = first.size(1);
  options.head_dim = first.size(3);
  options.scale = static_cast<float>(pair.scale);
  options.timed = pair.times_a.has_value();
  options.max_gap = static_cast<float>(pair.max_gap);
  options.dropout = make_dropout(pair.dropout_seed, pair.dropout_p);
  return options;
}

// The decay is small, and may have any stride.
std::vector<float> read_decay(const MaybeTensor& decay) {
  std::vector<float> slopes;
  if (!decay) return slopes;
  const float* data = static_cast<const float*>(decay->const_data_ptr());
  for (int64_t head = 0; head < decay->size(0); ++head) {
    slopes.push_back(data[head * decay->stride(0)]);
  }
  return slopes;
}

// Gradient of the decay from that of each task, in order; empty if there was no decay.
Tensor sum_decay(const MaybeTensor& decay, const Tensor& like,
                 const std::vector<std::pair<const Options*, const std::vector<double>*>>& parts) {
  if (!decay) return new_like(like, {0});
  const Tensor gradient = new_floats(*decay, {decay->size(0)});
  float* data = static_cast<float*>(gradient.mutable_data_ptr());
  for (int64_t head = 0; head < decay->size(0); ++head) {
    double sum = 0.0;
    for (const auto& [options, tasks] : parts) {
      for (int64_t batch = 0; batch < options->batch; ++batch) {
        const int64_t first = (batch * options->heads + head) * options->groups;
        for (int64_t group = 0; group < options->groups; ++group) sum += (*tasks)[first + group];
      }
    }
    data[head] = static_cast<float>(sum);
  }
  return gradient;
}

Side make_side(const Tensor& qk, const Tensor& value, const Tensor& out, const Tensor& lse,
               const MaybeTensor& mask, const MaybeTensor& times, int64_t batch, uint32_t stream) {
  Side side;
  side.time = qk.size(2);
  side.value_dim = value.size(3);
  side.stream = stream;
  side.qk = view(qk, batch);
  side.value = view(value, batch);
  side.out = view(out, batch);
  side.lse = view(lse, batch);
  side.mask = steps_view<MaskView, bool>(mask);
  side.times = steps_view<TimesView, float>(times);
  return side;
}

// The longer side has the rows: what is kept for the columns then stays in the cache.
SharedProblem make_shared(const Options& options, const Side& a, const Side& b) {
  SharedProblem problem;
  problem.options = options;
  problem.rows = a.time >= b.time ? a : b;
  problem.columns = a.time >= b.time ? b : a;
  problem.options.groups = group_count(options, problem.rows.time);
  return problem;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shared_cross_attention(
    Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b, MaybeTensor decay, MaybeTensor mask_a,
    MaybeTensor mask_b, MaybeTensor times_a, MaybeTensor times_b, MaybeTensor dropout_seed,
    double scale, double max_gap, double dropout_p, bool) {
  const mmer::cpu::KernelTable& kernels = mmer::cpu::kernels();
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = std::max(qk_a.size(0), qk_b.size(0)) * (qk_a.size(0) && qk_b.size(0));
  const int64_t heads = qk_a.size(1);
  const std::vector<float> slopes = read_decay(decay);
  Options options = make_options(pair, qk_a, batch);
  if (decay) options.decay = slopes.data();

  const Tensor out_a = new_like(qk_a, {batch, heads, qk_a.size(2), v_b.size(3)});
  const Tensor out_b = new_like(qk_a, {batch, heads, qk_b.size(2), v_a.size(3)});
  const Tensor lse_a = new_floats(qk_a, {batch, heads, qk_a.size(2)});
  const Tensor lse_b = new_floats(qk_a, {batch, heads, qk_b.size(2)});
  SharedProblem problem =
      make_shared(options, make_side(qk_a, v_a, out_a, lse_a, mask_a, times_a, batch, 0),
                  make_side(qk_b, v_b, out_b, lse_b, mask_b, times_b, batch, 1));
  const Partials partials(problem.options, qk_a, kernels.shared_forward_partials(problem));
  run_tasks(task_count(problem.options),
            [&](Range tasks) { kernels.shared_forward(problem, tasks); });
  if (problem.options.groups > 1) {
    run_tasks(merge_blocks(problem.options, problem.columns.time),
              [&](Range blocks) { kernels.shared_forward_merge(problem, blocks); });
  }
  return {out_a, out_b, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> shared_cross_attention_backward(
    Tensor grad_out_a, Tensor grad_out_b, MaybeTensor grad_lse_a, MaybeTensor grad_lse_b,
    Tensor qk_a, Tensor qk_b, Tensor v_a, Tensor v_b, MaybeTensor decay, MaybeTensor mask_a,
    MaybeTensor mask_b, MaybeTensor times_a, MaybeTensor times_b, MaybeTensor dropout_seed,
    double scale, double max_gap, double dropout_p, bool, Tensor out_a, Tensor out_b, Tensor lse_a,
    Tensor lse_b) {
  const mmer::cpu::KernelTable& kernels = mmer::cpu::kernels();
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = out_a.size(0);
  const std::vector<float> slopes = read_decay(decay);
  Options options = make_options(pair, qk_a, batch);
  if (decay) options.decay = slopes.data();

  const Gradient grad_qk_a(qk_a, batch), grad_qk_b(qk_b, batch);
  const Gradient grad_v_a(v_a, batch), grad_v_b(v_b, batch);
  Side a = make_side(qk_a, v_a, out_a, lse_a, mask_a, times_a, batch, 0);
  a.grad_out = view(grad_out_a, batch);
  a.grad_lse = view(grad_lse_a, batch);
  a.grad_qk = grad_qk_a.target();
  a.grad_value = grad_v_a.target();
  Side b = make_side(qk_b, v_b, out_b, lse_b, mask_b, times_b, batch, 1);
  b.grad_out = view(grad_out_b, batch);
  b.grad_lse = view(grad_lse_b, batch);
  b.grad_qk = grad_qk_b.target();
  b.grad_value = grad_v_b.target();

  SharedProblem problem = make_shared(options, a, b);
  std::vector<double> grad_decay(task_count(problem.options));
  if (decay) problem.options.grad_decay = grad_decay.data();
  const Partials partials(problem.options, qk_a, kernels.shared_backward_partials(problem));
  run_tasks(task_count(problem.options),
            [&](Range tasks) { kernels.shared_backward(problem, tasks); });
  if (problem.options.groups > 1) {
    run_tasks(merge_blocks(problem.options, problem.columns.time),
              [&](Range blocks) { kernels.shared_backward_merge(problem, blocks); });
  }
  return {grad_qk_a.finish(), grad_qk_b.finish(), grad_v_a.finish(), grad_v_b.finish(),
          sum_decay(decay, grad_out_a, {{&problem.options, &grad_decay}})};
}

void run_forward(const DirectedProblem& problem) {
  run_tasks(task_count(problem.options),
            [&](Range tasks) { mmer::cpu::kernels().directed_forward(problem, tasks); });
}

void run_backward(DirectedProblem& problem, const Tensor& like) {
  const mmer::cpu::KernelTable& kernels = mmer::cpu::kernels();
  const Partials partials(problem.options, like, kernels.directed_backward_partials(problem));
  run_tasks(task_count(problem.options),
            [&](Range tasks) { kernels.directed_backward(problem, tasks); });
  if (problem.options.groups == 1) return;
  int64_t blocks = 0;
  for (const Segment& segment : problem.segments) {
    blocks += merge_blocks(problem.options, segment.time);
  }
  run_tasks(blocks, [&](Range range) { kernels.directed_backward_merge(problem, range); });
}

// One direction of bidirectional cross-attention.
DirectedProblem make_direction(const Options& options, const Tensor& query, const Tensor& key,
                               const Tensor& value, const Tensor& out, const Tensor& lse,
                               const MaybeTensor& query_mask, const MaybeTensor& key_mask,
                               const MaybeTensor& query_times, const MaybeTensor& key_times,
                               uint32_t stream) {
  DirectedProblem problem;
  problem.options = options;
  problem.time = query.size(2);
  problem.value_dim = value.size(3);
  problem.options.groups = group_count(options, problem.time);
  problem.query = view(query, options.batch);
  problem.out = view(out, options.batch);
  problem.lse = view(lse, options.batch);
  problem.mask = steps_view<MaskView, bool>(query_mask);
  problem.times = steps_view<TimesView, float>(query_times);
  Segment& segment = problem.segments[0];
  segment.time = key.size(2);
  segment.stream = stream;
  segment.key = view(key, options.batch);
  segment.value = view(value, options.batch);
  segment.mask = steps_view<MaskView, bool>(key_mask);
  segment.times = steps_view<TimesView, float>(key_times);
  return problem;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bidirectional_cross_attention(
    Tensor q_a, Tensor k_a, Tensor v_a, Tensor q_b, Tensor k_b, Tensor v_b, MaybeTensor decay,
    MaybeTensor mask_a, MaybeTensor mask_b, MaybeTensor times_a, MaybeTensor times_b,
    MaybeTensor dropout_seed, double scale, double max_gap, double dropout_p, bool) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = std::max(q_a.size(0), q_b.size(0)) * (q_a.size(0) && q_b.size(0));
  const int64_t heads = q_a.size(1);
  const std::vector<float> slopes = read_decay(decay);
  Options options = make_options(pair, q_a, batch);
  if (decay) options.decay = slopes.data();

  const Tensor out_a = new_like(q_a, {batch, heads, q_a.size(2), v_b.size(3)});
  const Tensor out_b = new_like(q_a, {batch, heads, q_b.size(2), v_a.size(3)});
  const Tensor lse_a = new_floats(q_a, {batch, heads, q_a.size(2)});
  const Tensor lse_b = new_floats(q_a, {batch, heads, q_b.size(2)});
  run_forward(
      make_direction(options, q_a, k_b, v_b, out_a, lse_a, mask_a, mask_b, times_a, times_b, 0));
  run_forward(
      make_direction(options, q_b, k_a, v_a, out_b, lse_b, mask_b, mask_a, times_b, times_a, 1));
  return {out_a, out_b, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
bidirectional_cross_attention_backward(Tensor grad_out_a, Tensor grad_out_b, MaybeTensor grad_lse_a,
                                       MaybeTensor grad_lse_b, Tensor q_a, Tensor k_a, Tensor v_a,
                                       Tensor q_b, Tensor k_b, Tensor v_b, MaybeTensor decay,
                                       MaybeTensor mask_a, MaybeTensor mask_b, MaybeTensor times_a,
                                       MaybeTensor times_b, MaybeTensor dropout_seed, double scale,
                                       double max_gap, double dropout_p, bool, Tensor out_a,
                                       Tensor out_b, Tensor lse_a, Tensor lse_b) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = out_a.size(0);
  const std::vector<float> slopes = read_decay(decay);
  Options options = make_options(pair, q_a, batch);
  if (decay) options.decay = slopes.data();

  const Gradient grad_q_a(q_a, batch), grad_k_a(k_a, batch), grad_v_a(v_a, batch);
  const Gradient grad_q_b(q_b, batch), grad_k_b(k_b, batch), grad_v_b(v_b, batch);
  DirectedProblem to_a =
      make_direction(options, q_a, k_b, v_b, out_a, lse_a, mask_a, mask_b, times_a, times_b, 0);
  to_a.grad_out = view(grad_out_a, batch);
  to_a.grad_lse = view(grad_lse_a, batch);
  to_a.grad_query = grad_q_a.target();
  to_a.segments[0].grad_key = grad_k_b.target();
  to_a.segments[0].grad_value = grad_v_b.target();
  DirectedProblem to_b =
      make_direction(options, q_b, k_a, v_a, out_b, lse_b, mask_b, mask_a, times_b, times_a, 1);
  to_b.grad_out = view(grad_out_b, batch);
  to_b.grad_lse = view(grad_lse_b, batch);
  to_b.grad_query = grad_q_b.target();
  to_b.segments[0].grad_key = grad_k_a.target();
  to_b.segments[0].grad_value = grad_v_a.target();

  std::vector<double> decay_to_a(task_count(to_a.options)), decay_to_b(task_count(to_b.options));
  if (decay) {
    to_a.options.grad_decay = decay_to_a.data();
    to_b.options.grad_decay = decay_to_b.data();
  }
  run_backward(to_a, q_a);
  run_backward(to_b, q_a);
  return {
      grad_q_a.finish(),
      grad_k_a.finish(),
      grad_v_a.finish(),
      grad_q_b.finish(),
      grad_k_b.finish(),
      grad_v_b.finish(),
      sum_decay(decay, grad_out_a, {{&to_a.options, &decay_to_a}, {&to_b.options, &decay_to_b}})};
}

DirectedProblem make_chunked(const Tensor& q, const Tensor& k, const Tensor& v,
                             const MaybeTensor& summary_k, const MaybeTensor& summary_v,
                             const MaybeTensor& mask, const MaybeTensor& dropout_seed,
                             const Chunking& chunking, double scale, double dropout_p,
                             const Tensor& out, const Tensor& lse) {
  const int64_t batch = q.size(0), time = q.size(2);
  const int64_t chunks = time == 0 ? 0 : (time - 1) / chunking.chunk_size + 1;
  DirectedProblem problem;
  Options& options = problem.options;
  options.batch = batch;
  options.heads = q.size(1);
  options.head_dim = q.size(3);
  options.scale = static_cast<float>(scale);
  options.dropout = make_dropout(dropout_seed, dropout_p);
  options.groups = group_count(options, time);
  // No chunk has neighbours further away than there are chunks, nor more steps than there are.
  problem.chunking = {std::min(chunking.chunk_size, std::max<int64_t>(time, 1)),
                      std::min(chunking.lookback, chunks), std::min(chunking.lookahead, chunks),
                      chunking.causal, std::min(chunking.max_summaries, chunks)};
  problem.time = time;
  problem.value_dim = v.size(3);
  problem.query = view(q, batch);
  problem.out = view(out, batch);
  problem.lse = view(lse, batch);
  problem.mask = steps_view<MaskView, bool>(mask);
  Segment& tokens = problem.segments[0];
  tokens.time = time;
  tokens.key = view(k, batch);
  tokens.value = view(v, batch);
  tokens.mask = problem.mask;
  if (summary_k && summary_v) {
    problem.segment_count = 2;
    Segment& summaries = problem.segments[1];
    summaries.time = chunks;
    summaries.stream = 1;
    summaries.log_counts = true;
    summaries.key = view(*summary_k, batch);
    summaries.value = view(*summary_v, batch);
  }
  return problem;
}

std::tuple<Tensor, Tensor> chunked_attention(Tensor q, Tensor k, Tensor v, MaybeTensor summary_k,
                                             MaybeTensor summary_v, MaybeTensor mask,
                                             MaybeTensor dropout_seed, int64_t chunk_size,
                                             int64_t lookback, int64_t lookahead, bool causal,
                                             int64_t max_summaries, double scale, double dropout_p,
                                             bool) {
  const Tensor out = new_like(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  const Tensor lse = new_floats(q, {q.size(0), q.size(1), q.size(2)});
  DirectedProblem problem = make_chunked(
      q, k, v, summary_k, summary_v, mask, dropout_seed,
      Chunking{chunk_size, lookback, lookahead, causal, max_summaries}, scale, dropout_p, out, lse);
  // Nothing is merged here, and a window of keys that stays in the cache is worth more groups.
  constexpr int64_t rows_a_group = 1024;
  problem.options.groups = std::max(problem.options.groups, problem.time / rows_a_group);
  run_forward(problem);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> chunked_attention_backward(
    Tensor grad_out, MaybeTensor grad_lse, Tensor q, Tensor k, Tensor v, MaybeTensor summary_k,
    MaybeTensor summary_v, MaybeTensor mask, MaybeTensor dropout_seed, int64_t chunk_size,
    int64_t lookback, int64_t lookahead, bool causal, int64_t max_summaries, double scale,
    double dropout_p, bool, Tensor out, Tensor lse) {
  const int64_t batch = q.size(0);
  const Gradient grad_q(q, batch), grad_k(k, batch), grad_v(v, batch);
  DirectedProblem problem = make_chunked(
      q, k, v, summary_k, summary_v, mask, dropout_seed,
      Chunking{chunk_size, lookback, lookahead, causal, max_summaries}, scale, dropout_p, out, lse);
  problem.grad_out = view(grad_out, batch);
  problem.grad_lse = view(grad_lse, batch);
  problem.grad_query = grad_q.target();
  problem.segments[0].grad_key = grad_k.target();
  problem.segments[0].grad_value = grad_v.target();
  Tensor grad_summary_k = new_like(grad_out, {0}), grad_summary_v = new_like(grad_out, {0});
  if (problem.segment_count == 2) {
    const Gradient keys(*summary_k, batch), values(*summary_v, batch);
    problem.segments[1].grad_key = keys.target();
    problem.segments[1].grad_value = values.target();
    run_backward(problem, q);
    grad_summary_k = keys.finish();
    grad_summary_v = values.finish();
  } else {
    run_backward(problem, q);
  }
  return {grad_q.finish(), grad_k.finish(), grad_v.finish(), grad_summary_k, grad_summary_v};
}

std::string kernel_capability() {
  return mmer::cpu::kernel_capability();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmer_cpu, library) {
  library.def("kernel_capability() -> str");
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

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CompositeExplicitAutograd, library) {
  library.impl("kernel_capability", TORCH_BOX(&kernel_capability));
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("shared_cross_attention", TORCH_BOX(&shared_cross_attention));
  library.impl("shared_cross_attention_backward", TORCH_BOX(&shared_cross_attention_backward));
  library.impl("bidirectional_cross_attention", TORCH_BOX(&bidirectional_cross_attention));
  library.impl("bidirectional_cross_attention_backward",
               TORCH_BOX(&bidirectional_cross_attention_backward));
  library.impl("chunked_attention", TORCH_BOX(&chunked_attention));
  library.impl("chunked_attention_backward", TORCH_BOX(&chunked_attention_backward));
}
