// What a kernel reads of a sequence, tile by tile: what it is compared by, and of each step the
// value, the gradient of the output, or both.

#pragma once

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
  MMER_DEVICE bool all_real() const { return !visible.mask_gmem && !(extras && log_counts_gmem); }
  MMER_DEVICE bool whole(int end) const { return end <= visible.time && all_real(); }
  // 0 for a token, -inf if it is padded.
  MMER_DEVICE float operator()(int step) const {
    if (!visible(step)) return -infinity;
    return extras && log_counts_gmem ? log_counts_gmem[step] : 0.0f;
  }
  MMER_DEVICE bool is_real(int step) const {
    return visible(step) && !(extras && log_counts_gmem && log_counts_gmem[step] == -infinity);
  }
};

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

  // `all_see`: neither sequence's mask hides a step from the other.
  MMER_DEVICE SideLoader(const Source& side, int batch, int head, int heads, bool all_see)
      : side(side),
        batch_head(batch * heads + head),
        weighting(side, batch),
        x(compared(side), batch, head),
        value(rows_of(side, 1), batch, head),
        grad_out(rows_of(side, 2), batch, head),
        thread_place(kept(Loader::first_place(HeadTile{0}))),
        plain(is_plain(side, batch, all_see)) {}

  // What a thread keeps of a side takes too many registers for some kernels: what is the same for
  // all of a block waits in shared memory.
  template <int sides>
  static MMER_DEVICE void find_sources(HeadSource* sources_smem, const Source* side, int batch,
                                       int head) {
    if (threadIdx.x >= 3 * sides) return;
    sources_smem[threadIdx.x] =
        HeadSource::of<Bits>(rows_of(side[threadIdx.x / 3], threadIdx.x % 3), batch, head);
  }
  MMER_DEVICE SideLoader(const Source& side, int batch, int batch_head,
                         const HeadSource* sources_smem, uint32_t thread_place, bool plain)
      : side(side),
        batch_head(batch_head),
        weighting(side, batch),
        x(compared(side), sources_smem[0]),
        value(rows_of(side, 1), sources_smem[1]),
        grad_out(rows_of(side, 2), sources_smem[2]),
        thread_place(thread_place),
        plain(plain) {}

  // Whether every row is aligned and nothing hides one but the end of a sequence.
  static MMER_DEVICE bool is_plain(const Source& side, int batch, bool all_see) {
    return compared(side).aligned && (!values || rows_of(side, 1).aligned) &&
           (!grad_outs || (rows_of(side, 2).aligned && all_see)) &&
           Weighting<extras>(side, batch).all_real();
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
  static MMER_DEVICE const Rows& rows_of(const Source& side, int number) {
    if constexpr (values) {
      if (number == 1) return side.value;
    }
    if constexpr (grad_outs) {
      if (number == 2) return side.grad_out;
    }
    return compared(side);
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

}  // namespace mmer::cuda
