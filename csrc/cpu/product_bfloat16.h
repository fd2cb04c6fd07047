// Products of bfloat16 factors, added up in float32, by the tiles of AMX or by the bfloat16
// instructions of AVX-512. Only units whose instruction set has one of them include this.

#pragma once

#if defined(__AMX_BF16__)
#include "multiply_amx.h"
#else
#include "multiply_avx512_bf16.h"
#endif

namespace mmer::cpu {
namespace {

// The halves of a vector as pairs, the lower half's elements in the pairs' low halves.
__attribute__((always_inline)) inline __m512i pair_halves(__m512i both) {
  const __m512i interleaved =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleaved, both);
}

// bfloat16 of two rows, as pairs, the first row's in the low halves.
__attribute__((always_inline)) inline __m512i pair_rows(Vector first, Vector second) {
  return pair_halves(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// The same of 16 elements of two rows.
inline __m512i pair_elements(const uint16_t* first, const uint16_t* second) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  return pair_halves(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

inline void store_bfloat16(uint16_t* to, Vector x) {
  const __m256bh rounded = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &rounded, sizeof rounded);
}

inline void store_pairs(uint32_t* to, __m512i pairs) {
  _mm512_storeu_si512(to, pairs);
}

// The tensor's own rows, where they are bfloat16 and contiguous and none is padded; else null.
inline const uint16_t* bfloat16_in_place(const Source& source, Range steps) {
  const TensorView& tensor = source.tensor;
  if (tensor.type != ElementType::bfloat16 || tensor.strides[3] != 1) return nullptr;
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    if (source.is_padded(step)) return nullptr;
  }
  return static_cast<const uint16_t*>(tensor.data) +
         element_offset(tensor, source.batch, source.head, steps.begin);
}

// to (count, stride) = rows of the source as bfloat16, with zeros up to inner_unit.
inline void pack_bfloat16(const Source& source, Range steps, int64_t stride, uint16_t* to) {
  const int64_t width = round_up(source.dim, inner_unit);
  float row[longest_row];
  for (int64_t step = steps.begin; step < steps.end; ++step, to += stride) {
    if (const uint16_t* from = bfloat16_in_place(source, {step, step + 1})) {
      std::memcpy(to, from, 2 * source.dim);
      std::memset(to + source.dim, 0, 2 * (width - source.dim));
      continue;
    }
    source.read(step, width, row);
    for (int64_t k = 0; k < width; k += lanes) store_bfloat16(to + k, load(row + k));
  }
}

// Arithmetic on bfloat16 factors. It has the same parts as Float32, which describes them; weights
// are rounded once for each of the two products that they are the left factor of.
struct Bfloat16 {
  static constexpr int64_t row_unit = tile_side;

  using Session = TileConfiguration;

  struct LeftFactor {
    const uint16_t* data;
    int64_t stride;
  };

  struct RightFactor {
    const uint32_t* data;
    int64_t row_stride;
    int64_t panel_stride;
  };

  class LeftRows {
   public:
    LeftRows(Arena& arena, int64_t dim)
        : stride_(left_stride(dim)), data_(arena.take<uint16_t>(row_block * stride_)) {}

    void pack(const Source& source, Range steps) {
      const uint16_t* in_place = bfloat16_in_place(source, steps);
      const bool whole_tiles = (steps.end - steps.begin) % tile_side == 0;
      if (in_place != nullptr && whole_tiles && source.dim % inner_unit == 0) {
        factor_ = {in_place, source.tensor.strides[2]};
      } else {
        pack_bfloat16(source, steps, stride_, data_);
        factor_ = {data_, stride_};
      }
    }

    LeftFactor factor() const { return factor_; }

   private:
    int64_t stride_;
    uint16_t* data_;
    LeftFactor factor_{};
  };

  class RightRows {
   public:
    RightRows(Arena& arena, int64_t count, int64_t dim)
        : stride_(row_stride(dim)),
          data_(arena.take<uint32_t>(round_up(count, inner_unit) / 2 * stride_)) {}

    void pack(const Source& source, Range steps) {
      const int64_t width = round_up(source.dim, lanes), count = steps.end - steps.begin;
      const uint16_t* in_place = bfloat16_in_place(source, steps);
      int64_t n = 0;
      if (in_place != nullptr && source.dim % lanes == 0) {
        const int64_t from_stride = source.tensor.strides[2];
        for (; n + 2 <= count; n += 2) {
          const uint16_t* from = in_place + n * from_stride;
          for (int64_t k = 0; k < width; k += lanes) {
            store_pairs(data_ + n / 2 * stride_ + k,
                        pair_elements(from + k, from + from_stride + k));
          }
        }
      }
      uint16_t rows[2][longest_row];
      for (; n < round_up(count, inner_unit); n += 2) {
        for (int64_t other = 0; other < 2; ++other) {
          const int64_t step = steps.begin + n + other;
          if (n + other < count) {
            pack_bfloat16(source, {step, step + 1}, 0, rows[other]);
          } else {
            std::memset(rows[other], 0, sizeof rows[other]);
          }
        }
        for (int64_t k = 0; k < width; k += lanes) {
          store_pairs(data_ + n / 2 * stride_ + k, pair_elements(rows[0] + k, rows[1] + k));
        }
      }
    }

    // From an even step on.
    RightFactor factor(int64_t first) const {
      return {data_ + first / 2 * stride_, stride_, panel_width};
    }

   private:
    int64_t stride_;
    uint32_t* data_;
  };

  class RightColumns {
   public:
    RightColumns(Arena& arena, int64_t count, int64_t dim)
        : pairs_(round_up(dim, inner_unit) / 2),
          panels_(arena.take<uint32_t>(round_up(count, panel_width) * pairs_)) {}

    void pack(const Source& source, Range steps) {
      uint32_t* panel = panels_;
      for (int64_t first = steps.begin; first < steps.end; first += panel_width) {
        for (int v = 0; v < panel_vectors; ++v) {
          const int64_t begin = smaller(first + v * lanes, steps.end);
          pack_vector(source, {begin, smaller(begin + lanes, steps.end)}, panel + v * lanes);
        }
        panel += pairs_ * panel_width;
      }
    }

    RightFactor factor(int64_t first) const {
      return {panels_ + first * pairs_, panel_width, pairs_ * panel_width};
    }

   private:
    // One vector of columns, one for each step.
    void pack_vector(const Source& source, Range steps, uint32_t* to) const {
      uint16_t rows[lanes * longest_row];
      pack_bfloat16(source, steps, longest_row, rows);
      for (int64_t k = 0; k < pairs_; k += lanes) {
        Vector tile[lanes] = {};
        for (int64_t n = 0; n < steps.end - steps.begin; ++n) {
          std::memcpy(&tile[n], rows + n * longest_row + 2 * k, sizeof tile[n]);
        }
        transpose(tile);
        for (int64_t n = 0; n < lanes; ++n) {
          store(reinterpret_cast<float*>(to + (k + n) * panel_width), tile[n]);
        }
      }
    }

    int64_t pairs_;
    uint32_t* panels_;
  };

  class Weights {
   public:
    explicit Weights(Arena& arena)
        : rows_(arena.take<uint16_t>(row_block * stride)),
          columns_(arena.take<uint16_t>(column_block * transposed_stride)) {}

    // Rounds the tile; rows and columns beyond it are 0 up to whole tiles.
    void pack(Matrix tile, int64_t rows, int64_t columns) {
      pack(tile, rows, columns, Unchanged{});
    }

    // Rounds what `finish` makes of the tile, which itself stays as it is.
    template <class Finish>
    void pack(Matrix tile, int64_t rows, int64_t columns, const Finish& finish) {
      for (int64_t row = 0; row < rows; row += inner_unit) {
        const int64_t count = smaller(rows - row, inner_unit);
        for (int64_t column = 0; column < columns; column += lanes) {
          pack_square(tile, row, count, column, finish);
        }
        if (round_up(columns, lanes) % inner_unit == 0) continue;
        for (int64_t n = row; n < row + count; ++n) {
          std::memset(rows_ + n * stride + round_up(columns, lanes), 0, 2 * lanes);
        }
      }
    }

    LeftFactor factor() const { return {rows_, stride}; }
    LeftFactor transposed() const { return {columns_, transposed_stride}; }

   private:
    static constexpr int64_t stride = column_block + 32;
    static constexpr int64_t transposed_stride = row_block + 32;

    struct Unchanged {
      template <int rows, int vectors>
      void apply(Vector (&)[rows][vectors], int64_t, int64_t) const {}
    };

    // 32 rows of 16 columns, both ways.
    template <class Finish>
    void pack_square(Matrix tile, int64_t row, int64_t count, int64_t column,
                     const Finish& finish) {
      Vector pairs[lanes] = {};
      int64_t n = 0;
      for (; n + 4 <= count; n += 4) pack_rows<4>(tile, row, n, column, finish, pairs);
      for (; n + 2 <= count; n += 2) pack_rows<2>(tile, row, n, column, finish, pairs);
      if (n < count) pack_rows<1>(tile, row, n, column, finish, pairs);
      transpose(pairs);
      for (int64_t j = 0; j < lanes; ++j) {
        std::memcpy(columns_ + (column + j) * transposed_stride + row, &pairs[j], sizeof pairs[j]);
      }
    }

    template <int count, class Finish>
    __attribute__((always_inline)) void pack_rows(Matrix tile, int64_t row, int64_t first,
                                                  int64_t column, const Finish& finish,
                                                  Vector (&pairs)[lanes]) {
      Vector x[count][1];
      for (int i = 0; i < count; ++i) {
        x[i][0] = load(tile.data + (row + first + i) * tile.stride + column);
      }
      finish.apply(x, row + first, column);
      for (int i = 0; i < count; i += 2) {
        uint16_t* to = rows_ + (row + first + i) * stride + column;
        store_bfloat16(to, x[i][0]);
        if constexpr (count > 1) store_bfloat16(to + stride, x[i + 1][0]);
        const Vector second = count > 1 ? x[(i + 1) % count][0] : Vector{};
        pairs[(first + i) / 2] = reinterpret_cast<Vector>(pair_rows(x[i][0], second));
      }
    }

    uint16_t* rows_;
    uint16_t* columns_;
  };

  // result = or += left right, in whole tiles: result and left must have room for rows rounded up
  // to tile_side.
  template <Result result_is>
  static void multiply(int64_t rows, int64_t inner, int64_t columns, LeftFactor left,
                       RightFactor right, Matrix result) {
    int64_t vectors = (columns + lanes - 1) / lanes;
    for (; vectors > 0; vectors -= panel_vectors) {
      multiply_panel<result_is>(
          rows, round_up(inner, inner_unit), vectors < panel_vectors ? vectors : panel_vectors,
          left.data, left.stride, right.data, right.row_stride, result.data, result.stride);
      right.data += right.panel_stride;
      result.data += panel_width;
    }
  }

  template <Result result_is, class Finish>
  static void multiply_into(int64_t rows, int64_t inner, int64_t columns, LeftFactor left,
                            RightFactor right, Matrix tile, const Finish& finish,
                            Weights& weights) {
    multiply<result_is>(rows, inner, columns, left, right, tile);
    weights.pack(tile, rows, columns, finish);
  }

 private:
  // Whole tiles and no power of two.
  static int64_t left_stride(int64_t dim) { return round_up(dim, inner_unit) + 32; }
};

}  // namespace
}  // namespace mmer::cpu
