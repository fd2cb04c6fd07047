// Tiles of 16-bit elements in shared memory, and their way from and to global memory.

#pragma once

#include "instructions.h"
#include "problem.h"

namespace mmer::cuda {

// Rows of `columns` elements in pieces of 16 bytes. Piece p of a row stands where p XOR the number
// of the row's 128-byte line says: the eight rows that ldmatrix reads then lie in different banks.
template <int columns>
struct Tile {
  static constexpr int pieces = columns / 8;
  static constexpr int row_bytes = columns * 2;
  uint32_t address;

  MMER_DEVICE uint32_t piece(int row, int number) const {
    constexpr int rows_a_line = pieces >= 8 ? 1 : 8 / pieces;
    constexpr int places = pieces >= 8 ? 8 : pieces;
    return address + row * row_bytes + ((number ^ (row / rows_a_line & (places - 1))) << 4);
  }
};

// Where the rows of one (batch, head) begin.
MMER_DEVICE const uint16_t* head_rows(const Rows& rows, int batch, int head) {
  return static_cast<const uint16_t*>(rows.data) + batch * rows.batch_stride +
         head * rows.head_stride;
}

// Up to eight elements of a row that does not start on 16 bytes.
MMER_DEVICE uint4 gather(const uint16_t* source, int count) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (n < count) words[n / 2] |= static_cast<uint32_t>(source[n]) << (n % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Starts to load the rows from `first` on; those that are not visible become zero, so that nothing
// that stands in padding, NaN included, takes part in a product.
template <int rows, int columns, int threads, class Visible>
MMER_DEVICE void load_rows(Tile<columns> tile_smem, const Rows& source, int batch, int head,
                           int first, const Visible& visible) {
  constexpr int pieces = Tile<columns>::pieces;
  constexpr int row_step = threads / pieces;
  static_assert(threads % pieces == 0, "a thread keeps to its piece of the rows");
  const int piece = threadIdx.x % pieces, first_row = threadIdx.x / pieces;
  const int count = max(min(source.dim - piece * 8, 8), 0);
  const uint16_t* source_gmem =
      head_rows(source, batch, head) + (first + first_row) * source.time_stride + piece * 8;
  const int64_t stride = row_step * source.time_stride;
  if (source.aligned) {
#pragma unroll
    for (int begin = 0; begin < rows; begin += row_step, source_gmem += stride) {
      const int row = begin + first_row;
      if (rows % row_step != 0 && row >= rows) break;
      cp_async(tile_smem.piece(row, piece), source_gmem, visible(first + row) ? count * 2 : 0);
    }
  } else {
#pragma unroll 1
    for (int row = first_row; row < rows; row += row_step, source_gmem += stride) {
      store_shared(tile_smem.piece(row, piece),
                   gather(source_gmem, visible(first + row) ? count : 0));
    }
  }
}

// Which of a sequence's steps are real.
struct Visibility {
  const uint8_t* mask_gmem;  // nullptr: all
  int64_t stride;
  int time;

  MMER_DEVICE Visibility(const Steps& mask, int batch, int time)
      : mask_gmem(static_cast<const uint8_t*>(mask.data)), stride(mask.time_stride), time(time) {
    if (mask_gmem) mask_gmem += batch * mask.batch_stride;
  }
  MMER_DEVICE bool operator()(int step) const {
    return step < time && (!mask_gmem || mask_gmem[step * stride]);
  }
};

// Stores the 16 rows of a warp's accumulator, (16, columns), through its own rows of a tile in
// shared memory, from `first_column` on, so that whole pieces of 16 bytes leave. `value(n, e)` is
// what accumulator [n][e] becomes.
template <class Element, int columns, int tile_columns, class Value>
MMER_DEVICE void store_warp_rows(Tile<tile_columns> staging_smem, int tile_row, const Rows& target,
                                 int batch, int head, int first, int time, int first_column,
                                 const Value& value) {
  const int lane = threadIdx.x % 32;
  if (target.wide) {
    float* target_gmem =
        static_cast<float*>(target.data) + batch * target.batch_stride + head * target.head_stride;
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = first + lane / 4 + e / 2 * 8;
        const int column = first_column + n * 8 + lane % 4 * 2 + e % 2;
        if (row < time && column < target.dim) {
          target_gmem[row * target.time_stride + column] = value(n, e);
        }
      }
    }
    return;
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_shared(
          staging_smem.piece(tile_row + half * 8 + lane / 4, first_column / 8 + n) + lane % 4 * 4,
          Element::pack(value(n, 2 * half), value(n, 2 * half + 1)));
    }
  }
  __syncwarp();
  uint16_t* target_gmem = const_cast<uint16_t*>(head_rows(target, batch, head));
  constexpr int pieces = columns / 8;
#pragma unroll
  for (int begin = 0; begin < 16 * pieces; begin += 32) {
    const int row = (begin + lane) / pieces, piece = (begin + lane) % pieces;
    const int column = first_column + piece * 8;
    if (first + row >= time || column >= target.dim) continue;
    const uint4 words = load_shared(staging_smem.piece(tile_row + row, first_column / 8 + piece));
    uint16_t* piece_gmem = target_gmem + (first + row) * target.time_stride + column;
    if (target.aligned && column + 8 <= target.dim) {
      store_global(piece_gmem, words);
    } else {
      const uint32_t parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (column + n < target.dim) {
          piece_gmem[n] = static_cast<uint16_t>(parts[n / 2] >> (n % 2 * 16));
        }
      }
    }
  }
}

}  // namespace mmer::cuda
