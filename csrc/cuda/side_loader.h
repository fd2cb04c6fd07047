// What a kernel reads of a sequence, tile by tile: what it is compared by, and of each step the
// value, the gradient of the output, or both.

#pragma once

#include <type_traits>

#include "tile.h"
#include "visible.h"

namespace mmer::cuda {

MMER_DEVICE const Rows& compared(const Side& side) {
  return side.x;
}
MMER_DEVICE const Rows& compared(const Segment& segment) {
  return segment.key;
}
MMER_DEVICE const Rows& compared(const Direction& direction) {
  return direction.query;
}

// The state of a query, (log-sum-exp, correction); infinite and 0 beyond the end.
MMER_DEVICE float2 state_of(const Side& side, int batch_head, int step) {
  if (step >= side.time) return make_float2(infinity, 0.0f);
  const float2* state_gmem = reinterpret_cast<const float2*>(side.state);
  return state_gmem[static_cast<int64_t>(batch_head) * side.time + step];
}

// Which steps are real, and log2 of what they stand for; `extras`: a step may be a summary.
template <bool extras>
struct Weighting {
  Visibility visible;
  const float* log_counts_gmem;

  template <class Source>
  MMER_DEVICE Weighting(const Source& source, int batch)
      : visible(source.mask, batch, source.time), log_counts_gmem(nullptr) {
    if constexpr (extras) {
      if (source.log_counts) log_counts_gmem = source.log_counts + int64_t{batch} * source.time;
    }
  }
  MMER_DEVICE bool all_real() const { return !visible.mask_gmem & !(extras && log_counts_gmem); }
  // 0 for a token, -inf if it is padded.
  MMER_DEVICE float operator()(int step) const {
    if (!visible(step)) return -infinity;
    return extras && log_counts_gmem ? log_counts_gmem[step] : 0.0f;
  }
  MMER_DEVICE bool is_real(int step) const {
    return visible(step) && !(extras && log_counts_gmem && log_counts_gmem[step] == -infinity);
  }
};

// Where the rows of `count` tensors begin, rows_of(number): a thread finds each, for all of the
// block.
template <class Element, int count, class RowsOf>
MMER_DEVICE void find_sources(HeadSource* sources_smem, int batch, int head,
                              const RowsOf& rows_of) {
  if (threadIdx.x >= count) return;
  const Rows& rows = rows_of(static_cast<int>(threadIdx.x));
  sources_smem[threadIdx.x] = HeadSource::of<typename Element::Bits>(rows, batch, head);
}

// Tiles of x, then of the values and of the gradients of the output where they are wanted, each
// `distance` bytes behind the one before. Rows that are not seen become zero, so that nothing that
// stands in padding, NaN included, takes part in a product.
template <class Source, class Element, int columns, int threads, bool extras, bool values,
          bool grad_outs>
struct SideLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  using Bits = typename Element::Bits;
  const Source& side;
  int batch_head;
  Weighting<extras> weighting;
  Loader x, value, grad_out;
  uint32_t thread_place;
  bool plain;

  // What a thread keeps of a side takes too many registers for some kernels: what is the same for
  // all of a block waits in shared memory, of each side its tensors in this order (find_sources).
  static constexpr int tensors = 1 + values + grad_outs;
  static MMER_DEVICE const Rows& tensor(const Source& side, int number) {
    if constexpr (values) {
      if (number == 1) return side.value;
    }
    if constexpr (grad_outs) {
      if (number == 1 + values) return side.grad_out;
    }
    return compared(side);
  }
  MMER_DEVICE SideLoader(const Source& side, int batch, int batch_head,
                         const HeadSource* sources_smem, uint32_t thread_place, bool plain)
      : side(side),
        batch_head(batch_head),
        weighting(side, batch),
        x(compared(side), sources_smem[0]),
        value(tensor(side, values), sources_smem[values]),
        grad_out(tensor(side, grad_outs * (1 + values)), sources_smem[grad_outs * (1 + values)]),
        thread_place(thread_place),
        plain(plain) {}

  // Whether every row is aligned and nothing hides one but the end of a sequence.
  static MMER_DEVICE bool is_plain(const Source& side, int batch, bool all_see) {
    bool plain = Weighting<extras>(side, batch).all_real() & (all_see || !grad_outs);
#pragma unroll
    for (int number = 0; number < tensors; ++number) {
      plain &= static_cast<bool>(tensor(side, number).aligned);
    }
    return plain;
  }

  // Keeps what a loop needs, as `kept` does.
  MMER_DEVICE void keep() {
    x.first_bytes = kept(x.first_bytes);
    value.first_bytes = kept(value.first_bytes);
    grad_out.first_bytes = kept(grad_out.first_bytes);
  }

