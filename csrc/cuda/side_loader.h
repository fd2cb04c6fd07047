// What a kernel reads of a sequence, tile by tile: what it is compared by, and of each step the
// value, the gradient of the output, or both.

#pragma once

#include "tile.h"
#include "visible.h"

namespace mmer::cuda {

// The state of a query, (log-sum-exp, correction); infinite and 0 beyond the end.
MMER_DEVICE float2 state_of(const Side& side, int batch_head, int step) {
  if (step >= side.time) return make_float2(infinity, 0.0f);
  const float2* state_gmem = reinterpret_cast<const float2*>(side.state);
  return state_gmem[static_cast<int64_t>(batch_head) * side.time + step];
}

// Which steps are real, and log2 of what they stand for; `counted`: a step may be a summary.
template <bool counted>
struct Weighting {
  Visibility visible;
  const float* log_counts_gmem;

  template <class Source>
  MMER_DEVICE Weighting(const Source& source, int batch)
      : visible(source.mask, batch, source.time),
        log_counts_gmem(counted && source.log_counts
                            ? source.log_counts + int64_t{batch} * source.time
                            : nullptr) {}
  MMER_DEVICE bool all_real() const { return !visible.mask_gmem && !(counted && log_counts_gmem); }
  MMER_DEVICE bool whole(int end) const { return end <= visible.time && all_real(); }
  // 0 for a token, -inf if it is padded.
  MMER_DEVICE float operator()(int step) const {
    if (!visible(step)) return -infinity;
    return counted && log_counts_gmem ? log_counts_gmem[step] : 0.0f;
  }
  MMER_DEVICE bool is_real(int step) const {
    return visible(step) && !(counted && log_counts_gmem && log_counts_gmem[step] == -infinity);
  }
};

// Tiles of x, then of the values and of the gradients of the output where they are wanted, each
// `distance` bytes behind the one before. Rows that are not seen become zero, so that nothing that
// stands in padding, NaN included, takes part in a product.
template <class Element, int columns, int threads, bool counted, bool values, bool grad_outs>
struct SideLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  using Bits = typename Element::Bits;
  const Side& side;
  int batch_head;
  Weighting<counted> weighting;
  Loader x, value, grad_out;
  uint32_t thread_place;
  bool plain;

  // `all_see`: neither sequence's mask hides a step from the other.
  MMER_DEVICE SideLoader(const Side& side, int batch, int head, int heads, bool all_see)
      : side(side),
        batch_head(batch * heads + head),
        weighting(side, batch),
        x(side.x, batch, head),
        value(side.value, batch, head),
        grad_out(side.grad_out, batch, head),
        thread_place(kept(Loader::first_place(HeadTile{0}))),
        plain(is_plain(side, batch, all_see)) {}
  // The same of little that is kept in registers from tile to tile.
  MMER_DEVICE SideLoader(const Side& side, int batch, int batch_head, const HeadSource* sources_smem,
                         uint32_t thread_place, bool plain)
      : side(side),
        batch_head(batch_head),
        weighting(side, batch),
        x(side.x, sources_smem[0]),
        value(side.value, sources_smem[1]),
        grad_out(side.grad_out, sources_smem[2]),
        thread_place(thread_place),
        plain(plain) {}

  // Whether every row is aligned and nothing hides one but the end of a sequence.
  static MMER_DEVICE bool is_plain(const Side& side, int batch, bool all_see) {
    return side.x.aligned && (!values || side.value.aligned) &&
           (!grad_outs || (side.grad_out.aligned && all_see)) &&
           Weighting<counted>(side, batch).all_real();
  }

  // Starts to load the tiles of the steps from `first` on.
  template <int rows, int distance>
  MMER_DEVICE void load(HeadTile x_smem, int first) const {
    if (!plain || first + rows > side.time) return load_by_row<rows, distance>(x_smem, first);
    if (rows < Loader::row_step && Loader::first_row() >= rows) return;
    const uint32_t place = x_smem.address + thread_place;
    x.template load_whole<rows, 0>(place, first);
    if constexpr (values) value.template load_whole<rows, distance>(place, first);
    if constexpr (grad_outs) {
      grad_out.template load_whole<rows, (1 + values) * distance>(place, first);
    }
  }

  // The same of any rows, in a loop: what is asked of each takes most of the time.
  template <int rows, int distance>
  MMER_DEVICE void load_by_row(HeadTile x_smem, int first) const {
    const Bits *x_row = x.source(first), *value_row = value.source(first),
               *grad_out_row = grad_out.source(first);
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
        const bool counts = state_of(side, batch_head, step).x < infinity;
        grad_out.template gather_row<(1 + values) * distance>(place, grad_out_row, counts);
        grad_out_row += Loader::row_step * grad_out.time_stride;
      }
    }
  }
};

}  // namespace mmer::cuda
