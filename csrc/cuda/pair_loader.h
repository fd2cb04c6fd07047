// What the shared forward reads of a sequence, tile by tile: what it is compared by, and its
// values.

#pragma once

#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns, int threads>
struct PairLoader {
  using Loader = RowLoader<Element, columns, threads>;
  using HeadTile = Tile<Element, columns>;
  Loader x, value;
  int plain_end;  // before it no step is hidden, and all rows are aligned
  uint32_t thread_place;

  MMER_DEVICE PairLoader(const SharedSide& side, int end, int batch, int head)
      : x(side.x, batch, head),
        value(side.value, batch, head),
        plain_end(kept(x.aligned && value.aligned ? side.whole_end(end) : 0)),
        thread_place(kept(Loader::first_place(HeadTile{0}))) {
    for (Loader* loader : {&x, &value}) {
      loader->first_gmem = kept(loader->first_gmem);
      loader->first_bytes = kept(loader->first_bytes);
    }
  }

  // Starts to load two tiles (rows, columns), `distance` bytes apart: steps from `first` on. Those
  // that are not visible become zero, so that nothing that stands in padding, NaN included, takes
  // part in a product.
  template <int rows, int distance, class Visible>
  MMER_DEVICE void load(HeadTile x_smem, int first, const Visible& visible) const {
    const uint32_t place = x_smem.address + thread_place;
    if (first + rows <= plain_end) {
      x.template load_whole<rows, 0>(place, first);
      value.template load_whole<rows, distance>(place, first);
    } else if (plain_end > 0) {
      x.template load_first<rows, 0>(place, first, plain_end - first);
      value.template load_first<rows, distance>(place, first, plain_end - first);
    } else {
      x.template load_by_row<rows>(x_smem, first, visible);
      value.template load_by_row<rows>(HeadTile{x_smem.address + uint32_t{distance}}, first,
                                       visible);
    }
  }
  // One of the two.
  template <int rows, class Visible>
  MMER_DEVICE void load(const Loader& loader, HeadTile tile_smem, int first,
                        const Visible& visible) const {
    const uint32_t place = tile_smem.address + thread_place;
    if (first + rows <= plain_end) {
      loader.template load_whole<rows, 0>(place, first);
    } else if (plain_end > 0) {
      loader.template load_first<rows, 0>(place, first, plain_end - first);
    } else {
      loader.template load_by_row<rows>(tile_smem, first, visible);
    }
  }
};

}  // namespace mmer::cuda