  // To the rows `steps` further.
  MMER_DEVICE void move(int steps) {
    x.first_gmem += steps * x.time_stride;
    if constexpr (values) value.first_gmem += steps * value.time_stride;
    if constexpr (grad_outs) grad_out.first_gmem += steps * grad_out.time_stride;
  }

  // Starts to load the tiles of the steps from `first` on.
  template <int rows, int distance>
  MMER_DEVICE void load(HeadTile x_smem, int first) const {
    if (!is_whole<rows>(first)) return load_by_row<rows, distance>(x_smem, first);
    if (rows < Loader::row_step && Loader::first_row() >= rows) return;
    const uint32_t place = x_smem.address + thread_place;
    x.template load_whole<rows, 0>(place, first);
    if constexpr (values) value.template load_whole<rows, distance>(place, first);
    if constexpr (grad_outs) {
      grad_out.template load_whole<rows, (1 + values) * distance>(place, first);
    }
  }

  // The same of a side that is plain: of few tiles, where PlainTiles does not pay.
  template <int rows, int distance>
  MMER_DEVICE void load_plain(HeadTile x_smem, int first) const {
    if (rows < Loader::row_step && Loader::first_row() >= rows) return;
    const uint32_t place = x_smem.address + thread_place;
    const int count = side.time - first;
    x.template load_first<rows, 0>(place, first, count);
    if constexpr (values) value.template load_first<rows, distance>(place, first, count);
    if constexpr (grad_outs) {
      grad_out.template load_first<rows, (1 + values) * distance>(place, first, count);
    }
  }

  // The same of the rows that the loader has moved to, and moves on: where a loop goes from tile to
  // tile, that takes less than to find each from the first row.
  template <int rows, int distance>
  MMER_DEVICE void load_next(HeadTile x_smem, int first) {
    if (!is_whole<rows>(first)) {
      load_by_row<rows, distance>(x_smem, first, 0);
      return move(rows);
    }
    const uint32_t place = x_smem.address + thread_place;
    x.template load_next<rows, 0>(place, x.first_gmem);
    if constexpr (values) value.template load_next<rows, distance>(place, value.first_gmem);
    if constexpr (grad_outs) {
      grad_out.template load_next<rows, (1 + values) * distance>(place, grad_out.first_gmem);
    }
  }

  // The same of any rows.
  template <int rows, int distance>
  MMER_DEVICE void load_by_row(HeadTile x_smem, int first) const {
    load_by_row<rows, distance>(x_smem, first, first);
  }
  template <int rows, int distance>
  MMER_DEVICE void load_by_row(HeadTile x_smem, int first, int from) const {
    if (rows < Loader::row_step && Loader::first_row() >= rows) return;
    if (x.aligned && (!values || value.aligned) && (!grad_outs || grad_out.aligned)) {
      copy_seen<rows, distance>(x_smem, first, from);
    } else {
      gather_seen<rows, distance>(x_smem, first, from);
    }
  }

 private:
  template <int rows>
  MMER_DEVICE bool is_whole(int first) const {
    return plain && first + rows <= side.time;
  }
  MMER_DEVICE bool sees_a_key(int step) const {
    if constexpr (grad_outs) return state_of(side, batch_head, step).x < infinity;
    return false;
  }

  // A few rows at a time, so that what is asked of each is on its way together.
  template <int rows, int distance>
  MMER_DEVICE void copy_seen(HeadTile x_smem, int first, int from) const {
    constexpr int row_step = Loader::row_step, turns = Loader::template row_turns<rows>;
    constexpr int together = turns < 4 ? turns : 4;
    const Bits *x_row = x.source(from), *value_row = value.source(from),
               *grad_out_row = grad_out.source(from);
#pragma unroll 1
    for (int begin = 0; begin < rows; begin += together * row_step) {
      const uint32_t place = HeadTile::below(x_smem.address + thread_place, begin);
      const int step = first + begin + Loader::first_row();
      bool real[together], sees_key[together];
#pragma unroll
      for (int n = 0; n < together; ++n) {
        real[n] = weighting.is_real(step + n * row_step);
        sees_key[n] = sees_a_key(step + n * row_step);
      }
      unrolled<together>([&](auto n) {
        constexpr int below = decltype(n)::value * row_step;
        constexpr int offset = below * HeadTile::row_bytes;
        const uint32_t turned = HeadTile::turned(place, below);
        x.template load_row<offset>(turned, x_row, real[n]);
        x_row += row_step * x.time_stride;
        if constexpr (values) {
          value.template load_row<distance + offset>(turned, value_row, real[n]);
          value_row += row_step * value.time_stride;
        }
        if constexpr (grad_outs) {
          grad_out.template load_row<(1 + values) * distance + offset>(turned, grad_out_row,
                                                                       sees_key[n]);
          grad_out_row += row_step * grad_out.time_stride;
        }
      });
    }
  }

