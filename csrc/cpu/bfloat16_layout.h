// How bfloat16 factors lie in memory, for either kind of instruction that multiplies them: two
// neighbours of the inner dimension together.
//
//   left (rows, inner), row-major      right (inner / 2, columns) of pairs

#pragma once

#include "product_float32.h"

namespace mmer::cpu {
namespace {

// Inner dimensions are padded with zeros to whole rows of a tile, and left rows to whole tiles.
constexpr int64_t inner_unit = 32;
constexpr int64_t tile_side = 16;

static_assert(row_block % inner_unit == 0 && column_block % inner_unit == 0);

}  // namespace
}  // namespace mmer::cpu
