// Chunked attention on the CPU: a directed problem whose queries see a window of the tokens and, as
// a second segment, summaries. The schemas are those of kernels/registration.py.

#include <tuple>

#include "capability.h"
#include "checks.h"
#include "execution.h"

namespace {

using namespace mmer::cpu;

constexpr char name[] = "chunked_attention";

int64_t chunk_count(int64_t time, int64_t chunk_size) {
  return time == 0 ? 0 : (time - 1) / chunk_size + 1;
}

void check(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& summary_k,
           const MaybeTensor& summary_v, const MaybeTensor& mask, const MaybeTensor& dropout_seed,
           const Chunking& chunking) {
  const Checks checks(name, q);
  const int64_t time = q.dim() == 4 ? q.size(2) : -1;
  const int64_t batch = checks.steps(q, time);
  checks.require(checks.steps(k, time) == batch && checks.steps(v, time) == batch, "batch sizes");
  checks.require(k.size(3) == q.size(3), "head dimensions");
  checks.require(chunking.chunk_size >= 1 && chunking.lookback >= 0 && chunking.lookahead >= 0 &&
                     chunking.max_summaries >= 0,
                 "chunk sizes");
  const int64_t chunks = chunk_count(time, chunking.chunk_size);
  checks.require(summary_k.has_value() == summary_v.has_value(), "summaries");
  if (summary_k) {
    checks.require(checks.steps(*summary_k, chunks) == batch && summary_k->size(3) == k.size(3) &&
                       checks.steps(*summary_v, chunks) == batch && summary_v->size(3) == v.size(3),
                   "summaries");
  }
  checks.mask(mask, batch, time);
  checks.require(!mask || mask->size(0) == batch, "masks");
  checks.seed(dropout_seed);
}

DirectedProblem make_chunked(const Tensor& q, const Tensor& k, const Tensor& v,
                             const MaybeTensor& summary_k, const MaybeTensor& summary_v,
                             const MaybeTensor& mask, const MaybeTensor& dropout_seed,
                             const Chunking& chunking, double scale, double dropout_p,
                             const Tensor& out, const Tensor& lse) {
  const int64_t batch = q.size(0), time = q.size(2);
  const int64_t chunks = chunk_count(time, chunking.chunk_size);
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
  problem.mask = steps_view<MaskView>(mask);
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

std::tuple<Tensor, Tensor> chunked_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const MaybeTensor& summary_k,
                                             const MaybeTensor& summary_v, const MaybeTensor& mask,
                                             const MaybeTensor& dropout_seed, int64_t chunk_size,
                                             int64_t lookback, int64_t lookahead, bool causal,
                                             int64_t max_summaries, double scale, double dropout_p,
                                             bool) {
  const Chunking chunking{chunk_size, lookback, lookahead, causal, max_summaries};
  check(q, k, v, summary_k, summary_v, mask, dropout_seed, chunking);
  const int64_t batch = q.size(0), heads = q.size(1), time = q.size(2);
  const Tensor out = new_tensor(std::array{batch, heads, time, v.size(3)}, dtype_of(q));
  const Tensor lse = new_floats(std::array{batch, heads, time});
  DirectedProblem problem = make_chunked(q, k, v, summary_k, summary_v, mask, dropout_seed,
                                         chunking, scale, dropout_p, out, lse);
  // Nothing is merged here, and a window of keys that stays in the cache is worth more groups.
  constexpr int64_t rows_a_group = 1024;
  problem.options.groups = std::max(problem.options.groups, time / rows_a_group);
  run_forward(kernels(), problem, TorchThreads());
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> chunked_attention_backward(
    const Tensor& grad_out, const MaybeTensor& grad_lse, const Tensor& q, const Tensor& k,
    const Tensor& v, const MaybeTensor& summary_k, const MaybeTensor& summary_v,
    const MaybeTensor& mask, const MaybeTensor& dropout_seed, int64_t chunk_size, int64_t lookback,
    int64_t lookahead, bool causal, int64_t max_summaries, double scale, double dropout_p, bool,
    const Tensor& out, const Tensor& lse) {
  const Chunking chunking{chunk_size, lookback, lookahead, causal, max_summaries};
  check(q, k, v, summary_k, summary_v, mask, dropout_seed, chunking);
  const Checks checks(name, q);
  for (const Tensor* result : {&out, &grad_out}) {
    checks.output(*result, q.size(0), q.size(2), v.size(3));
  }
  checks.log_sum_exp(lse, q.size(0), q.size(2));
  checks.log_sum_exp(grad_lse, q.size(0), q.size(2));
  const int64_t batch = q.size(0);
  const Gradient grad_q(q, batch), grad_k(k, batch), grad_v(v, batch);
  DirectedProblem problem = make_chunked(q, k, v, summary_k, summary_v, mask, dropout_seed,
                                         chunking, scale, dropout_p, out, lse);
  problem.grad_out = view(grad_out, batch);
  problem.grad_lse = view(grad_lse, batch);
  problem.grad_query = grad_q.target();
  problem.segments[0].grad_key = grad_k.target();
  problem.segments[0].grad_value = grad_v.target();
  std::optional<Gradient> grad_summary_k, grad_summary_v;
  if (problem.segment_count == 2) {
    problem.segments[1].grad_key = grad_summary_k.emplace(*summary_k, batch).target();
    problem.segments[1].grad_value = grad_summary_v.emplace(*summary_v, batch).target();
  }
  run_backward(kernels(), problem, TorchThreads());
  const auto finish = [&](const std::optional<Gradient>& gradient) {
    return gradient ? gradient->finish(kernels())
                    : new_tensor(std::array<int64_t, 1>{0}, dtype_of(grad_out));
  };
  return {grad_q.finish(kernels()), grad_k.finish(kernels()), grad_v.finish(kernels()),
          finish(grad_summary_k), finish(grad_summary_v)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmer_cpu, library) {
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

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("chunked_attention", TORCH_BOX(&chunked_attention));
  library.impl("chunked_attention_backward", TORCH_BOX(&chunked_attention_backward));
}