  // Of rows of which some do not start on 16 bytes.
  template <int rows, int distance>
  MMER_DEVICE void gather_seen(HeadTile x_smem, int first, int from) const {
    const Bits *x_row = x.source(from), *value_row = value.source(from),
               *grad_out_row = grad_out.source(from);
#pragma unroll 1
    for (int row = Loader::first_row(); row < rows; row += Loader::row_step) {
      const uint32_t place = x_smem.piece(row, Loader::first_piece());
      const int step = first + row;
      const bool real = weighting.is_real(step);
      x.template gather_row<0>(place, x_row, real);
      x_row += Loader::row_step * x.time_stride;
      if constexpr (values) {
        value.template gather_row<distance>(place, value_row, real);
        value_row += Loader::row_step * value.time_stride;
      }
      if constexpr (grad_outs) {
        grad_out.template gather_row<(1 + values) * distance>(place, grad_out_row,
                                                              sees_a_key(step));
        grad_out_row += Loader::row_step * grad_out.time_stride;
      }
    }
  }
};

// The same of a side whose rows are aligned and of which nothing hides one but its end, in tiles of
// `rows` that follow each other: what a thread needs for the next one stays in registers.
template <class Element, int columns, int threads, int rows, bool values, bool grad_outs>
struct PlainTiles {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  // Of the tile, that the block's threads load at once.
  static constexpr int turn_rows = rows < Loader::row_step ? rows : Loader::row_step;

  // Of one tensor.
  struct NextRow {
    Loader loader;  // from the thread's next row on
    int64_t step_bytes;

    MMER_DEVICE NextRow(const Loader& source, int first)
        : loader(source), step_bytes(kept(turn_rows * source.time_stride * Element::bytes)) {
      loader.first_gmem = kept(source.source(first));
      loader.first_bytes = kept(static_cast<uint32_t>(source.first_bytes));
    }
    MMER_DEVICE void skip() { loader.first_gmem += rows * loader.time_stride; }
    template <int offset>
    MMER_DEVICE void load(uint32_t place, bool wanted) {
      loader.template load_row<offset>(place, loader.first_gmem, wanted);
      loader.first_gmem = kept(reinterpret_cast<const typename Element::Bits*>(
          reinterpret_cast<const char*>(loader.first_gmem) + step_bytes));
    }
  };
  struct NoRow {
    MMER_DEVICE NoRow(const Loader&, int) {}
    MMER_DEVICE void skip() {}
    template <int offset>
    MMER_DEVICE void load(uint32_t, bool) {}
  };
  NextRow x;
  std::conditional_t<values, NextRow, NoRow> value;
  std::conditional_t<grad_outs, NextRow, NoRow> grad_out;
  uint32_t thread_place;
  int left;  // steps from the next tile on

  // From step `first` on.
  template <class Source, bool extras>
  MMER_DEVICE PlainTiles(
      const SideLoader<Source, Element, columns, threads, extras, values, grad_outs>& side,
      int first)
      : x(side.x, first),
        value(side.value, first),
        grad_out(side.grad_out, first),
        thread_place(side.thread_place),
        left(side.side.time - first) {}

  MMER_DEVICE void skip() {
    x.skip();
    value.skip();
    grad_out.skip();
    left -= rows;
  }

  // Starts to load the next tile, whose x stands `x_place` bytes behind `stage`.
  template <int x_place, int distance>
  MMER_DEVICE void load(uint32_t stage) {
    const uint32_t place = thread_place + stage;
    if (left >= rows) {
      load_rows<x_place, distance>(place, [](int) { return true; });
    } else {
      const int wanted = left - Loader::first_row();
      load_rows<x_place, distance>(place, [&](int below) { return below < wanted; });
    }
    left -= rows;
  }

 private:
  template <int x_place, int distance, class Wanted>
  MMER_DEVICE void load_rows(uint32_t place, const Wanted& wanted) {
    if (Loader::first_row() >= turn_rows) return;
    unrolled<rows / turn_rows>([&](auto n) {
      constexpr int below = decltype(n)::value * turn_rows;
      constexpr int offset = x_place + below * HeadTile::row_bytes;
      const uint32_t turned = HeadTile::turned(place, below);
      x.template load<offset>(turned, wanted(below));
      value.template load<distance + offset>(turned, wanted(below));
      grad_out.template load<(1 + values) * distance + offset>(turned, wanted(below));
    });
  }
};

}  // namespace mmer::cuda
