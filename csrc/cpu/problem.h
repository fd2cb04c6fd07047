// What the operators ask of the kernels: plain structures, no torch, no functions. Sources that are
// compiled once per instruction set share this header, so nothing here may become machine code.

#pragma once

#include <cstdint>

namespace mmer::cpu {

enum class ElementType { float32, float16, bfloat16 };

// A tensor (batch, heads, time, dim) seen through its strides, in elements. A broadcast batch has
// stride 0; the data of an absent tensor is null.
struct TensorView {
  void* data = nullptr;
  ElementType type = ElementType::float32;
  int64_t strides[4] = {};
};

// (batch, time), true = real; null data for no mask.
struct MaskView {
  const bool* data = nullptr;
  int64_t strides[2] = {};
};

// (batch, time) seconds.
struct TimesView {
  const float* data = nullptr;
  int64_t strides[2] = {};
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

// A weight is kept where its random word is at least the threshold, and multiplied by the scale.
struct Dropout {
  bool active = false;
  int64_t seed = 0;
  uint64_t threshold = 0;
  float scale = 1.0f;
};

// What both kinds of problem share. Scores are scale * query . key - decay[head] * |time - time|.
struct Options {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  float scale = 1.0f;
  bool timed = false;
  const float* decay = nullptr;
  float max_gap = 0.0f;
  Dropout dropout;
  // Rows of a head are split into this many groups, whatever the number of threads. Where they fall
  // to several threads, what they add to the same place is kept apart in `partials` and merged in
  // the groups' order; (batch * heads) is_merged says where that is not needed.
  int64_t groups = 1;
  float* partials = nullptr;
  bool* is_merged = nullptr;
  // (batch * heads * groups) gradient of the decay; null if it is not wanted.
  double* grad_decay = nullptr;
};

// One of the two sequences of shared cross-attention. `out` and `lse` are those of the softmax
// whose queries are on this side, which draws its dropout from `stream`.
struct Side {
  int64_t time = 0;
  int64_t value_dim = 0;
  uint32_t stream = 0;
  TensorView qk, value, out, lse;
  MaskView mask;
  TimesView times;
  TensorView grad_out, grad_lse, grad_qk, grad_value;
};

struct SharedProblem {
  Options options;
  Side rows, columns;
};

// (batch, chunks) numbers of real tokens.
struct CountsView {
  const int64_t* data = nullptr;
  int64_t strides[2] = {};
};

// Keys and values that the queries of a directed problem see. `log_counts` adds the logarithm of
// the number of real tokens in a chunk to the logit of the chunk's summary; without `counts`, the
// tokens are those of the queries' mask. The first summary is that of the chunk `first_chunk`.
struct Segment {
  int64_t time = 0;
  uint32_t stream = 0;
  bool log_counts = false;
  int64_t first_chunk = 0;
  CountsView counts;
  TensorView key, value;
  MaskView mask;
  TimesView times;
  TensorView grad_key, grad_value;
};

// Which keys a query sees: all of them if chunk_size is 0, else those of kernels/chunked. The first
// query comes at the time of the key `first_query`.
struct Chunking {
  int64_t chunk_size = 0;
  int64_t lookback = 0;
  int64_t lookahead = 0;
  bool causal = false;
  int64_t max_summaries = 0;
  int64_t first_query = 0;
};

// One direction of attention, from queries to tokens and, in chunked attention, to summaries.
struct DirectedProblem {
  Options options;
  Chunking chunking;
  int64_t time = 0;
  int64_t value_dim = 0;
  TensorView query, out, lse;
  MaskView mask;
  TimesView times;
  TensorView grad_out, grad_lse, grad_query;
  int64_t segment_count = 1;
  Segment segments[2];
};

// The kernels of one instruction set. A task is one group of rows of one batch and head, in the
// order (batch, head, group); what has several groups is merged by a second call, over the heads'
// blocks of `merge_block` steps.
constexpr int64_t merge_block = 128;
constexpr int64_t most_groups = 16;

struct KernelTable {
  int64_t (*shared_forward_partials)(const SharedProblem&);
  void (*shared_forward)(const SharedProblem&, Range tasks);
  void (*shared_forward_merge)(const SharedProblem&, Range blocks);
  int64_t (*shared_backward_partials)(const SharedProblem&);
  void (*shared_backward)(const SharedProblem&, Range tasks);
  void (*shared_backward_merge)(const SharedProblem&, Range blocks);
  void (*directed_forward)(const DirectedProblem&, Range tasks);
  int64_t (*directed_backward_partials)(const DirectedProblem&);
  void (*directed_backward)(const DirectedProblem&, Range tasks);
  void (*directed_backward_merge)(const DirectedProblem&, Range blocks);
  // Adds up the batch of `wide`, float32 (batch, heads, time, dim), into the one of `sum`.
  void (*sum_batch)(const TensorView& wide, const TensorView& sum, int64_t batch, int64_t time,
                    int64_t dim, Range heads);
};

}  // namespace mmer::cpu
