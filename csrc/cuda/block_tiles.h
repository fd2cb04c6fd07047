// The tiles that a block reads: those of the tokens that any of its rows sees, then of the
// summaries.

#pragma once

#include "visible.h"

namespace mmer::cuda {

template <int steps, bool extras>
struct BlockTiles {
  Tiles tokens;
  Tiles summaries;  // with extras
  // Of each tile of tokens, whether it holds a step within max_gap of any row; nullptr: all do.
  const uint8_t* near_smem;

  MMER_DEVICE int count() const { return extras ? tokens.count + summaries.count : tokens.count; }
  MMER_DEVICE bool of_tokens(int tile) const { return !extras || tile < tokens.count; }
  MMER_DEVICE int first_step(int tile) const {
    return of_tokens(tile) ? tokens.first + tile * steps
                           : summaries.first + (tile - tokens.count) * steps;
  }
  // The first from `tile` on that is near; `skip()` is called for each that is not.
  template <class Skip>
  MMER_DEVICE int next(int tile, const Skip& skip) const {
    if constexpr (extras) {
      for (; near_smem && tile < tokens.count && !near_smem[tile]; ++tile) skip();
    }
    return tile;
  }
};

}  // namespace mmer::cuda
