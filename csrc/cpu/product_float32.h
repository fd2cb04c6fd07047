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

// What becomes of the sums of a register tile: they are written or added to the result.
template <Result result_is>
struct Store {
  Matrix result;

  template <int rows, int vectors>
  void prepare(int64_t row, int64_t column) const {
    if constexpr (result_is == Result::added_to) {
      for (int i = 0; i < rows; ++i) {
        const float* place = result.data + (row + i) * result.stride + column;
        for (int v = 0; v < vectors; ++v) __builtin_prefetch(place + v * lanes, 1);
      }
    }
  }

  template <int rows, int vectors>
  void finish(Vector (&sums)[rows][vectors], int64_t row, int64_t column) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        float* place = result.data + (row + i) * result.stride + column + v * lanes;
        store(place, result_is == Result::added_to ? load(place) + sums[i][v] : sums[i][v]);
      }
    }
  }
};

// The sums are added to what stands in the tile, before they are finished.
template <class Finish>
struct AddBefore {
  Matrix tile;
  Finish next;

  template <int rows, int vectors>
  void prepare(int64_t, int64_t) const {}

  template <int rows, int vectors>
  __attribute__((always_inline)) void finish(Vector (&sums)[rows][vectors], int64_t row,
                                             int64_t column) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        sums[i][v] += load(tile.data + (row + i) * tile.stride + column + v * lanes);
      }
    }
    next.finish(sums, row, column);
  }
};

// sums (rows, vectors * lanes) = left (rows, inner) right (inner, vectors * lanes), in registers
template <Left left_order, int rows, int vectors, class Finish>
__attribute__((noinline)) void multiply_tile(int64_t inner, const float* __restrict left,
                                             int64_t left_stride, const float* __restrict right,
                                             int64_t right_stride, const Finish& finish,
                                             int64_t row, int64_t column) {
  // A copy stays in registers; what lies in memory would be read again after every store.
  const Finish own = finish;
  own.template prepare<rows, vectors>(row, column);
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
  own.template finish<rows, vectors>(sums, row, column);
}

constexpr int tile_rows(int vectors) {
  return accumulators / vectors < 12 ? accumulators / vectors : 12;
}

template <Left left_order, int vectors, class Finish, int rows = tile_rows(vectors)>
inline void multiply_rows(int count, int64_t inner, const float* left, int64_t left_stride,
                          const float* right, int64_t right_stride, const Finish& finish,
                          int64_t row, int64_t column) {
  if (count == rows) {
    multiply_tile<left_order, rows, vectors>(inner, left, left_stride, right, right_stride, finish,
                                             row, column);
  } else if constexpr (rows > 1) {
    multiply_rows<left_order, vectors, Finish, rows - 1>(count, inner, left, left_stride, right,
                                                         right_stride, finish, row, column);
  }
}

// One panel of 1 to panel_vectors vectors. Rows are split evenly: a last tile of one or two rows
// would leave most of the multipliers idle.
template <Left left_order, class Finish, int vectors = panel_vectors>
inline void multiply_panel(int width, int64_t rows, int64_t inner, const float* left,
                           int64_t left_stride, const float* right, int64_t right_stride,
                           const Finish& finish, int64_t column) {
  if (width != vectors) {
    if constexpr (vectors > 1) {
      multiply_panel<left_order, Finish, vectors - 1>(width, rows, inner, left, left_stride, right,
                                                      right_stride, finish, column);
    }
    return;
  }
  const int64_t tiles = (rows + tile_rows(vectors) - 1) / tile_rows(vectors);
  const int64_t step = left_order == Left::row_major ? left_stride : 1;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = static_cast<int>(rows / tiles + (tile < rows % tiles));
    multiply_rows<left_order, vectors>(count, inner, left + row * step, left_stride, right,
                                       right_stride, finish, row, column);
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

template <int rows, class Finish>
inline void finish_rows(Matrix tile, int64_t row, int64_t columns, const Finish& finish) {
  for (int64_t column = 0; column < columns; column += lanes) {
    Vector sums[rows][1];
    for (int i = 0; i < rows; ++i) sums[i][0] = load(tile.data + (row + i) * tile.stride + column);
    finish.template finish<rows, 1>(sums, row, column);
  }
}

// Applies `finish` to a tile that is in memory.
template <class Finish>
inline void finish_tile(Matrix tile, int64_t rows, int64_t columns, const Finish& finish) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) finish_rows<4>(tile, row, columns, finish);
  for (; row < rows; ++row) finish_rows<1>(tile, row, columns, finish);
}

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
