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

// Shared cross-attention, S once, of up to 64 rows: each of four warps owns all of them for strips
// of 32 columns. 64 columns of a head take all registers that two blocks leave.
constexpr int short_rows = 64, short_warps = 4, short_strip = 32;
constexpr int short_blocks_a_multiprocessor = 2;

// The same of more rows. A warp owns 16 `row_tiles` rows of the scores, or shares them
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

// The classes of rows that a block takes of the shorter sequence, the first of them in the form for
// short ones. A warp's 32 or 48 rows share what is read of b. Two groups of columns keep eight
// warps busy with 128 rows. More take eight warps, two for each quarter of a multiprocessor, as
// more would have too few registers: 168, of which 300 rows in ten warps left some over. With 128
// columns there are none for a second row tile.
constexpr int shared_row_classes[] = {short_rows, 128, 384};

constexpr SharedConfig shared_config(int rows, int columns) {
  if (columns == 128) return {8, 1, 1, 1};
  if (rows <= 128) return {8, 2, 2, columns <= 32 ? 2 : 1};
  return {8, 3, 1, 1};
}

constexpr int most_row_groups = 4;

// The same for the backward pass. A block takes the rows of a sequence in tiles, 16 rows a warp,
// whose gradients stay in registers, and reads the columns tile by tile as often. For the gradients
// of the columns a half of the warps takes dS, the other P, and of each some rows and columns.
struct OnceConfig {
  int warps;
  int tile;
  int blocks_a_multiprocessor;
  constexpr int rows() const { return warps * warp_rows; }
  constexpr int threads() const { return warps * 32; }
  constexpr int column_parts(int columns) const { return columns >= 32 ? 2 : 1; }
  constexpr int part_columns(int columns) const { return columns / column_parts(columns); }
  // Rows of the tile, 16 or 32, that a warp takes.
  constexpr int part_rows(int columns) const { return tile * 2 * column_parts(columns) / warps; }
  // Whether it takes more rows than one tile. The sums of 128 columns that wait for the next rows
  // would keep global memory busy for longer than S takes.
  static constexpr bool many_tiles(int columns) { return columns < 128; }
};

// 128 rows read the other sequence half as often, where shared memory holds them.
constexpr int once_row_classes[] = {64, 128};

constexpr OnceConfig once_config(int rows) {
  return rows == 64 ? OnceConfig{4, 32, 2} : OnceConfig{8, 64, 1};
}

// 128 columns take all registers that a thread can have.
constexpr int once_blocks_a_multiprocessor(int rows, int columns) {
  return columns == 128 ? 1 : once_config(rows).blocks_a_multiprocessor;
}

constexpr int most_once_backward_columns = 128;
// 128 rows of 128 columns would take more shared memory than a block of an A100 has.
constexpr bool once_exists(int rows, int columns) {
  return columns <= 64 || (columns == 128 && rows == 64);
}
// Groups of rows and groups of columns of a head, counted where there are several: each has
// gradients of its own in float32.
constexpr int most_once_parts = 8;
// Small blocks add them up, so that every multiprocessor has some.
constexpr int once_merge_warps = 2;

constexpr int small_kernel_threads = 128;
// The small kernels that take rows: lanes for each row, and rows of a block. Few lanes, as what a
// row costs beside its elements is more than these.
constexpr int row_lanes = 2;
constexpr int block_rows = small_kernel_threads / row_lanes;
// Rows of a warp in row_state, where to find them costs as much as to multiply 16.
constexpr int state_rows = 32;

}  // namespace mmer::cuda
