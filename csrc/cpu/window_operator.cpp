// Attention of a stretch of queries to the keys before and around them, on the CPU: the forward of
// a stream. Its schema is that of kernels/chunked/window.py.

#include <tuple>

#include "capability.h"
#include "checks.h"
#include "execution.h"

namespace {

using namespace mmer::cpu;

// The window is one chunk, and every summary is older than it.
std::tuple<Tensor, Tensor> chunked_attention_window(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& summary_k,
    const MaybeTensor& summary_v, const MaybeTensor& summary_count, const MaybeTensor& query_mask,
    const MaybeTensor& mask, int64_t first_query, bool causal, double scale) {
  const Checks checks("chunked_attention_window", q);
  checks.require(q.dim() == 4 && k.dim() == 4, "tensors");
  const int64_t heads = q.size(1), time = q.size(2), keys = k.size(2);
  const int64_t batch = checks.steps(q, time);
  checks.require(checks.steps(k, keys) == batch && checks.steps(v, keys) == batch, "batch sizes");
  checks.require(k.size(3) == q.size(3), "head dimensions");
  checks.require(0 <= first_query && time <= keys && first_query <= keys - time, "positions");
  checks.mask(query_mask, batch, time);
  checks.mask(mask, batch, keys);

  const Tensor out = new_tensor(std::array{batch, heads, time, v.size(3)}, dtype_of(q));
  const Tensor lse = new_floats(std::array{batch, heads, time});
  DirectedProblem problem;
  problem.options.batch = batch;
  problem.options.heads = heads;
  problem.options.head_dim = q.size(3);
  problem.options.scale = static_cast<float>(scale);
  problem.options.groups = group_count(problem.options, time);
  problem.chunking.chunk_size = std::max<int64_t>(keys, 1);
  problem.chunking.causal = causal;
  problem.chunking.first_query = first_query;
  problem.time = time;
  problem.value_dim = v.size(3);
  problem.query = view(q, batch);
  problem.out = view(out, batch);
  problem.lse = view(lse, batch);
  problem.mask = steps_view<MaskView>(query_mask);
  Segment& tokens = problem.segments[0];
  tokens.time = keys;
  tokens.key = view(k, batch);
  tokens.value = view(v, batch);
  tokens.mask = steps_view<MaskView>(mask);
  if (summary_k && summary_v && summary_count) {
    const int64_t chunks = summary_k->dim() == 4 ? summary_k->size(2) : -1;
    checks.require(checks.steps(*summary_k, chunks) == batch && summary_k->size(3) == k.size(3) &&
                       checks.steps(*summary_v, chunks) == batch &&
                       summary_v->size(3) == v.size(3) && is_on_cpu(*summary_count) &&
                       has_shape(*summary_count, batch, chunks) &&
                       dtype_of(*summary_count) == aoti_torch_dtype_int64(),
                   "summaries");
    problem.chunking.max_summaries = chunks;
    problem.segment_count = 2;
    Segment& summaries = problem.segments[1];
    summaries.time = chunks;
    summaries.log_counts = true;
    summaries.first_chunk = -chunks;
    summaries.counts = steps_view<CountsView>(summary_count);
    summaries.key = view(*summary_k, batch);
    summaries.value = view(*summary_v, batch);
  }
  run_forward(kernels(), problem, TorchThreads());
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmer_cpu, library) {
  library.def(
      "chunked_attention_window(Tensor q, Tensor k, Tensor v, Tensor? summary_k, Tensor? "
      "summary_v, Tensor? summary_count, Tensor? query_mask, Tensor? mask, SymInt first_query, "
      "bool causal, float scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("chunked_attention_window", TORCH_BOX(&chunked_attention_window));
}
