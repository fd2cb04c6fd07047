// Bidirectional cross-attention on the CPU: two directed problems. The schemas are those of
// kernels/registration.py.

#include <tuple>

#include "capability.h"
#include "pairs.h"

namespace {

using namespace mmer::cpu;

constexpr char name[] = "bidirectional_cross_attention";

int64_t check(const PairOptions& pair, const Tensor& q_a, const Tensor& k_a, const Tensor& v_a,
              const Tensor& q_b, const Tensor& k_b, const Tensor& v_b) {
  const Checks checks(name, q_a);
  const int64_t batch = check_pair(checks, pair, {&q_a, &k_a, &v_a}, {&q_b, &k_b, &v_b});
  const int64_t dim = q_a.size(3);
  checks.require(k_a.size(3) == dim && q_b.size(3) == dim && k_b.size(3) == dim, "head dimensions");
  return batch;
}

// One direction, from the queries of one side to the keys of the other.
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
  problem.mask = steps_view<MaskView>(query_mask);
  problem.times = steps_view<TimesView>(query_times);
  Segment& segment = problem.segments[0];
  segment.time = key.size(2);
  segment.stream = stream;
  segment.key = view(key, options.batch);
  segment.value = view(value, options.batch);
  segment.mask = steps_view<MaskView>(key_mask);
  segment.times = steps_view<TimesView>(key_times);
  return problem;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bidirectional_cross_attention(
    const Tensor& q_a, const Tensor& k_a, const Tensor& v_a, const Tensor& q_b, const Tensor& k_b,
    const Tensor& v_b, const MaybeTensor& decay, const MaybeTensor& mask_a,
    const MaybeTensor& mask_b, const MaybeTensor& times_a, const MaybeTensor& times_b,
    const MaybeTensor& dropout_seed, double scale, double max_gap, double dropout_p, bool) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = check(pair, q_a, k_a, v_a, q_b, k_b, v_b);
  const std::vector<float> slopes = pair.slopes();
  const Options options = pair.options(q_a, batch, slopes);
  const int64_t heads = options.heads, time_a = q_a.size(2), time_b = q_b.size(2);
  const int32_t dtype = dtype_of(q_a);

  const Tensor out_a = new_tensor(std::array{batch, heads, time_a, v_b.size(3)}, dtype);
  const Tensor out_b = new_tensor(std::array{batch, heads, time_b, v_a.size(3)}, dtype);
  const Tensor lse_a = new_floats(std::array{batch, heads, time_a});
  const Tensor lse_b = new_floats(std::array{batch, heads, time_b});
  const DirectedProblem to_a =
      make_direction(options, q_a, k_b, v_b, out_a, lse_a, mask_a, mask_b, times_a, times_b, 0);
  const DirectedProblem to_b =
      make_direction(options, q_b, k_a, v_a, out_b, lse_b, mask_b, mask_a, times_b, times_a, 1);
  run_forward(kernels(), to_a, TorchThreads());
  run_forward(kernels(), to_b, TorchThreads());
  return {out_a, out_b, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
bidirectional_cross_attention_backward(const Tensor& grad_out_a, const Tensor& grad_out_b,
                                       const MaybeTensor& grad_lse_a, const MaybeTensor& grad_lse_b,
                                       const Tensor& q_a, const Tensor& k_a, const Tensor& v_a,
                                       const Tensor& q_b, const Tensor& k_b, const Tensor& v_b,
                                       const MaybeTensor& decay, const MaybeTensor& mask_a,
                                       const MaybeTensor& mask_b, const MaybeTensor& times_a,
                                       const MaybeTensor& times_b, const MaybeTensor& dropout_seed,
                                       double scale, double max_gap, double dropout_p, bool,
                                       const Tensor& out_a, const Tensor& out_b,
                                       const Tensor& lse_a, const Tensor& lse_b) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = check(pair, q_a, k_a, v_a, q_b, k_b, v_b);
  const Checks checks(name, q_a);
  check_results(checks, out_a, lse_a, grad_out_a, grad_lse_a, batch, q_a, v_b);
  check_results(checks, out_b, lse_b, grad_out_b, grad_lse_b, batch, q_b, v_a);
  const std::vector<float> slopes = pair.slopes();
  const Options options = pair.options(q_a, batch, slopes);

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

  const DecayGradient decay_to_a(decay, to_a.options), decay_to_b(decay, to_b.options);
  run_backward(kernels(), to_a, TorchThreads());
  run_backward(kernels(), to_b, TorchThreads());
  return {grad_q_a.finish(kernels()),
          grad_k_a.finish(kernels()),
          grad_v_a.finish(kernels()),
          grad_q_b.finish(kernels()),
          grad_k_b.finish(kernels()),
          grad_v_b.finish(kernels()),
          DecayGradient::add_up(decay, grad_out_a, {&decay_to_a, &decay_to_b})};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmer_cpu, library) {
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
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("bidirectional_cross_attention", TORCH_BOX(&bidirectional_cross_attention));
  library.impl("bidirectional_cross_attention_backward",
               TORCH_BOX(&bidirectional_cross_attention_backward));
}
