// Tiles of rows in shared memory, and their way from and to global memory.

#pragma once

#include "elements.h"
#include "problem.h"

namespace mmer::cuda {

// Rows of `columns` elements in pieces of 16 bytes. Piece p of a row stands where p XOR the number
// of the row's 128-byte line says: the eight rows that ldmatrix reads then lie in different banks.
template <class Element, int columns>
struct Tile {
  static constexpr int row_bytes = columns * Element::bytes;
  static constexpr int pieces = row_bytes / 16;
  static constexpr int piece_elements = 16 / Element::bytes;
  static constexpr int period = 8;  // rows so far apart have their pieces in the same order
  uint32_t address;

  MMER_DEVICE uint32_t piece(int row, int number) const {
    return address + row * row_bytes + ((number ^ turn(row)) << 4);
  }
  // From a piece to the same `rows` further down, less rows * row_bytes, which an instruction adds.
  static MMER_DEVICE uint32_t turned(uint32_t piece_address, int rows) {
    return piece_address ^ (turn(rows) << 4);
  }
  // The same piece `rows` further down, of a row whose number shares no bit with `rows`: where all
  // lanes go equally far, that is one instruction or two.
  static MMER_DEVICE uint32_t below(uint32_t piece_address, int rows) {
    return turned(piece_address, rows) + rows * row_bytes;
  }
  // From an even piece of a row to the one `pieces` further, an even number, or the same from odd
  // to odd: where all lanes go equally far, that is one instruction.
  static MMER_DEVICE uint32_t advance(uint32_t piece_address, int pieces) {
    return (piece_address ^ (pieces % 8 * 16)) + pieces / 8 * 128;
  }
  MMER_DEVICE uint32_t element(int row, int column) const {
    return piece(row, column / piece_elements) + column % piece_elements * Element::bytes;
  }

 private:
  static MMER_DEVICE int turn(int row) {
    constexpr int rows_a_line = pieces >= 8 ? 1 : 8 / pieces;
    constexpr int places = pieces >= 8 ? 8 : pieces;
    return row / rows_a_line & (places - 1);
  }
};

// Where the rows of one (batch, head) begin.
template <class Bits>
MMER_DEVICE const Bits* head_rows(const Rows& rows, int batch, int head) {
  return static_cast<const Bits*>(rows.data) + batch * rows.batch_stride + head * rows.head_stride;
}

// What all threads of a block need to find the rows of one (batch, head).
struct alignas(16) HeadSource {
  const void* data;
  int64_t time_stride;  // in elements

