// What the backward kernels share: the softmax of a query again from its log-sum-exp, and the
// derivative of a tile of weights.
//
//   dS = P (dP - D)      D = rowsum(dO O) - dLSE      dV = P^T dO      dP = dO V^T
//
// (Dao et al., FlashAttention, 2022, appendix B.2), with dropout on P and dP, not on the P of dS.

#pragma once

#include "dropout.h"
#include "product_float32.h"
#include "scores.h"

namespace mmer::cpu {
namespace {

// x . y for up to `lanes` rows (count, dim). Each is rounded as the products of Float32 are: a
// query that sees one key has dP - D = 0 exactly.
inline Vector dot_rows(Rows x, Rows y, int64_t count, Range dims, int64_t dim) {
  if (dims.end - dims.begin > longest_sum) {
    const int64_t middle = dims.begin + (dims.end - dims.begin) / 2;
    return dot_rows(x, y, count, {dims.begin, middle}, dim) +
           dot_rows(x, y, count, {middle, dims.end}, dim);
  }
  Vector sums{};
  for (int64_t k = dims.begin; k < dims.end; k += lanes) {
    const auto add = [&](auto whole) {
      Vector left[lanes], right[lanes];
      load_square<whole>(x, count, k, dim, left);
      transpose(left);
      load_square<whole>(y, count, k, dim, right);
      transpose(right);
#pragma GCC unroll 16
      for (int n = 0; n < lanes; ++n) {
        if (whole || k + n < dims.end) sums += left[n] * right[n];
      }
    };
    is_square(count, k, dims.end) ? add(std::true_type{}) : add(std::false_type{});
  }
  return sums;
}

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
// 1: by up to 2^-19. They are summed again then, and divided by that sum.
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
inline void sum_row_weights(Scores scores, int64_t rows, int64_t columns, const float* column_bias,
                            const float* lse, float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = scores.tile.data + i * scores.tile.stride;
    Vector sum{};
    for (int64_t j = 0; j < columns; j += lanes) {
      sum += exp_vector(scores.scale * load(row + j) + (load(column_bias + j) - lse[i]));
    }
    sums[i] += sum_lanes(sum);
  }
}

struct QueryTensors {
  const TensorView &out, &grad_out, &grad_lse;
};

// lse (steps)
inline void read_lse(const TensorView& lse, const Task& task, Range steps, float* packed) {
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const float natural = read_scalar(lse, task.batch, task.head, step);
    packed[step - steps.begin] = natural == -infinity ? infinity : natural;
  }
}

// Weights relative to a common reference m instead of the query's own log-sum-exp: what arrives
// there is multiplied by e^(m - lse).
struct Relative {
  bool active = false;
  float reference = 0.0f;
};

// Gradients of some queries, whose lse was read.
inline void read_query_gradients(const QueryTensors& tensors, const Task& task, Range steps,
                                 int64_t dim, const QueryGradients& packed,
                                 const Relative& relative = {}) {
  const int64_t stride = row_stride(dim);
  float copy[lanes * longest_row];
  for (int64_t first = steps.begin; first < steps.end; first += lanes) {
    const int64_t count = smaller(lanes, steps.end - first), place = first - steps.begin;
    float* rows = packed.grad_out + place * stride;
    float factors[lanes];
    const Vector lse = load_first(packed.lse + place, count);
    store(factors, relative.active ? exp_vector(relative.reference - lse) : broadcast(1.0f));
    for (int64_t n = 0; n < count; ++n) {
      float* row = rows + n * stride;
      const bool sees_a_key = packed.lse[place + n] != infinity;
      if (sees_a_key) {
        read_row(tensors.grad_out, task.batch, task.head, first + n, dim, row);
      } else {
        fill(row, round_up(dim, lanes), 0.0f);
      }
      if (relative.active) {
        for (int64_t k = 0; k < dim; k += lanes) store(row + k, factors[n] * load(row + k));
      }
      packed.grad_lse[place + n] =
          sees_a_key && tensors.grad_lse.data != nullptr
              ? factors[n] * read_scalar(tensors.grad_lse, task.batch, task.head, first + n)
              : 0.0f;
    }
    const Rows out = Source{tensors.out, task.batch, task.head, dim, nullptr, first}.rows(
        {first, first + count}, copy, 1);
    const Vector products = dot_rows({rows, stride}, out, count, {0, dim}, dim);
    const Vector grad_lse = load_first(packed.grad_lse + place, count);
    store_first(packed.correction + place, products - grad_lse, count);
  }
}

// weights = exp(scores + column_bias - lse) / norm, in place, and
// grad_scores = weights (factors grad_weights - correction), in place of grad_weights. Where there
// is dropout, the weights come out with its factors.
inline void derive_rows(Scores scores, Matrix grad_weights, const float* factors, int64_t rows,
                        int64_t columns, const float* column_bias, const float* lse,
                        const float* norm, const float* correction) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.tile.data + i * scores.tile.stride;
    float* grad = grad_weights.data + i * grad_weights.stride;
    const float inverse = 1.0f / norm[i];
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector score = scores.scale * load(row + j) + (load(column_bias + j) - lse[i]);
      const Vector weight = exp_vector(score) * inverse;
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
inline void derive_whole_rows(Scores scores, Matrix grad_weights, const float* factors,
                              int64_t rows, int64_t columns, const float* column_bias,
                              const float* lse, const float* grad_lse) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.tile.data + i * scores.tile.stride;
    float* grad = grad_weights.data + i * grad_weights.stride;
    Vector sums{};
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight =
          exp_vector(scores.scale * load(row + j) + (load(column_bias + j) - lse[i]));
      sums += weight;
      store(row + j, weight);
    }
    float sum = sum_lanes(sums);
    sum = sum == 0.0f ? 1.0f : sum;
    const float inverse = 1.0f / sum;
    Vector corrections{};
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = divide(load(row + j), sum, inverse);
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

// Weights that also stay in the tile when they are packed from it.
struct KeepWeights {
  Weigh<Ways::none> weigh;

  template <int rows, int vectors>
  void prepare(int64_t, int64_t) const {}

  template <int rows, int vectors>
  __attribute__((always_inline)) void apply(Vector (&products)[rows][vectors], int64_t row,
                                            int64_t column) const {
    weigh.finish(products, row, column);
  }

  template <int rows, int vectors>
  __attribute__((always_inline)) void finish(Vector (&products)[rows][vectors], int64_t row,
                                             int64_t column) const {
    apply(products, row, column);
  }
};

// weights (grad_weights - D_rows - D_columns), to the tile; D_columns for both ways only.
template <Ways ways>
struct Derive {
  Matrix tile, weights;
  const float* row_correction;
  const float* column_correction = nullptr;

  template <int rows, int vectors>
  void prepare(int64_t, int64_t) const {}

  template <int rows, int vectors>
  __attribute__((always_inline)) void apply(Vector (&grad_weights)[rows][vectors], int64_t row,
                                            int64_t column) const {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = column + v * lanes;
      Vector correction{};
      if constexpr (ways == Ways::both) correction = load(column_correction + j);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const Vector weight = load(weights.data + (row + i) * weights.stride + j);
        grad_weights[i][v] = weight * (grad_weights[i][v] - (row_correction[row + i] + correction));
      }
    }
  }

  template <int rows, int vectors>
  __attribute__((always_inline)) void finish(Vector (&grad_weights)[rows][vectors], int64_t row,
                                             int64_t column) const {
    apply(grad_weights, row, column);
    Store<Result::overwritten>{tile}.finish(grad_weights, row, column);
  }
};

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
