// What the shared forward reads of a sequence, tile by tile: what it is compared by, and its
// values.

#pragma once

#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns, int threads>
struct PairLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  const SharedSide& side;
  Loader x, value;
  int end;        // of the steps that are loaded
  int plain_end;  // before it no step is hidden, and all rows are aligned
  uint32_t thread_place;

  MMER_DEVICE PairLoader(const SharedSide& side, int end, int batch, int head)
      : side(side),
        x(side.x, batch, head),
        value(side.value, batch, head),
        end(end),
        plain_end(
            kept(static_cast<uint32_t>(x.aligned && value.aligned ? side.whole_end(end) : 0))),
        thread_place(kept(Loader::first_place(HeadTile{0}))) {
    for (Loader* loader : {&x, &value}) {
      loader->first_gmem = kept(loader->first_gmem);
      loader->first_bytes = kept(static_cast<uint32_t>(loader->first_bytes));
    }
  }

  template <int rows>
  MMER_DEVICE bool is_plain(int first) const {
    return Loader::template steady<rows> && first + rows <= plain_end;
  }

  // Starts to load two tiles (rows, columns), `distance` bytes apart: steps from `first` on.
  template <int rows, int distance, class Visible>
  MMER_DEVICE void load(HeadTile x_smem, int first, const Visible& is_visible) const {
    if constexpr (Loader::template steady<rows>) {
      if (is_plain<rows>(first)) {
        const uint32_t place = x_smem.address + thread_place;
        x.template load_whole<rows, 0>(place, first);
        value.template load_whole<rows, distance>(place, first);
        return;
      }
    }
    Loader::template load_two<rows, distance>(x, value, x_smem, first,
                                              first + rows <= side.whole_end(end), is_visible);
  }
};

}  // namespace mmer::cuda
