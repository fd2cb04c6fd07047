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

// Where the rows of a head begin and how far apart they stand, of three tensors of a sequence and
// of two others (HeadSource): a place of shared memory in the kernels above.
constexpr int head_sources_bytes = 9 * 16;

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

// Where everything stands in the shared memory of such a block, in bytes.
struct ShortSmem {
  int a = 0;
  int value_a;
  int strips;         // of each warp b, v_b and P as left factor
  int value_b;        // in a warp's strip
  int weights;        // the same
  int strip_bytes;    // of all three
  int row_bias;       // as many floats as rows
  int row_reference;  // the same
  int row_parts;      // the same for each warp
  int warp_parts;     // a float each
  int column_bias;    // as many floats as columns

  constexpr explicit ShortSmem(int columns)
      : value_a(short_rows * columns * 2),
        strips(2 * value_a),
        value_b(short_strip * columns * 2),
        weights(2 * value_b),
        strip_bytes(weights + short_strip * short_rows * 2),
        row_bias(strips + short_warps * strip_bytes),
        row_reference(row_bias + short_rows * 4),
        row_parts(row_reference + short_rows * 4),
        warp_parts(row_parts + short_warps * short_rows * 4),
        column_bias(warp_parts + short_warps * 4) {}

  constexpr int64_t bytes(int64_t column_count) const {
    return column_bias + (column_count + short_strip - 1) / short_strip * short_strip * 4;
  }
};

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

// Where everything stands in the shared memory of such a block, in bytes; 2 bytes an element.
struct SharedSmem {
  int tile, tile_bytes, row_bytes, parts_stride;
  int value_a = 0;
  int weights;        // first a, then P: eight rows in different banks
  int b;              // two stages
  int value_b;        // two stages
  int column_parts;   // (tile, parts_stride) floats: four parts of each row of warps
  int row_bias;       // as many floats as rows
  int row_reference;  // the same
  int row_parts;      // the same for each of two groups of columns
  int warp_parts;     // a float each
  int column_bias;    // as many floats as columns, twice

  constexpr SharedSmem(int row_class, int columns)
      : tile(shared_config(row_class, columns).tile(columns)),
        tile_bytes(tile * columns * 2),
        row_bytes(columns * 2 > tile * 2 + 16 ? columns * 2 : tile * 2 + 16),
        parts_stride(4 * shared_config(row_class, columns).row_warps() + 4),
        weights(shared_config(row_class, columns).rows() * columns * 2),
        b(weights + shared_config(row_class, columns).rows() * row_bytes),
        value_b(b + 2 * tile_bytes),
        column_parts(value_b + 2 * tile_bytes),
        row_bias(column_parts + tile * parts_stride * 4),
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

// What the launch plans need to know of a class of rows.
struct SharedClass {
  int rows, columns;
  constexpr bool exists() const { return columns == 128 ? rows == 128 : columns < 128; }
  constexpr bool is_short() const { return rows == short_rows; }
  constexpr int threads() const {
    return is_short() ? short_warps * 32 : shared_config(rows, columns).threads();
  }
  // The rows of a warp: what it would leave idle costs as much as what it does.
  constexpr int row_step() const {
    return is_short() ? rows : shared_config(rows, columns).row_tiles * warp_rows;
  }
  constexpr int64_t shared_bytes(int64_t column_count) const {
    return is_short() ? ShortSmem(columns).bytes(column_count)
                      : SharedSmem(rows, columns).bytes(column_count);
  }
};

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

struct OnceSmem {
  int row_bytes, tile_bytes, stage_bytes;
  int a = 0;
  int value_a;
  int grad_out_a;
  int stages;          // two, of b, v_b and dO_b
  int weights_stride;  // bytes: eight rows in different banks
  int weights_bytes;
  int weights;  // P_a, then dS
  int bias;     // as many floats as columns of two tiles
  int states;   // for each two of these columns: minus their log-sum-exps and their corrections
  int sources;  // HeadSource, of the rows, then of the columns
  int bytes;

  constexpr OnceSmem(int rows, int columns)
      : row_bytes(rows * columns * 2),
        tile_bytes(once_config(rows).tile * columns * 2),
        stage_bytes(3 * tile_bytes),
        value_a(row_bytes),
        grad_out_a(2 * row_bytes),
        stages(3 * row_bytes),
        weights_stride(once_config(rows).tile * 2 + 16),
        weights_bytes(rows * weights_stride),
        weights(stages + 2 * stage_bytes),
        bias(weights + 2 * weights_bytes),
        states(bias + 2 * 4 * once_config(rows).tile),
        sources(states + 2 * 8 * once_config(rows).tile),
        bytes(sources + head_sources_bytes) {}
};

constexpr int small_kernel_threads = 128;
// The small kernels that take rows: lanes for each row, and rows of a block. Few lanes, as what a
// row costs beside its elements is more than these.
constexpr int row_lanes = 2;
constexpr int block_rows = small_kernel_threads / row_lanes;
// Rows of a warp in row_state, where to find them costs as much as to multiply 16.
constexpr int state_rows = 32;

}  // namespace mmer::cuda
