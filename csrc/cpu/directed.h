// One direction of attention: which keys a block of queries sees, and the copies of them that the
// forward and the backward read. Bidirectional cross-attention is two such problems; chunked
// attention is one whose queries see a window of the tokens and, as a second segment, summaries.

#pragma once

#include "arena.h"
#include "scores.h"

namespace mmer::cpu {
namespace {

// Keys [begin, end) that the query at `row` sees. Both ends grow with the row.
inline Range visible_keys(const DirectedProblem& problem, const Segment& segment, int64_t row) {
  const Chunking& chunking = problem.chunking;
  if (chunking.chunk_size == 0) return {0, segment.time};
  const int64_t time = row + chunking.first_query, chunk = time / chunking.chunk_size;
  if (segment.log_counts) {
    const int64_t end = larger(chunk - chunking.lookback - segment.first_chunk, 0);
    return {smaller(larger(end - chunking.max_summaries, 0), segment.time),
            smaller(end, segment.time)};
  }
  const int64_t begin = larger(chunk - chunking.lookback, 0) * chunking.chunk_size;
  const int64_t end =
      chunking.causal ? time + 1 : (chunk + 1 + chunking.lookahead) * chunking.chunk_size;
  return {begin, smaller(end, segment.time)};
}

// Blocks of queries. They end where chunks end, so that a window is as wide as its queries need.
struct Blocks {
  int64_t unit, in_unit, count;
};

inline Blocks blocks_of(const DirectedProblem& problem) {
  const int64_t chunk =
      problem.chunking.chunk_size == 0 ? larger(problem.time, 1) : problem.chunking.chunk_size;
  const int64_t unit = chunk <= row_block ? row_block / chunk * chunk : chunk;
  const int64_t in_unit = (smaller(unit, larger(problem.time, 1)) + row_block - 1) / row_block;
  return {unit, in_unit, (problem.time + unit - 1) / unit * in_unit};
}

inline Range rows_of(const DirectedProblem& problem, const Blocks& blocks, int64_t block) {
  const int64_t first = block / blocks.in_unit * blocks.unit, part = block % blocks.in_unit;
  const int64_t count = smaller(blocks.unit, problem.time - first);
  return {first + count * part / blocks.in_unit, first + count * (part + 1) / blocks.in_unit};
}

inline Range group_blocks(const Options& options, const Blocks& blocks, int64_t group) {
  return {blocks.count * group / options.groups, blocks.count * (group + 1) / options.groups};
}

// Keys that the queries of a group see, from a multiple of 4 on, as dropout draws them.
inline Range window_of(const DirectedProblem& problem, const Segment& segment, int64_t group) {
  const Blocks blocks = blocks_of(problem);
  const Range own = group_blocks(problem.options, blocks, group);
  if (own.begin == own.end) return {0, 0};
  const Range first = rows_of(problem, blocks, own.begin);
  const Range last = rows_of(problem, blocks, own.end - 1);
  const Range keys{visible_keys(problem, segment, first.begin).begin,
                   visible_keys(problem, segment, larger(last.end - 1, first.begin)).end};
  return keys.begin < keys.end ? Range{keys.begin / 4 * 4, keys.end} : Range{0, 0};
}

inline int64_t largest_window(const DirectedProblem& problem, const Segment& segment) {
  int64_t largest = 0;
  for (int64_t group = 0; group < problem.options.groups; ++group) {
    const Range window = window_of(problem, segment, group);
    largest = larger(largest, window.end - window.begin);
  }
  return largest;
}

// Number of real tokens in the chunk of a summary.
inline int64_t real_tokens(const DirectedProblem& problem, const Segment& segment, int64_t batch,
                           int64_t chunk) {
  const CountsView& counts = segment.counts;
  if (counts.data != nullptr) {
    return counts.data[batch * counts.strides[0] + chunk * counts.strides[1]];
  }
  const int64_t chunk_size = problem.chunking.chunk_size;
  const int64_t end = smaller((chunk + 1) * chunk_size, problem.time);
  int64_t real = 0;
  for (int64_t step = chunk * chunk_size; step < end; ++step) {
    real += is_real(problem.mask, batch, step);
  }
  return real;
}

// Bias and times of a group's keys; -infinity for a padded key or a chunk without real tokens.
struct KeyBias {
  float *bias, *times;

