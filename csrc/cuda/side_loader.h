// What is read of a sequence, tile by tile: what it is compared by and its values, and in the
// backward pass the gradient of its output.

#pragma once

#include "tile.h"
#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns, int threads>
struct PairLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  Loader x, value;
  Visibility visible;
  bool plain;  // no step before the end is hidden, and all rows are aligned
  uint32_t thread_place;

  MMER_DEVICE PairLoader(const Rows& x, const Rows& value, Visibility visible, int batch, int head)
      : x(x, batch, head),
        value(value, batch, head),
        visible(visible),
        plain(!visible.mask_gmem && x.aligned && value.aligned),
        thread_place(kept(Loader::first_place(HeadTile{0}))) {
    for (Loader* loader : {&this->x, &this->value}) {
      loader->row_gmem = kept(loader->row_gmem);
      loader->first_bytes = kept(static_cast<uint32_t>(loader->first_bytes));
    }
  }

  template <int rows>
  MMER_DEVICE bool is_plain(int first) const {
    return Loader::template steady<rows> && plain && first + rows <= visible.time;
  }
  template <int rows, int distance>
  MMER_DEVICE void load_plain(HeadTile x_smem, int first) const {
    const uint32_t place = x_smem.address + thread_place;
    x.template load_whole<rows, 0>(place, first);
    value.template load_whole<rows, distance>(place, first);
  }

  // Starts to load two tiles (rows, columns), `distance` bytes apart: steps from `first` on.
  template <int rows, int distance, class Visible>
  MMER_DEVICE void load(HeadTile x_smem, int first, const Visible& is_visible) const {
    if constexpr (Loader::template steady<rows>) {
      if (is_plain<rows>(first)) {
        load_plain<rows, distance>(x_smem, first);
        return;
      }
    }
    Loader::template load_two<rows, distance>(x, value, x_smem, first, visible.whole(first + rows),
                                              is_visible);
  }
};

// The state of a query, (log-sum-exp, correction); infinite and 0 beyond the end.
MMER_DEVICE float2 state_of(const Side& side, int batch_head, int step) {
  if (step >= side.time) return make_float2(infinity, 0.0f);
  const float2* state_gmem = reinterpret_cast<const float2*>(side.state);
  return state_gmem[static_cast<int64_t>(batch_head) * side.time + step];
}

template <class Element, int columns, int threads>
struct SideLoader {
  using Pair = PairLoader<Element, columns, threads>;
  using Loader = typename Pair::Loader;
  using HeadTile = typename Pair::HeadTile;
  const Side& side;
  int batch_head;
  Pair pair;
  Loader grad_out;
  bool all_see;  // neither sequence has a mask: only its end hides a step
  bool plain;    // and all rows are aligned

  MMER_DEVICE SideLoader(const Side& side, int batch, int head, int heads, bool all_see)
      : side(side),
        batch_head(batch * heads + head),
        pair(side.x, side.value, Visibility(side.mask, batch, side.time), batch, head),
        grad_out(side.grad_out, batch, head),
        all_see(all_see),
        plain(all_see && pair.plain && grad_out.aligned) {}

  // Starts to load three tiles (rows, columns), `distance` bytes apart: steps from `first` on.
  template <int rows, int distance>
  MMER_DEVICE void load(HeadTile x_smem, int first) const {
    if constexpr (Loader::template steady<rows>) {
      if (plain && pair.template is_plain<rows>(first)) {
        pair.template load_plain<rows, distance>(x_smem, first);
        grad_out.template load_whole<rows, 2 * distance>(x_smem.address + pair.thread_place, first);
        return;
      }
    }
    pair.template load<rows, distance>(x_smem, first, pair.visible);
    grad_out.template load<rows>(
        HeadTile{x_smem.address + 2 * distance}, first, all_see && pair.visible.whole(first + rows),
        [&](int step) { return state_of(side, batch_head, step).x < infinity; });
  }
};

}  // namespace mmer::cuda
