// The shapes of the kernels' blocks, one row for each class of head dimensions. The launch plans
// read the same rows.

#pragma once

#include <cstdint>

namespace mmer::cuda {

constexpr int warp_rows = 16;  // of one mma instruction

// Classes of head dimensions: the smallest that holds both the head and the value dimension. The
// rest of a tile is zero: real emotion models have heads of 5, 6 and 12, hence the class of 16.
constexpr int head_classes[] = {16, 32, 64, 128, 256};

constexpr int head_class(int dim) {
  for (int columns : head_classes) {
    if (dim <= columns) return columns;
  }
  return 0;
}

struct Config {
  int warps;
  int tile;  // steps of the other sequence in a tile
  int blocks_a_multiprocessor;
  constexpr int rows() const { return warps * warp_rows; }
  constexpr int threads() const { return warps * 32; }
};

// What the kernels with extras need in registers leaves room for one block less.
constexpr int blocks_a_multiprocessor(Config config, bool extras) {
  return extras && config.blocks_a_multiprocessor > 1 ? config.blocks_a_multiprocessor - 1
                                                      : config.blocks_a_multiprocessor;
}

// 64 queries a block, so that a head of 300 steps makes ten blocks in two directions. float32 takes
// twice the shared memory, of which a block has 99 KiB at the least, and the same registers.
constexpr Config forward_config(int columns, int element_bytes) {
  if (element_bytes == 4) {
    if (columns <= 64) return {4, 32, 3};
    return columns == 128 ? Config{4, 16, 2} : Config{2, 8, 1};
  }
  if (columns <= 64) return {4, 64, 3};
  if (columns == 128) return {4, 64, 2};
  // 32 keys: the sums alone are 128 registers a thread, and two stages must fit into 99 KiB.
  return {4, 32, 1};
}

constexpr Config backward_config(int columns, int element_bytes) {
  if (element_bytes == 4) {
    if (columns <= 64) return {4, 16, 2};
    return columns == 128 ? Config{2, 16, 1} : Config{1, 8, 1};
  }
  if (columns <= 64) return {4, 32, 2};
  if (columns == 128) return {4, 32, 1};
  // Half the rows: three tiles of them stay in shared memory.
  return {2, 16, 1};
}

// Columns of the gradients that a block of the backward kernel sums up; the others are another
// block's. More of two gradients would not fit into the registers.
constexpr int gradient_columns(int columns, int element_bytes, bool extras) {
  const int most = extras || element_bytes == 4 ? 64 : 128;
  return columns < most ? columns : most;
}

// Shared cross-attention, S once. A warp owns 16 `row_tiles` rows of the scores, or shares them
// with a second one that has every other strip of columns (`column_groups`). For the products with
// their transpose the block's warps split the columns, and then the value dimension.
struct SharedConfig {
  int warps;
  int row_tiles;
  int column_groups;
  // As many as shared memory and registers have room for. Where the compiler chooses, it gives up
  // what a thread needs for one more.
  int blocks_a_multiprocessor;
  constexpr int row_warps() const { return warps / column_groups; }
  constexpr int rows() const { return row_warps() * row_tiles * warp_rows; }
  constexpr int threads() const { return warps * 32; }
  // Columns of a tile: 16 for each warp, or for each two where the value dimension can be halved.
  constexpr int tile(int columns) const {
    return columns == 16 || warps <= 4 ? warps * 16 : warps * 8;
  }
};

// The classes of rows that a block takes of the shorter sequence. A warp's 32 or 48 rows share what
// is read of b. Two groups of columns keep four warps busy with 64 rows, and eight with 128. More
// take eight warps, two for each quarter of a multiprocessor, as more would have too few registers:
// 168, of which 300 rows in ten warps left some over. With 128 columns there are none for a second
// row tile.
constexpr int shared_row_classes[] = {64, 128, 384};

constexpr SharedConfig shared_config(int rows, int columns) {
  if (columns == 128) return {8, 1, 1, 1};
  if (rows <= 64) return {4, 2, 2, columns == 16 ? 4 : columns == 32 ? 3 : 2};
  if (rows <= 128) return {8, 2, 2, columns <= 32 ? 2 : 1};
  return {8, 3, 1, 1};
}

constexpr int most_row_groups = 4;

constexpr bool has_shared_class(int rows, int columns) {
  if (columns == 128) return rows == 128;
  return columns < 128;
}

// Where everything stands in the shared memory of such a block, in bytes; 2 bytes an element.
struct SharedSmem {
  int tile, tile_bytes, row_bytes, parts_stride;
  int value_a = 0;
  int weights;        // first a, then P: eight rows in different banks
  int b;              // two stages
  int value_b;        // two stages
  int column_parts;   // (row_warps, parts_stride) floats
  int row_bias;       // as many floats as rows
  int row_reference;  // the same
  int row_parts;      // the same for each of two groups of columns
  int warp_parts;     // a float each
  int column_bias;    // as many floats as columns, twice

