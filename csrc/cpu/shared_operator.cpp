// Shared cross-attention on the CPU. The schemas are those of kernels/registration.py.

#include <tuple>

#include "capability.h"
#include "pairs.h"

namespace {

using namespace mmer::cpu;

constexpr char name[] = "shared_cross_attention";

int64_t check(const PairOptions& pair, const Tensor& qk_a, const Tensor& qk_b, const Tensor& v_a,
              const Tensor& v_b) {
  const Checks checks(name, qk_a);
  const int64_t batch = check_pair(checks, pair, {&qk_a, &v_a}, {&qk_b, &v_b});
  checks.require(qk_a.size(3) == qk_b.size(3), "head dimensions");
  return batch;
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
  side.mask = steps_view<MaskView>(mask);
  side.times = steps_view<TimesView>(times);
  return side;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shared_cross_attention(
    const Tensor& qk_a, const Tensor& qk_b, const Tensor& v_a, const Tensor& v_b,
    const MaybeTensor& decay, const MaybeTensor& mask_a, const MaybeTensor& mask_b,
    const MaybeTensor& times_a, const MaybeTensor& times_b, const MaybeTensor& dropout_seed,
    double scale, double max_gap, double dropout_p, bool) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = check(pair, qk_a, qk_b, v_a, v_b);
  const std::vector<float> slopes = pair.slopes();
  const Options options = pair.options(qk_a, batch, slopes);
  const int64_t heads = options.heads, time_a = qk_a.size(2), time_b = qk_b.size(2);
  const int32_t dtype = dtype_of(qk_a);

  const Tensor out_a = new_tensor(std::array{batch, heads, time_a, v_b.size(3)}, dtype);
  const Tensor out_b = new_tensor(std::array{batch, heads, time_b, v_a.size(3)}, dtype);
  const Tensor lse_a = new_floats(std::array{batch, heads, time_a});
  const Tensor lse_b = new_floats(std::array{batch, heads, time_b});
  SharedProblem problem =
      arrange(options, make_side(qk_a, v_a, out_a, lse_a, mask_a, times_a, batch, 0),
              make_side(qk_b, v_b, out_b, lse_b, mask_b, times_b, batch, 1));
  run_forward(kernels(), problem, TorchThreads());
  return {out_a, out_b, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> shared_cross_attention_backward(
    const Tensor& grad_out_a, const Tensor& grad_out_b, const MaybeTensor& grad_lse_a,
    const MaybeTensor& grad_lse_b, const Tensor& qk_a, const Tensor& qk_b, const Tensor& v_a,
    const Tensor& v_b, const MaybeTensor& decay, const MaybeTensor& mask_a,
    const MaybeTensor& mask_b, const MaybeTensor& times_a, const MaybeTensor& times_b,
    const MaybeTensor& dropout_seed, double scale, double max_gap, double dropout_p, bool,
    const Tensor& out_a, const Tensor& out_b, const Tensor& lse_a, const Tensor& lse_b) {
  const PairOptions pair{decay,        mask_a, mask_b,  times_a,  times_b,
                         dropout_seed, scale,  max_gap, dropout_p};
  const int64_t batch = check(pair, qk_a, qk_b, v_a, v_b);
  const Checks checks(name, qk_a);
  check_results(checks, out_a, lse_a, grad_out_a, grad_lse_a, batch, qk_a, v_b);
  check_results(checks, out_b, lse_b, grad_out_b, grad_lse_b, batch, qk_b, v_a);
  const std::vector<float> slopes = pair.slopes();
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

  SharedProblem problem = arrange(pair.options(qk_a, batch, slopes), a, b);
  const DecayGradient grad_decay(decay, problem.options);
  run_backward(kernels(), problem, TorchThreads());
  return {grad_qk_a.finish(kernels()), grad_qk_b.finish(kernels()), grad_v_a.finish(kernels()),
          grad_v_b.finish(kernels()), DecayGradient::add_up(decay, grad_out_a, {&grad_decay})};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmer_cpu, library) {
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
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("shared_cross_attention", TORCH_BOX(&shared_cross_attention));
  library.impl("shared_cross_attention_backward", TORCH_BOX(&shared_cross_attention_backward));
}