  HeadSource() = default;
  template <class Bits>
  static MMER_DEVICE HeadSource of(const Rows& rows, int batch, int head) {
    return {head_rows<Bits>(rows, batch, head), rows.time_stride};
  }
};

// Up to 16 bytes of a row that does not start on 16 bytes.
template <class Bits>
MMER_DEVICE uint4 gather(const Bits* source, int count) {
  constexpr int size = sizeof(Bits);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int n = 0; n < 16 / size; ++n) {
    if (n < count) words[n * size / 4] |= static_cast<uint32_t>(source[n]) << (n * size % 4 * 8);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The same without branches, which the compiler has far less to do with. It takes a register more.
template <class Bits>
MMER_DEVICE uint4 gather_words(const Bits* source, int count) {
  constexpr int of_word = 4 / sizeof(Bits);
  return make_uint4(load_global_word<0>(source, count), load_global_word<of_word>(source, count),
                    load_global_word<2 * of_word>(source, count),
                    load_global_word<3 * of_word>(source, count));
}

// Element `number` of 16 bytes.
template <class Element>
MMER_DEVICE typename Element::Bits element_of(uint4 words, int number) {
  const uint32_t parts[4] = {words.x, words.y, words.z, words.w};
  constexpr int size = Element::bytes;
  return static_cast<typename Element::Bits>(parts[number * size / 4] >> (number * size % 4 * 8));
}

// What a thread loads of the rows of one (batch, head): of every row_step-th row the same pieces.
// `threads` are those of the block, or the 32 of a warp that loads for itself.
template <class Element, int columns, int threads>
struct RowLoader {
  using Bits = typename Element::Bits;
  using RowTile = Tile<Element, columns>;
  static constexpr int pieces = RowTile::pieces, piece_elements = RowTile::piece_elements;
  static constexpr int row_step = threads > pieces ? threads / pieces : 1;
  static_assert(threads % pieces == 0 || pieces % threads == 0,
                "a thread keeps to its pieces of the rows");

  const Bits* first_gmem;  // the thread's first piece of the head's rows
  int64_t time_stride;
  int dim;
  int first_bytes;  // of that piece
  bool aligned;

  MMER_DEVICE RowLoader(const Rows& source, const HeadSource& head)
      : first_gmem(static_cast<const Bits*>(head.data) + first_row() * head.time_stride +
                   first_piece() * piece_elements),
        time_stride(head.time_stride),
        dim(source.dim),
        first_bytes(count_of(source.dim, first_piece()) * Element::bytes),
        aligned(source.aligned) {}
  MMER_DEVICE RowLoader(const Rows& source, int batch, int head)
      : RowLoader(source, HeadSource::of<Bits>(source, batch, head)) {}

  static MMER_DEVICE int first_row() { return threadIdx.x % threads / pieces; }
  static MMER_DEVICE int first_piece() { return threadIdx.x % threads % pieces; }
  static MMER_DEVICE int count_of(int dim, int piece) {
    return max(min(dim - piece * piece_elements, piece_elements), 0);
  }

  template <int further>
  MMER_DEVICE int bytes_of() const {
    if constexpr (further == 0) return first_bytes;
    return count_of(dim, first_piece() + further) * Element::bytes;
  }

  // Where the thread's first piece of a tile stands.
  static MMER_DEVICE uint32_t first_place(RowTile tile_smem) {
    return tile_smem.piece(first_row(), first_piece());
  }

  // How often the block's threads go along a row, and down a tile.
  static constexpr int turns = pieces > threads ? pieces / threads : 1;
  template <int rows>
  static constexpr int row_turns = rows > row_step ? rows / row_step : 1;

  // The thread's first piece of the rows from `first` on.
  MMER_DEVICE const Bits* source(int first) const { return first_gmem + first * time_stride; }

  // Starts to load rows that are all visible, and aligned, to `offset` bytes behind first_place.
  template <int rows, int offset>
  MMER_DEVICE void load_whole(uint32_t place, int first) const {
    const Bits* source_gmem = source(first);
    unrolled<row_turns<rows>>([&](auto n) {
      constexpr int below = decltype(n)::value * row_step;
      load_row<offset + below * RowTile::row_bytes>(RowTile::turned(place, below), source_gmem,
                                                    true);
      source_gmem += row_step * time_stride;
    });
  }

  // The same where only the first `count` of them are there: the others become zero.
  template <int rows, int offset>
  MMER_DEVICE void load_first(uint32_t place, int first, int count) const {
    const Bits* source_gmem = source(first);
    const int wanted = count - first_row();
    unrolled<row_turns<rows>>([&](auto n) {
      constexpr int below = decltype(n)::value * row_step;
      load_row<offset + below * RowTile::row_bytes>(RowTile::turned(place, below), source_gmem,
                                                    below < wanted);
      source_gmem += row_step * time_stride;
    });
  }

  // The same from a place of the thread's own, which is moved to the rows behind them.
  template <int rows, int offset>
  MMER_DEVICE void load_next(uint32_t place, const Bits*& source_gmem) const {
    unrolled<row_turns<rows>>([&](auto n) {
      constexpr int below = decltype(n)::value * row_step;
      if (rows >= row_step || first_row() < rows) {
        load_row<offset + below * RowTile::row_bytes>(RowTile::turned(place, below), source_gmem,
                                                      true);
      }
      // Kept, or the compiler would find the next rows from the first place again.
      source_gmem = kept(source_gmem + (rows < row_step ? rows : row_step) * time_stride);
    });
  }

  // Of one row: what is not wanted becomes zero.
  template <int offset>
  MMER_DEVICE void load_row(uint32_t place, const Bits* source_gmem, bool wanted) const {
    unrolled<turns>([&](auto turn) {
      constexpr int further = decltype(turn)::value * threads;  // pieces
      cp_async<offset + further * 16>(place, source_gmem + further * piece_elements,
                                      wanted ? bytes_of<further>() : 0);
    });
  }

  // The same of a row that need not be aligned.
  template <int offset>
  MMER_DEVICE void gather_row(uint32_t place, const Bits* source_gmem, bool wanted) const {
    if (aligned) return load_row<offset>(place, source_gmem, wanted);
#pragma unroll 1
    for (int turn = 0; turn < pieces; turn += threads) {
      const int count = count_of(dim, first_piece() + turn);
      store_shared(place + offset + turn * 16,
                   gather_words(source_gmem + turn * piece_elements, wanted ? count : 0));
    }
  }

  // Starts to load the rows from `first` on, whatever they are; those that are not visible become
  // zero.
  template <int rows, class Visible>
  MMER_DEVICE void load_by_row(RowTile tile_smem, int first, const Visible& visible) const {
    const Bits* source_gmem = source(first);
#pragma unroll 1
    for (int row = first_row(); row < rows; row += row_step) {
      gather_row<0>(tile_smem.piece(row, first_piece()), source_gmem, visible(first + row));
      source_gmem += row_step * time_stride;
    }
  }
};

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

// How a warp stores rows that it has in accumulators (16, columns), from `first_column` on: through
// a tile in shared memory, so that whole pieces of 16 bytes leave.
template <class Element, int tile_columns, int columns>
struct RowWriter {
  using Bits = typename Element::Bits;
  using RowTile = Tile<Element, tile_columns>;
  static constexpr int piece_elements = RowTile::piece_elements, pieces = columns / piece_elements;
  static constexpr int lanes_a_row = pieces < 32 ? pieces : 32, rows_a_turn = 32 / lanes_a_row;

  const Rows& target;
  // In a tile, where a lane puts its first pair of elements and finds its first piece.
  uint32_t pair_place, piece_place;
  int column;  // of that piece
  bool whole;  // every piece of a row is
  Bits* piece_gmem;

  MMER_DEVICE RowWriter(const Rows& target, const HeadSource& head, int first_column)
      : target(target),
        pair_place(kept(RowTile{0}.element(lane() / 4, first_column + lane() % 4 * 2))),
        column(first_column + lane() % lanes_a_row * piece_elements),
        whole(target.aligned && first_column + columns <= target.dim) {
    const int row = lane() / lanes_a_row;
    piece_place = kept(RowTile{0}.element(row, column));
    piece_gmem =
        kept(static_cast<Bits*>(const_cast<void*>(head.data)) + row * head.time_stride + column);
  }
  MMER_DEVICE RowWriter(const Rows& target, int batch, int head, int first_column)
      : RowWriter(target, HeadSource::of<Bits>(target, batch, head), first_column) {}

  // `value(n, e)` is what accumulator [n][e] of `strips` becomes; those of a strip follow those of
  // the one above it. `rows_smem`: the first of the warp's rows of the tile, a multiple of 8.
  template <int strips = 1, class Value>
  MMER_DEVICE void store(uint32_t rows_smem, int first, int time, const Value& value) const {
    constexpr int rows = strips * 16;
    __syncwarp();
    const uint32_t pair_smem = kept(rows_smem + pair_place);
    unrolled<columns / 8>([&](auto n) {
      const uint32_t place = RowTile::advance(pair_smem, n * 8 / piece_elements);
      unrolled<strips>([&](auto m) {
        constexpr int below = decltype(m)::value * 16 * RowTile::row_bytes;
        const int number = m * (columns / 8) + n;
        Element::template store_pair<below>(place, value(number, 0), value(number, 1));
        Element::template store_pair<below + RowTile::period * RowTile::row_bytes>(
            place, value(number, 2), value(number, 3));
      });
    });
    __syncwarp();
#pragma unroll
    for (int part = 0; part < pieces; part += 32) {
      const uint32_t piece_smem = kept(rows_smem + piece_place + part * 16);
      Bits* out_gmem = piece_gmem + first * target.time_stride + part * piece_elements;
      if (whole && first + rows <= time) {
#pragma unroll
        for (int below = 0; below < rows; below += rows_a_turn) {
          store_global(out_gmem, load_shared(RowTile::below(piece_smem, below)));
          out_gmem += rows_a_turn * target.time_stride;
        }
      } else {
        const int count = min(target.dim - column - part * piece_elements, piece_elements);
        const int rows_left = time - first - lane() / lanes_a_row;
#pragma unroll 1
        for (int below = 0; below < min(rows, rows_left); below += rows_a_turn) {
          store_piece(out_gmem, RowTile::below(piece_smem, below), count);
          out_gmem += rows_a_turn * target.time_stride;
        }
      }
    }
  }

 private:
  static MMER_DEVICE int lane() { return threadIdx.x % 32; }
  MMER_DEVICE void store_piece(Bits* out_gmem, uint32_t source, int count) const {
    if (target.aligned && count == piece_elements) {
      store_global(out_gmem, load_shared(source));
      return;
    }
#pragma unroll 1
    for (int n = 0; n < count; ++n) out_gmem[n] = Element::load(source + n * Element::bytes);
  }
};

// The same in float32, for gradients that are summed over the batch.
template <int columns, int strips, class Value>
MMER_DEVICE void store_wide_rows(const Rows& target, int batch, int head, int first, int time,
                                 int first_column, const Value& value) {
  constexpr int count = columns / 8;  // accumulators of a strip
  // Kept, or a loop around this would find all columns in advance.
  const int lane = kept(threadIdx.x) % 32;
  float* target_gmem =
      static_cast<float*>(target.data) + batch * target.batch_stride + head * target.head_stride;
#pragma unroll
  for (int n = 0; n < strips * count; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = first + n / count * 16 + lane / 4 + e / 2 * 8;
      const int column = first_column + n % count * 8 + lane % 4 * 2 + e % 2;
      if (row < time && column < target.dim) {
        target_gmem[row * target.time_stride + column] = value(n, e);
      }
    }
  }
}

// Both, of rows [tile_row, tile_row + 16 strips) of a tile that the warp may overwrite.
template <int columns, int strips = 1, class Element, int tile_columns, class Value>
MMER_DEVICE void store_warp_rows(Tile<Element, tile_columns> staging_smem, int tile_row,
                                 const Rows& target, int batch, int head, int first, int time,
                                 int first_column, const Value& value) {
  if (target.wide) {
    store_wide_rows<columns, strips>(target, batch, head, first, time, first_column, value);
    return;
  }
  const RowWriter<Element, tile_columns, columns> writer(target, batch, head, first_column);
  writer.template store<strips>(
      staging_smem.address +
          tile_row * RowWriter<Element, tile_columns, columns>::RowTile::row_bytes,
      first, time, value);
}

}  // namespace mmer::cuda
