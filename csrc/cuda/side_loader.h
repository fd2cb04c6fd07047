// What the backward pass reads of a sequence, tile by tile: what it is compared by, its values and
// the gradient of its output.

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

template <class Element, int columns, int threads>
struct SideLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  const Side& side;
  int batch_head;
  Loader x, value, grad_out;
  Visibility visible;
  bool all_see;  // neither sequence has a mask: only its end hides a step
  bool plain;    // and all rows are aligned
  uint32_t thread_place;

  MMER_DEVICE SideLoader(const Side& side, int batch, int head, int heads, bool all_see)
      : side(side),
        batch_head(batch * heads + head),
        x(side.x, batch, head),
        value(side.value, batch, head),
        grad_out(side.grad_out, batch, head),
        visible(side.mask, batch, side.time),
        all_see(all_see),
        plain(all_see && x.aligned && value.aligned && grad_out.aligned),
        thread_place(kept(Loader::first_place(HeadTile{0}))) {}

  // Starts to load three tiles (rows, columns), `distance` bytes apart: steps from `first` on.
  template <int rows, int distance>
  MMER_DEVICE void load(HeadTile x_smem, int first) const {
    if constexpr (Loader::steady && rows % Loader::row_step == 0) {
      if (plain && first + rows <= side.time) {
        const uint32_t place = x_smem.address + thread_place;
        x.template load_whole<rows, 0>(place, first);
        value.template load_whole<rows, distance>(place, first);
        grad_out.template load_whole<rows, 2 * distance>(place, first);
        return;
      }
    }
    const bool whole = visible.whole(first + rows);
    Loader::template load_two<rows, distance>(x, value, x_smem, first, whole, visible);
    grad_out.template load<rows>(
        HeadTile{x_smem.address + 2 * distance}, first, all_see && whole,
        [&](int step) { return state_of(side, batch_head, step).x < infinity; });
  }
};

}  // namespace mmer::cuda
