// Where everything stands in the shared memory of a block, in bytes: kernels and launch plans read
// the same.

#pragma once

#include "config.h"

namespace mmer::cuda {

// Where the rows of a head begin and how far apart they stand, of three tensors of a sequence and
// of two others (HeadSource): a place in most of these.
constexpr int head_sources_bytes = 9 * 16;

// Of directed_forward.
struct ForwardSmem {
  int tile_bytes;
  int q = 0;
  int k;  // two stages, as of v
  int v;
  int sources;  // HeadSource, of both segments, then of q and out
  int bias;     // two stages of floats, as of the times, which extras have
  int times;
  int flags;  // one of each tile where max_gap may skip it

  constexpr ForwardSmem(int columns, int element_bytes)
      : tile_bytes(forward_config(columns, element_bytes).tile * columns * element_bytes),
        k(forward_config(columns, element_bytes).rows() * columns * element_bytes),
        v(k + 2 * tile_bytes),
        sources(v + 2 * tile_bytes),
        bias(sources + head_sources_bytes),
        times(bias + 8 * forward_config(columns, element_bytes).tile),
        flags(times + 8 * forward_config(columns, element_bytes).tile) {}
};

// Of query_backward, key_backward and shared_backward.
struct BackwardSmem {
  Config config;
  int own_bytes, tile_bytes;
  int own_x = 0;
  int own_value;
  int own_grad_out;
  int other_x;  // two stages, as of both others
  int other_value;
  int other_grad_out;
  int sources;  // HeadSource, of the block's own side, then of both others
  int bias, times, minus_lse, minus_correction;  // two stages of floats
  int sums;                                      // one float a warp
  int flags;                                     // one of each tile where max_gap may skip it

  constexpr BackwardSmem(int columns, int element_bytes, bool as_query, bool as_key)
      : config(backward_config(columns, element_bytes)),
        own_bytes(config.rows() * columns * element_bytes),
        tile_bytes(config.tile * columns * element_bytes),
        own_value(own_bytes),
        own_grad_out(own_value + as_key * own_bytes),
        other_x(own_grad_out + as_query * own_bytes),
        other_value(other_x + 2 * tile_bytes),
        other_grad_out(other_value + as_query * 2 * tile_bytes),
        sources(other_grad_out + as_key * 2 * tile_bytes),
        bias(sources + head_sources_bytes),
        times(bias + 8 * config.tile),
        minus_lse(times + 8 * config.tile),
        minus_correction(minus_lse + 8 * config.tile),
        sums(minus_correction + 8 * config.tile),
        flags(sums + 4 * config.warps) {}
};

// Of shared_short.
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

// Of shared_forward.
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

// Of once_backward.
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

}  // namespace mmer::cuda
