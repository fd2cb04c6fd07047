// What the backward kernels share: the softmax of a query again from its log-sum-exp, and the
// derivative of a tile of weights.
//
//   dS = P (dP - D)      D = rowsum(dO O) - dLSE      dV = P^T dO      dP = dO V^T
//
// (Dao et al., FlashAttention, 2022, appendix B.2), with dropout on P and dP, not on the P of dS.

#pragma once

#include "dropout.h"
#include "scores.h"

namespace mmer::cpu {
namespace {

// Gradients that arrive at some queries, packed: grad_out (steps, dim), 0 for a query that saw no
// key; lse is +infinity there, so that its weights are 0; correction = D; norm =
// sum of the weights that the rounded lse gives.
struct QueryGradients {
  float *grad_out, *lse, *grad_lse, *correction, *norm;

  QueryGradients(Arena& arena, int64_t count, int64_t dim)
      : grad_out(arena.take(count * row_stride(dim))),
        lse(arena.take(round_up(count, column_block))),
        grad_lse(arena.take(round_up(count, column_block))),
        correction(arena.take(round_up(count, column_block))),
        norm(arena.take(round_up(count, column_block))) {}
};

// A log-sum-exp of this size was rounded by so much that the weights that it gives do not add up to
// 1: by up to 2^-19. They are summed again then.
constexpr float largest_exact_lse = 32.0f;

inline bool is_exact(const float* lse, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    if (lse[n] != infinity && !(lse[n] < largest_exact_lse && lse[n] > -largest_exact_lse)) {
      return false;
    }
  }
  return true;
}

inline void avoid_zeros(float* sums, int64_t count) {
  for (int64_t n = 0; n < count; ++n) sums[n] = sums[n] == 0.0f ? 1.0f : sums[n];
}

// sums (rows) += weights that the rows' lse gives
inline void sum_row_weights(Matrix scores, int64_t rows, int64_t columns, const float* column_bias,
                            const float* lse, float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    Vector sum{};
    for (int64_t j = 0; j < columns; j += lanes) {
      sum +=
          exp_vector(load(scores.data + i * scores.stride + j) + (load(column_bias + j) - lse[i]));
    }
    sums[i] += sum_lanes(sum);
  }
}

struct QueryTensors {
  const TensorView &out, &lse, &grad_out, &grad_lse;
};

// lse (steps)
inline void read_lse(const TensorView& lse, const Task& task, Range steps, float* packed) {
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const float natural = read_scalar(lse, task.batch, task.head, step);
    packed[step - steps.begin] = natural == -infinity ? infinity : natural;
  }
}

// `row` has room for one row of the tensor `out`.
inline void read_query_gradients(const QueryTensors& tensors, const Task& task, Range steps,
                                 int64_t dim, float* row, const QueryGradients& packed) {
  const int64_t stride = row_stride(dim), whole = round_up(dim, lanes);
  read_lse(tensors.lse, task, steps, packed.lse);
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const int64_t n = step - steps.begin;
    float* grad_out = packed.grad_out + n * stride;
    fill(grad_out, whole, 0.0f);
    packed.grad_lse[n] = 0.0f;
    packed.correction[n] = 0.0f;
    packed.norm[n] = 1.0f;
    if (packed.lse[n] == infinity) continue;
    read_row(tensors.grad_out, task.batch, task.head, step, dim, grad_out);
    read_row(tensors.out, task.batch, task.head, step, dim, row);
    if (tensors.grad_lse.data != nullptr) {
      packed.grad_lse[n] = read_scalar(tensors.grad_lse, task.batch, task.head, step);
    }
    packed.correction[n] = dot(grad_out, row, dim) - packed.grad_lse[n];
  }
}

// weights = exp(scores + column_bias - lse) / norm, in place, and
// grad_scores = weights (factors grad_weights - correction), in place of grad_weights. Where there
// is dropout, the weights come out with its factors.
inline void derive_rows(Matrix scores, Matrix grad_weights, const float* factors, int64_t rows,
                        int64_t columns, const float* column_bias, const float* lse,
                        const float* norm, const float* correction) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    float* grad = grad_weights.data + i * grad_weights.stride;
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = exp_vector(load(row + j) + (load(column_bias + j) - lse[i])) / norm[i];
      if (factors == nullptr) {
        store(grad + j, weight * (load(grad + j) - correction[i]));
        store(row + j, weight);
      } else {
        const Vector factor = load(factors + i * tile_stride + j);
        store(grad + j, weight * (load(grad + j) * factor - correction[i]));
        store(row + j, weight * factor);
      }
    }
  }
}

// The same where the tile holds all keys of its rows: D is then summed from the very weights that
// it corrects, which is more accurate than rowsum(dO O), and the weights are divided by their sum.
inline void derive_whole_rows(Matrix scores, Matrix grad_weights, const float* factors,
                              int64_t rows, int64_t columns, const float* column_bias,
                              const float* lse, const float* grad_lse) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    float* grad = grad_weights.data + i * grad_weights.stride;
    Vector sums{};
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = exp_vector(load(row + j) + (load(column_bias + j) - lse[i]));
      sums += weight;
      store(row + j, weight);
    }
    const float sum = sum_lanes(sums);
    Vector corrections{};
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = load(row + j) / (sum == 0.0f ? 1.0f : sum);
      if (factors != nullptr) store(grad + j, load(grad + j) * load(factors + i * tile_stride + j));
      corrections += weight * load(grad + j);
      store(row + j, weight);
    }
    const float correction = sum_lanes(corrections) - grad_lse[i];
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = load(row + j);
      store(grad + j, weight * (load(grad + j) - correction));
      if (factors != nullptr) store(row + j, weight * load(factors + i * tile_stride + j));
    }
  }
}

// gradient of the decay = -sum(grad_scores |row time - column time|)
inline double derive_decay(Matrix grad_scores, int64_t rows, int64_t columns,
                           const float* row_times, const float* column_times) {
  double total = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    Vector sum{};
    const float* row = grad_scores.data + i * grad_scores.stride;
    for (int64_t j = 0; j < columns; j += lanes) {
      sum += load(row + j) * absolute(row_times[i] - load(column_times + j));
    }
    total -= sum_lanes(sum);
  }
  return total;
}

}  // namespace
}  // namespace mmer::cpu
