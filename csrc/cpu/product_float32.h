// Products in float32: a small matrix with a panel, in registers.

#pragma once

#include "arena.h"
#include "steps.h"

namespace mmer::cpu {
namespace {

// Left factor (rows, inner). Row-major keeps `inner` contiguous; transposed keeps `rows`.
enum class Left { row_major, transposed };
enum class Result { overwritten, added_to };

// float32 (rows, columns)
struct Matrix {
  float* data;
  int64_t stride;
};

// result (rows, vectors * lanes) = or += left (rows, inner) right (inner, vectors * lanes)
template <Left left_order, Result result_is, int rows, int vectors>
__attribute__((noinline)) void multiply_tile(int64_t inner, const float* __restrict left,
                                             int64_t left_stride, const float* __restrict right,
                                             int64_t right_stride, float* __restrict result,
                                             int64_t result_stride) {
  Vector sums[rows][vectors] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector right_row[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right_row[v] = load(right + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const float factor = left_order == Left::row_major ? left[i * left_stride] : left[i];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[i][v] += factor * right_row[v];
    }
    left += left_order == Left::row_major ? 1 : left_stride;
    right += right_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* place = result + i * result_stride + v * lanes;
      store(place, result_is == Result::added_to ? load(place) + sums[i][v] : sums[i][v]);
    }
  }
}

constexpr int tile_rows(int vectors) {
  return accumulators / vectors < 12 ? accumulators / vectors : 12;
}

template <Left left_order, Result result_is, int vectors, int rows = tile_rows(vectors)>
inline void multiply_rows(int count, int64_t inner, const float* left, int64_t left_stride,
                          const float* right, int64_t right_stride, float* result,
                          int64_t result_stride) {
  if (count == rows) {
    multiply_tile<left_order, result_is, rows, vectors>(inner, left, left_stride, right,
                                                        right_stride, result, result_stride);
  } else if constexpr (rows > 1) {
    multiply_rows<left_order, result_is, vectors, rows - 1>(count, inner, left, left_stride, right,
                                                            right_stride, result, result_stride);
  }
}

// One panel of 1 to panel_vectors vectors. Rows are split evenly: a last tile of one or two rows
// would leave most of the multipliers idle.
template <Left left_order, Result result_is, int vectors = panel_vectors>
inline void multiply_panel(int width, int64_t rows, int64_t inner, const float* left,
                           int64_t left_stride, const float* right, int64_t right_stride,
                           float* result, int64_t result_stride) {
  if (width != vectors) {
    if constexpr (vectors > 1) {
      multiply_panel<left_order, result_is, vectors - 1>(
          width, rows, inner, left, left_stride, right, right_stride, result, result_stride);
    }
    return;
  }
  const int64_t tiles = (rows + tile_rows(vectors) - 1) / tile_rows(vectors);
  const int64_t step = left_order == Left::row_major ? left_stride : 1;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = static_cast<int>(rows / tiles + (tile < rows % tiles));
    multiply_rows<left_order, result_is, vectors>(count, inner, left + row * step, left_stride,
                                                  right, right_stride, result + row * result_stride,
                                                  result_stride);
    row += count;
  }
}

// Longer sums are added up in halves: their rounding error grows with the number of terms, and
// twice as fast where products are rounded before they are added.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr int64_t longest_sum = 128;
#else
constexpr int64_t longest_sum = 16;
#endif

// Arithmetic on float32 factors, which are rows wherever the tensors lie as the products want them.
struct Float32 {
  // What a thread holds while its kernels run.
  struct Session {};

  template <Left order>
  struct LeftFactor {
    const float* data;
    int64_t stride;
  };

  // Right factor (inner, columns) in panels of panel_width columns.
  struct RightFactor {
    const float* data;
    int64_t row_stride;
    int64_t panel_stride;
  };

  // Rows (row_block, dim) as left factor.
  class LeftRows {
   public:
    LeftRows(Arena& arena, int64_t dim) : copy_(arena.take(row_block * row_stride(dim))) {}

