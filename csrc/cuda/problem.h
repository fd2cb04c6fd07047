// What the kernels are asked to do: plain structures that a launch copies into a kernel's
// parameters. Free of CUDA and of torch, so that the plans (plan.h) and the tests that execute the
// compiled kernels without a GPU fill in the same bytes.

#pragma once

#include <cstdint>

namespace mmer::cuda {

// A tensor (batch, heads, time, dim) whose last dimension is contiguous; strides in elements.
struct Rows {
  void* data;
  int64_t batch_stride, head_stride, time_stride;
  int32_t dim;      // a kernel's tiles may be wider: their other columns are zero
  int16_t aligned;  // 1: every row starts on 16 bytes and is moved 16 bytes at a time
  int16_t wide;     // 1: float32, where a batch of one was broadcast and its gradients are summed
};

// (batch, time): a mask of bytes or times of float32. No data: absent.
struct Steps {
  const void* data;
  int64_t batch_stride, time_stride;
};

// (batch, heads, time) of float32.
struct HeadSteps {
  const float* data;
  int64_t batch_stride, head_stride, time_stride;
};

// Which steps of the other sequence one of our own sees: those of the chunks
// own_step / own_chunk + first_chunk up to, not including, own_step / own_chunk + end_chunk.
// Full attention is one chunk each. Every rule of visibility that depends on positions is such an
// interval, seen from the query as from the key.
struct Window {
  int32_t own_chunk, other_chunk, first_chunk, end_chunk;
  int32_t causal;  // 1: none later than our own step; -1: none earlier; 0: any
};

// Options that cost registers: only the kernels compiled with extras read them.
struct Extras {
  const float* decay;  // slope of each head, per second
  int64_t decay_stride;
  const int64_t* seed;
  uint64_t keep_threshold;  // random words from this on are kept; 0 without dropout
  float keep_scale;
  float max_gap;
};

struct Segment {
  Rows key, value;
  Steps mask, times;
  const float* log_counts;  // (batch, time) log2 of what a summary stands for, added to its logit
  Window window;
  int32_t time;
  uint32_t stream;  // number of the softmax that dropout draws for
};

// Queries of one sequence over the keys of one or two others: tokens, then summaries.
struct Direction {
  Rows query, out;
  Steps mask, times;
  float* lse;  // (batch, heads, time)
  int32_t time;
  int32_t tiles;  // of queries
  int32_t segment_count;
  Segment segments[2];
};

struct ForwardProblem {
  Direction directions[2];
  int32_t batch, heads;
  float scale;  // of the logits, in units of log2
  Extras extras;
};

// Shared cross-attention with one similarity for both directions: a block owns a head, or a group
// of its rows.
struct SharedSide {
  Rows x, value, out;
  Steps mask;
  float* lse;  // (batch, heads, time)
  int32_t time;

  // Of steps before `end`, up to where none is hidden as far as is known without the mask.
  constexpr int whole_end(int end) const { return mask.data ? 0 : end; }
};

struct SharedForwardProblem {
  SharedSide rows;     // the shorter sequence: all of it, or of its group, is in the block
  SharedSide columns;  // read tile by tile
  int32_t batch, heads;
  float scale;  // of the logits, in units of log2
  // A head's rows are divided into groups: some for blocks of their own, or all of them for one
  // block, in turns.
  int32_t blocks_a_head, turns, rows_a_group;
  // What groups find for the columns: sums of products (blocks, slots, time, class of head
  // dimensions), and in place of the last the sum of the exponentials and, in units of log2, what
  // was subtracted from their scores. Each turn reads what the one before has left in its slot.
  int32_t part_slots;
  float *parts, *part_sums;
};

// One sequence in the backward pass: as keys it has values, as queries a gradient of its output.
struct Side {
  Rows x;  // what it is compared by
  Rows value, grad_out;
  Steps mask, times;
  const float* log_counts;
  const float* state;  // (batch, heads, time, 2) of RowStateProblem
  int32_t time;
  uint32_t stream;  // of the softmax whose queries these are
};

// The gradients of one sequence, whose tiles are owned by a block each.
struct Owner {
  Side own;
  Side others[2];
  Window windows[2];
  Rows grad_x, grad_value;
  float* grad_decay;  // what each block found, (batch, heads, decay_blocks); nullptr: not wanted
  int32_t first_decay_block;
  int32_t other_count;
  int32_t tiles;
};

struct BackwardProblem {
  Owner owners[2];
  int32_t batch, heads;
  float scale;  // of the logits, in units of log2
  float grad_scale;
  int32_t decay_blocks;
  Extras extras;
};

// Shared cross-attention with one similarity for both directions: a block owns a head, or what a
// group of its tiles of rows and a group of its tiles of columns have in common.
struct OnceBackwardProblem {
  Side
      sides[2];  // of the rows, which are read once, and of the columns, once for each tile of rows
  int32_t plain[2];  // 1: every row is aligned and nothing hides one but the end of a sequence
  Rows grad_rows, grad_value_rows, grad_columns, grad_value_columns;
  int32_t batch, heads;
  float scale;  // of the logits, in units of log2
  float grad_scale;
  int32_t row_tiles, row_groups, row_tiles_a_group;
  int32_t column_tiles, column_groups, column_tiles_a_group;
  // The gradients of the columns and of their values, while they are added up or if each of several
  // groups of rows has its own: (row_groups, batch * heads, tiles of columns, 2 tile * class of
  // head dimensions) in the order in which the threads hold them. nullptr: one tile of rows.
  float* column_parts;
  // The same of the rows: (column_groups, batch * heads, tiles of rows, 2 rows of a tile * class of
  // head dimensions). nullptr: one group of columns.
  float* row_parts;
};

// For each query: its log-sum-exp in units of log2, infinite where it sees no key, and
// rowsum(grad_out * out) - grad_lse.
struct RowStateProblem {
  struct Side {
    Rows out, grad_out;
    HeadSteps lse, grad_lse;
    float* state;
    int32_t time;
    int32_t constant;  // 1: a softmax over one step, whose weights no gradient changes
  } sides[2];
  int32_t batch, heads;
};

// log2 of the number of real steps of each chunk, -inf where there is none.
struct ChunkCountProblem {
  Steps mask;
  float* log_counts;  // (batch, chunks)
  int32_t batch, time, chunk_size, chunks;
};

// The columns' outputs of shared_forward, of what its groups of rows found.
struct MergeGroupsProblem {
  const float *parts, *part_sums;
  Rows out;
  float* lse;  // (batch, heads, time)
  int32_t batch, heads, time, row_groups;
  int32_t part_columns;  // of a row of the parts
};

// The sum over the batch of contiguous float32 gradients.
struct BatchSumProblem {
  const float* parts;
  void* sum;
  int64_t count;
  int32_t batch;
};

// The gradient of each head's slope, of what the blocks found, (batch, heads, blocks).
struct DecaySumProblem {
  const float* parts;
  float* sum;
  int32_t batch, heads, blocks;
};

}  // namespace mmer::cuda