  constexpr SharedSmem(int row_class, int columns)
      : tile(shared_config(row_class, columns).tile(columns)),
        tile_bytes(tile * columns * 2),
        row_bytes(columns * 2 > tile * 2 + 16 ? columns * 2 : tile * 2 + 16),
        parts_stride(tile + 16),
        weights(shared_config(row_class, columns).rows() * columns * 2),
        b(weights + shared_config(row_class, columns).rows() * row_bytes),
        value_b(b + 2 * tile_bytes),
        column_parts(value_b + 2 * tile_bytes),
        row_bias(column_parts + shared_config(row_class, columns).row_warps() * parts_stride * 4),
        row_reference(row_bias + shared_config(row_class, columns).rows() * 4),
        row_parts(row_reference + shared_config(row_class, columns).rows() * 4),
        warp_parts(row_parts + (shared_config(row_class, columns).column_groups == 2) * 2 *
                                   shared_config(row_class, columns).rows() * 4),
        column_bias(warp_parts + shared_config(row_class, columns).warps * 4) {}

  // A bias and an exact reference of each column.
  constexpr int64_t bytes(int64_t column_count) const {
    return column_bias + 2 * 4 * ((column_count + tile - 1) / tile * tile);
  }
};

// The same for the backward pass: four warps, 16 rows each, as the gradients of a and of its values
// stay in registers, and tiles of 32 columns for as much of S and of both gradients of P.
constexpr int once_backward_rows = 64, once_backward_tile = 32, once_backward_threads = 128;
constexpr int most_once_backward_columns = 64;

struct OnceSmem {
  int tile_bytes, stage_bytes;
  int a = 0;
  int value_a;
  int grad_out_a;
  int stages;          // two, of b, v_b and dO_b
  int weights_stride;  // bytes: eight rows in different banks
  int weights_bytes;
  int weights;  // P_a, then dS
  int bias;     // as many floats as columns of two tiles, as all that follow
  int lse;
  int correction;
  int bytes;

  constexpr explicit OnceSmem(int columns)
      : tile_bytes(once_backward_tile * columns * 2),
        stage_bytes(3 * tile_bytes),
        value_a(once_backward_rows * columns * 2),
        grad_out_a(2 * value_a),
        stages(3 * value_a),
        weights_stride(once_backward_tile * 2 + 16),
        weights_bytes(once_backward_rows * weights_stride),
        weights(stages + 2 * stage_bytes),
        bias(weights + 2 * weights_bytes),
        lse(bias + 2 * 4 * once_backward_tile),
        correction(lse + 2 * 4 * once_backward_tile),
        bytes(correction + 2 * 4 * once_backward_tile) {}
};

constexpr int small_kernel_threads = 128;
// The small kernels that take rows: lanes for each row, and rows of a block. Few lanes, as what a
// row costs beside its elements is more than these.
constexpr int row_lanes = 4;
constexpr int block_rows = small_kernel_threads / row_lanes;

}  // namespace mmer::cuda