    void pack(const Source& source, Range steps) { rows_ = source.rows(steps, copy_); }

    LeftFactor<Left::row_major> factor() const { return {rows_.data, rows_.stride}; }

   private:
    float* copy_;
    Rows rows_{};
  };

  // Rows (count, dim) as right factor, of the width dim.
  class RightRows {
   public:
    RightRows(Arena& arena, int64_t count, int64_t dim)
        : copy_(arena.take(count * row_stride(dim))) {}

    void pack(const Source& source, Range steps) { rows_ = source.rows(steps, copy_); }

    // From the step `first` after the first that was packed.
    RightFactor factor(int64_t first) const {
      return {rows_.data + first * rows_.stride, rows_.stride, panel_width};
    }

   private:
    float* copy_;
    Rows rows_{};
  };

  // The transpose of rows (count, dim) as right factor, of the width count.
  class RightColumns {
   public:
    RightColumns(Arena& arena, int64_t count, int64_t dim)
        : dim_(dim), panels_(arena.take(round_up(count, panel_width) * dim)) {}

    void pack(const Source& source, Range steps) {
      float* panel = panels_;
      for (int64_t first = steps.begin; first < steps.end; first += panel_width) {
        for (int v = 0; v < panel_vectors; ++v) {
          const Range here{first + v * lanes, smaller(first + (v + 1) * lanes, steps.end)};
          pack_vector(source, here, panel + v * lanes);
        }
        panel += dim_ * panel_width;
      }
    }

    // From the step `first` after the first that was packed, a multiple of panel_width.
    RightFactor factor(int64_t first) const {
      return {panels_ + first * dim_, panel_width, dim_ * panel_width};
    }

   private:
    // One vector of columns, one for each step.
    void pack_vector(const Source& source, Range steps, float* to) const {
      float copy[lanes * longest_row];
      const Rows rows = source.rows(steps, copy);
      for (int64_t k = 0; k < dim_; k += lanes) {
        Vector tile[lanes] = {};
        for (int64_t n = 0; n < steps.end - steps.begin; ++n) {
          tile[n] = load(rows.data + n * rows.stride + k);
        }
        transpose(tile);
        for (int64_t n = 0; n < smaller(lanes, dim_ - k); ++n) {
          store(to + (k + n) * panel_width, tile[n]);
        }
      }
    }

    int64_t dim_;
    float* panels_;
  };

  // A tile of weights as left factor; it is used where it stands.
  class Weights {
   public:
    explicit Weights(Arena&) {}

    void pack(Matrix tile, int64_t, int64_t) { tile_ = tile; }

    LeftFactor<Left::row_major> factor() const { return {tile_.data, tile_.stride}; }
    LeftFactor<Left::transposed> transposed() const { return {tile_.data, tile_.stride}; }

   private:
    Matrix tile_{};
  };

  // result (rows, columns) = or += left (rows, inner) right (inner, columns); columns are rounded
  // up to whole vectors, for which right and result must have room.
  template <Result result_is, Left order>
  static void multiply(int64_t rows, int64_t inner, int64_t columns, LeftFactor<order> left,
                       RightFactor right, Matrix result) {
    if (inner > longest_sum) {
      const int64_t half = inner / 2;
      multiply<result_is>(rows, half, columns, left, right, result);
      left.data += half * (order == Left::row_major ? 1 : left.stride);
      right.data += half * right.row_stride;
      multiply<Result::added_to>(rows, inner - half, columns, left, right, result);
      return;
    }
    int64_t vectors = (columns + lanes - 1) / lanes;
    for (; vectors > 0; vectors -= panel_vectors) {
      const int width = static_cast<int>(vectors < panel_vectors ? vectors : panel_vectors);
      multiply_panel<order, result_is>(width, rows, inner, left.data, left.stride, right.data,
                                       right.row_stride, result.data, result.stride);
      right.data += right.panel_stride;
      result.data += panel_width;
    }
  }
};

}  // namespace
}  // namespace mmer::cpu