  KeyBias(Arena& arena, const DirectedProblem& problem, const Segment& segment) {
    const int64_t padded = round_up(largest_window(problem, segment), panel_width) + column_block;
    bias = arena.take(padded);
    times = arena.take(padded);
  }

  void read(const DirectedProblem& problem, const Segment& segment, int64_t batch,
            Range window) const {
    const int64_t count = window.end - window.begin;
    const int64_t padded = round_up(count, panel_width) + column_block;
    fill(bias, padded, -infinity);
    fill(times, padded, 0.0f);
    if (segment.log_counts) {
      for (int64_t chunk = window.begin; chunk < window.end; ++chunk) {
        const int64_t real = real_tokens(problem, segment, batch, chunk);
        bias[chunk - window.begin] = std::log(static_cast<float>(real));
      }
      return;
    }
    read_mask(segment.mask, batch, window, bias);
    if (problem.options.timed) read_times(segment.times, batch, window, bias, times);
  }
};

// Scores of -infinity outside of the keys that each row sees, in products with a positive scale.
inline Scores apply_ranges(const DirectedProblem& problem, const Segment& segment, Range rows,
                           Range keys, Scores scores) {
  if (!(scores.scale > 0.0f)) {
    for (int64_t i = 0; i < rows.end - rows.begin; ++i) {
      scale_row(scores.tile.data + i * scores.tile.stride, keys.end - keys.begin, scores.scale);
    }
    scores.scale = 1.0f;
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Range visible = visible_keys(problem, segment, row);
    float* row_scores = scores.tile.data + (row - rows.begin) * scores.tile.stride;
    for (int64_t key = keys.begin; key < smaller(visible.begin, keys.end); ++key) {
      row_scores[key - keys.begin] = -infinity;
    }
    for (int64_t key = larger(visible.end, keys.begin); key < keys.end; ++key) {
      row_scores[key - keys.begin] = -infinity;
    }
  }
  return scores;
}

// Where the tiles of a block of rows begin: at a panel of the window.
inline int64_t first_tile(const DirectedProblem& problem, const Segment& segment, Range window,
                          Range rows) {
  const int64_t begin = visible_keys(problem, segment, rows.begin).begin;
  return window.begin + (begin - window.begin) / panel_width * panel_width;
}

inline bool is_one_tile(const DirectedProblem& problem, const Segment& segment, Range window,
                        Range rows) {
  return visible_keys(problem, segment, rows.end - 1).end -
             first_tile(problem, segment, window, rows) <=
         column_block;
}

// Calls tile(keys) for each tile of keys that the rows see.
template <class Tile>
inline void visit_tiles(const DirectedProblem& problem, const Segment& segment, Range window,
                        const KeyBias& keys, Range rows, const Interval& row_interval,
                        const Tile& tile) {
  // Whole vectors of keys are scored: those past the last visible one are cut off like others.
  const int64_t visible_end = visible_keys(problem, segment, rows.end - 1).end;
  const int64_t end =
      smaller(window.begin + round_up(visible_end - window.begin, lanes), window.end);
  for (int64_t first = first_tile(problem, segment, window, rows); first < end;
       first += column_block) {
    const Range here{first, smaller(first + column_block, end)};
    const int64_t place = first - window.begin;
    const Interval interval =
        interval_of(keys.times + place, keys.bias + place, here.end - here.begin);
    if (interval.first > interval.last) continue;
    const Options& options = problem.options;
    if (options.timed && further_apart(row_interval, interval, options.max_gap)) continue;
    tile(here);
  }
}

inline bool is_cut_by_ranges(const DirectedProblem& problem, const Segment& segment, Range rows,
                             Range keys) {
  return visible_keys(problem, segment, rows.begin).end < keys.end ||
         visible_keys(problem, segment, rows.end - 1).begin > keys.begin;
}

}  // namespace
}  // namespace mmer::cpu
