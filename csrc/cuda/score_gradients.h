// The gradients of the scores of the rows that a warp owns, from those of the weights.

#pragma once

#include "dropout.h"

namespace mmer::cuda {

// Of a tile of other steps. `count` accumulators hold 8 of them each.
template <bool extras>
struct ScoreGradients {
  const Extras& options;
  const Dropout& dropout;
  int first_row, first_step;
  float factor;  // of the scores

  // Of rows that are queries: dS = P (dP - correction), dP = dO v^T. Without extras it comes with
  // the correction taken off.
  template <int count>
  MMER_DEVICE void of_queries(float (&grad_scores)[count][4], const float (&scores)[count][4],
                              const float (&grad_weights)[count][4], const float (&minus_lse)[2],
                              const float (&minus_correction)[2], uint32_t stream) const {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      bool keep[4] = {true, true, true, true};
      if (drops()) dropout.draw_queries(keep, first_row, first_step + n * 8, stream);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float weight = exp2_fast(fmaf(scores[n][e], factor, minus_lse[e / 2]));
        float grad_weight = grad_weights[n][e];
        if (drops()) grad_weight = keep[e] ? grad_weight * options.keep_scale : 0.0f;
        if (extras) grad_weight += minus_correction[e / 2];
        grad_scores[n][e] = weight * grad_weight;
      }
    }
  }

  // Of rows that are keys: the same, transposed, added up where they are queries too. The scores
  // become the weights of the values. What is known of the other steps stands in shared memory, in
  // pairs.
  template <bool as_query, int minus_lse_smem, int minus_correction_smem, int count>
  MMER_DEVICE void of_keys(float (&grad_scores)[count][4], float (&scores)[count][4],
                           const float (&grad_weights)[count][4], const float (&row_bias)[2],
                           uint32_t pair_smem, uint32_t stream) const {
    unrolled<count>([&](auto n) {
      const float2 minus_lse = load_shared_pair<minus_lse_smem + n * 32>(pair_smem);
      float2 minus_correction{};
      if constexpr (extras) {
        minus_correction = load_shared_pair<minus_correction_smem + n * 32>(pair_smem);
      }
      bool keep[4] = {true, true, true, true};
      if (drops()) dropout.draw_keys(keep, first_row, first_step + n * 8, stream);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float shift = e % 2 ? minus_lse.y : minus_lse.x;
        if (extras) shift += row_bias[e / 2];  // padded rows are not stored
        const float weight = exp2_fast(fmaf(scores[n][e], factor, shift));
        float grad_weight = grad_weights[n][e], kept_weight = weight;
        if (drops()) {
          grad_weight = keep[e] ? grad_weight * options.keep_scale : 0.0f;
          kept_weight = keep[e] ? weight * options.keep_scale : 0.0f;
        }
        if (extras) grad_weight += e % 2 ? minus_correction.y : minus_correction.x;
        grad_scores[n][e] =
            as_query ? fmaf(weight, grad_weight, grad_scores[n][e]) : weight * grad_weight;
        scores[n][e] = kept_weight;
      }
    });
  }

 private:
  MMER_DEVICE bool drops() const { return extras && dropout.active(); }
};

}  // namespace mmer::cuda
