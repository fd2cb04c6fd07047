// The kernels for one instruction set. This file is compiled once for each of them, with the
// compiler's flags and MMER_KERNELS, the name of the exported table; nothing else leaves it.

#include "directed_backward.h"
#include "directed_forward.h"
#include "product_float32.h"
#include "shared_backward.h"
#include "shared_forward.h"
#if defined(__AVX512BF16__)
#include "product_bfloat16.h"
#endif

namespace mmer::cpu {

#if defined(__AVX512BF16__)
// Serves what is not bfloat16: it would be compiled to the same instructions here.
extern const KernelTable kernels_avx512;
#endif

namespace {

#if defined(__AVX512BF16__)
using Arithmetic = Bfloat16;

// What computes with bfloat16 does so where all tensors are; float16 has no arithmetic of its own.
bool is_bfloat16(const SharedProblem& problem) {
  return problem.rows.qk.type == ElementType::bfloat16;
}

bool is_bfloat16(const DirectedProblem& problem) {
  return problem.query.type == ElementType::bfloat16;
}
#else
using Arithmetic = Float32;
#endif

// A kernel of this set, or the one of the same name that serves float32 and float16.
template <auto kernel, auto name, class Problem>
void run(const Problem& problem, Range tasks) {
#if defined(__AVX512BF16__)
  if (!is_bfloat16(problem)) return (kernels_avx512.*name)(problem, tasks);
#endif
  kernel(problem, tasks);
}

void sum_batch(const TensorView& wide, const TensorView& sum, int64_t batch, int64_t time,
               int64_t dim, Range heads) {
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    for (int64_t step = 0; step < time; ++step) {
      float* total = static_cast<float*>(wide.data) + element_offset(wide, 0, head, step);
      for (int64_t n = 1; n < batch; ++n) {
        const float* part = static_cast<float*>(wide.data) + element_offset(wide, n, head, step);
        for (int64_t k = 0; k < dim; ++k) total[k] += part[k];
      }
      write_vectors(sum, 0, head, step, dim, [&](int64_t k) { return load_part(total, k, dim); });
    }
  }
}

}  // namespace

extern const KernelTable MMER_KERNELS;
const KernelTable MMER_KERNELS{
    partials_size<ColumnState, SharedProblem>,
    run<run_tasks<SharedForward<Arithmetic>, SharedProblem>, &KernelTable::shared_forward>,
    merge_blocks<ColumnState, SharedProblem>,
    partials_size<ColumnGradients, SharedProblem>,
    run<run_tasks<SharedBackward<Arithmetic>, SharedProblem>, &KernelTable::shared_backward>,
    merge_blocks<ColumnGradients, SharedProblem>,
    run<run_directed_forward<Arithmetic>, &KernelTable::directed_forward>,
    partials_size<KeyGradients, DirectedProblem>,
    run<run_tasks<DirectedBackward<Arithmetic>, DirectedProblem>, &KernelTable::directed_backward>,
    merge_blocks<KeyGradients, DirectedProblem>,
    sum_batch,
};

}  // namespace mmer::cpu
