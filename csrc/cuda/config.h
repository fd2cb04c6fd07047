// The shapes of the kernels' blocks, one row for each class of head dimensions. The launch plans
// read the same rows.

#pragma once

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

// Shared cross-attention, S once. A warp owns 16 `row_tiles` rows of the scores; for the products
// with their transpose the block's warps split the columns, and then the value dimension.
struct SharedConfig {
  int warps;
  int row_tiles;
  constexpr int rows() const { return warps * row_tiles * warp_rows; }
  constexpr int threads() const { return warps * 32; }
  // Columns of a tile: 16 for each warp, or for each two where the value dimension can be halved.
  constexpr int tile(int columns) const {
    return columns == 16 || warps <= 4 ? warps * 16 : warps * 8;
  }
};

// The classes of the shorter sequence. 320 rows, as windows of 300 frames need, take ten warps two
// row tiles each; with 128 columns there are no registers for a second one.
constexpr SharedConfig shared_config(int rows) {
  if (rows <= 64) return {4, 1};
  if (rows <= 128) return {8, 1};
  return {10, 2};
}

// The class of a call, 0 if there is none.
constexpr int shared_row_class(int rows, int columns) {
  if (columns > 128 || rows > (columns == 128 ? 128 : 320)) return 0;
  if (rows <= 64 && columns <= 64) return 64;
  return rows <= 128 ? 128 : 320;
}

constexpr int small_kernel_threads = 128;
constexpr int row_state_lanes = 8;  // for each row

}  // namespace mmer::cuda
