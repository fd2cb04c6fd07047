// The kernels for one instruction set. This file is compiled once for each of them, with the
// compiler's flags and MMER_KERNELS, the name of the exported table; nothing else leaves it.

#include "directed_backward.h"
#include "directed_forward.h"
#include "shared_backward.h"
#include "shared_forward.h"

namespace mmer::cpu {
namespace {

void sum_batch(const TensorView& wide, const TensorView& sum, int64_t batch, int64_t time,
               int64_t dim, Range heads) {
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    for (int64_t step = 0; step < time; ++step) {
      float* total = static_cast<float*>(wide.data) + element_offset(wide, 0, head, step);
      for (int64_t n = 1; n < batch; ++n) {
        const float* part = static_cast<float*>(wide.data) + element_offset(wide, n, head, step);
        for (int64_t k = 0; k < dim; ++k) total[k] += part[k];
      }
      write_row(sum, 0, head, step, dim, total, 1.0f);
    }
  }
}

}  // namespace

extern const KernelTable MMER_KERNELS;
const KernelTable MMER_KERNELS{
    shared_forward_partials,
    shared_forward,
    shared_forward_merge,
    shared_backward_partials,
    shared_backward,
    shared_backward_merge,
    directed_forward,
    directed_backward_partials,
    directed_backward,
    directed_backward_merge,
    sum_batch,
};

}  // namespace mmer::cpu
