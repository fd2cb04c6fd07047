// Products in float32: packed factors, panel by panel.

#pragma once

#include "arena.h"
#include "register_tile.h"
#include "steps.h"

namespace mmer::cpu {
namespace {

// Longer sums are added up in halves: their rounding error grows with the number of terms, and
// twice as fast where products are rounded before they are added.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr int64_t longest_sum = 128;
#else
constexpr int64_t longest_sum = 16;
#endif

// result = left right where it is the first of some products, else result += left right
template <class Arithmetic, class LeftFactor, class RightFactor>
inline void multiply_onto(bool is_first, int64_t rows, int64_t inner, int64_t columns,
                          const LeftFactor& left, const RightFactor& right, Matrix result) {
  if (is_first) {
    Arithmetic::template multiply<Result::overwritten>(rows, inner, columns, left, right, result);
  } else {
    Arithmetic::template multiply<Result::added_to>(rows, inner, columns, left, right, result);
  }
}

// Arithmetic on float32 factors, which are rows wherever the tensors lie as the products want them.
struct Float32 {
  static constexpr int64_t row_unit = 1;

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

    void pack(const Source& source, Range steps) { rows_ = source.rows(steps, copy_, 1); }

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
      const Rows rows = source.rows(steps, copy, 1);
      const int64_t count = steps.end - steps.begin;
      for (int64_t k = 0; k < dim_; k += lanes) {
        if (is_square(count, k, dim_)) {
          pack_square<true>(rows, count, k, to);
        } else {
          pack_square<false>(rows, count, k, to);
        }
      }
    }

    template <bool whole>
    void pack_square(Rows rows, int64_t count, int64_t k, float* to) const {
      Vector square[lanes];
      load_square<whole>(rows, count, k, dim_, square);
      transpose(square);
#pragma GCC unroll 16
      for (int n = 0; n < lanes; ++n) {
        if (whole || k + n < dim_) store(to + (k + n) * panel_width, square[n]);
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

    // What `finish` makes of the tile.
    template <class Finish>
    void pack(Matrix tile, int64_t rows, int64_t columns, const Finish& finish) {
      finish_tile(tile, rows, columns, finish);
      tile_ = tile;
    }

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
    multiply_short(rows, inner, columns, left, right, Store<result_is>{result});
  }

  // tile = or += left right, and what `finish` makes of that as weights: in registers where the
  // product is one short sum.
  template <Result result_is, class Finish>
  static void multiply_into(int64_t rows, int64_t inner, int64_t columns,
                            LeftFactor<Left::row_major> left, RightFactor right, Matrix tile,
                            const Finish& finish, Weights& weights) {
    if (inner > longest_sum) {
      multiply<result_is>(rows, inner, columns, left, right, tile);
      weights.pack(tile, rows, columns, finish);
      return;
    }
    if constexpr (result_is == Result::added_to) {
      multiply_short(rows, inner, columns, left, right, AddBefore<Finish>{tile, finish});
    } else {
      multiply_short(rows, inner, columns, left, right, finish);
    }
    weights.pack(tile, rows, columns);
  }

 private:
  template <Left order, class Finish>
  static void multiply_short(int64_t rows, int64_t inner, int64_t columns, LeftFactor<order> left,
                             RightFactor right, const Finish& finish) {
    const int64_t vectors = (columns + lanes - 1) / lanes;
    for (int64_t v = 0; v < vectors; v += panel_vectors) {
      const int width = static_cast<int>(smaller(vectors - v, panel_vectors));
      multiply_panel<order>(width, rows, inner, left.data, left.stride, right.data,
                            right.row_stride, finish, v * lanes);
      right.data += right.panel_stride;
    }
  }
};

}  // namespace
}  // namespace mmer::cpu
