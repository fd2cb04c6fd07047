#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "config.h"

namespace mmer::cuda {

namespace {

constexpr double log2_of_e = 1.4426950408889634;
constexpr int64_t longest = int64_t{1} << 29;  // twice it, and a chunk more, still fit into 32 bits

int64_t tiles_of(int64_t steps, int64_t tile) {
  return (steps + tile - 1) / tile;
}

int32_t position(int64_t value) {
  if (value > longest) throw std::invalid_argument("a sequence is longer than 2**29 steps");
  return static_cast<int32_t>(value);
}

// What every kernel of a call shares.
struct Shape {
  int64_t batch, heads, dim;
  int columns;
  int element_bytes;
  bool extras;

  Config forward() const { return forward_config(columns, element_bytes); }
  Config backward() const { return backward_config(columns, element_bytes); }
  int64_t batch_heads() const { return batch * heads; }
};

Rows rows_of(const TensorView& tensor, const Shape& shape) {
  Rows rows{};
  if (!tensor.data) return rows;
  rows.data = tensor.data;
  rows.batch_stride = tensor.shape[0] == 1 && shape.batch != 1 ? 0 : tensor.strides[0];
  rows.head_stride = tensor.strides[1];
  rows.time_stride = tensor.strides[2];
  rows.dim = static_cast<int32_t>(tensor.shape[3]);
  const int64_t piece = 16 / shape.element_bytes;
  const auto whole_pieces = [&](int dimension) {
    return tensor.shape[dimension] <= 1 || tensor.strides[dimension] % piece == 0;
  };
  rows.aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && whole_pieces(0) &&
                 whole_pieces(1) && whole_pieces(2);
  return rows;
}

Steps steps_of(const TensorView& tensor) {
  if (!tensor.data) return {};
  return {tensor.data, tensor.shape[0] == 1 ? 0 : tensor.strides[0], tensor.strides[1]};
}

HeadSteps head_steps_of(const TensorView& tensor) {
  if (!tensor.data) return {};
  return {static_cast<const float*>(tensor.data), tensor.strides[0], tensor.strides[1],
          tensor.strides[2]};
}

Window all_steps(int64_t own_time, int64_t other_time) {
  return {position(std::max<int64_t>(own_time, 1)), position(std::max<int64_t>(other_time, 1)), 0,
          1, 0};
}

Extras extras_of(const CallOptions& options) {
  Extras extras{};
  extras.max_gap = static_cast<float>(options.max_gap);
  extras.decay = static_cast<const float*>(options.decay.data);
  extras.decay_stride = options.decay.strides[0];
  if (options.dropout_seed) {
    extras.seed = options.dropout_seed;
    // At least 1, which says that there is dropout; a word of 0 is dropped for it.
    extras.keep_threshold = std::max<uint64_t>(
        static_cast<uint64_t>(std::nearbyint(options.dropout_p * 4294967296.0)), 1);
    extras.keep_scale =
        options.dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - options.dropout_p)) : 0.0f;
  }
  return extras;
}

template <class Problem>
Plan make_plan(KernelId kernel, int64_t blocks, int threads, int64_t shared_bytes,
               const Problem& problem) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("a call needs more than 2**31 - 1 blocks of " +
                                kernel_name(kernel));
  }
  Plan plan{kernel, blocks, threads, shared_bytes, {}};
  plan.parameters.resize(sizeof(Problem));
  std::memcpy(plan.parameters.data(), &problem, sizeof(Problem));
  return plan;
}

template <class Problem>
Plan small_plan(KernelRole role, Element element, int64_t warps, const Problem& problem) {
  return make_plan({role, element, 0, false, 0}, tiles_of(warps, small_kernel_threads / 32),
                   small_kernel_threads, 0, problem);
}

// Of so many rows of each head.
template <class Problem>
Plan row_plan(KernelRole role, Element element, const Shape& shape, int64_t rows,
              const Problem& problem) {
  return make_plan({role, element, 0, false, 0}, shape.batch_heads() * tiles_of(rows, block_rows),
                   small_kernel_threads, 0, problem);
}

// Bytes of shared memory of the forward kernel: queries, two stages of keys and values, and of
// the keys' biases and times, and one flag of each tile where max_gap may skip it.
int64_t forward_shared_bytes(const Shape& shape, int64_t flags) {
  const Config config = shape.forward();
  const int64_t row_bytes = shape.columns * shape.element_bytes;
  return (config.rows() + 4 * config.tile) * row_bytes + 16 * config.tile + flags;
}

int64_t backward_shared_bytes(KernelRole role, const Shape& shape, int64_t flags) {
  const Config config = shape.backward();
  const int64_t row_bytes = shape.columns * shape.element_bytes;
  const int sides = role == KernelRole::shared_backward ? 3 : 2;
  return sides * (config.rows() + 2 * config.tile) * row_bytes + 32 * config.tile +
         4 * config.warps + flags;
}

int64_t flag_bytes(const Shape& shape, const CallOptions& options, const TensorView& times,
                   int64_t longer, int tile) {
  if (!shape.extras || !times.data || !(options.max_gap < INFINITY)) return 0;
  return tiles_of(longer, tile) + 1;
}

Direction direction_of(const SequenceView& queries, const Shape& shape) {
  const int64_t time = queries.query.shape[2];
  Direction direction{};
  direction.query = rows_of(queries.query, shape);
  direction.out = rows_of(queries.out, shape);
  direction.mask = steps_of(queries.mask);
  direction.times = steps_of(queries.times);
  direction.lse = static_cast<float*>(queries.lse.data);
  direction.time = position(time);
  direction.tiles = static_cast<int32_t>(tiles_of(time, shape.forward().rows()));
  direction.segment_count = 1;
  return direction;
}

Segment segment_of(const SequenceView& keys, const Shape& shape, uint32_t stream) {
  Segment segment{};
  segment.key = rows_of(keys.key, shape);
  segment.value = rows_of(keys.value, shape);
  segment.mask = steps_of(keys.mask);
  segment.times = steps_of(keys.times);
  segment.time = position(keys.key.shape[2]);
  segment.stream = stream;
  return segment;
}

Plan forward_plan(ForwardProblem& problem, const Shape& shape, const CallOptions& options,
                  int64_t flags) {
  const Config config = shape.forward();
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(options.scale * log2_of_e);
  problem.extras = extras_of(options);
  const int64_t tiles = int64_t{problem.directions[0].tiles} + problem.directions[1].tiles;
  return make_plan({KernelRole::directed_forward, options.element, shape.columns, shape.extras, 0},
                   tiles * shape.batch_heads(), config.threads(),
                   forward_shared_bytes(shape, flags), problem);
}

Shape shape_of(const PairCall& call) {
  const TensorView& a = call.a.query;
  const TensorView& b = call.b.query;
  Shape shape{};
  shape.batch = a.shape[0] == 1 ? b.shape[0] : a.shape[0];
  shape.heads = a.shape[1];
  shape.dim = std::max({a.shape[3], call.a.value.shape[3], call.b.value.shape[3]});
  shape.columns = head_class(static_cast<int>(shape.dim));
  shape.element_bytes = bytes_of(call.options.element);
  shape.extras = call.a.times.data || call.options.dropout_seed;
  return shape;
}

// S once, or once for each direction? By executed instructions and bytes of two calls
// (benchmarks.cuda_counters):
//
//   shorter side       form                       why
//   up to 384 rows     S once, a block a head     0.6 to 0.75 of the instructions; every tensor is
//                                                 read and written once
//   up to four groups  S once, a block a group,   0.7 of the instructions with two groups and 0.45
//   of rows            then merge_groups          of the bytes, although the columns' outputs pass
//                                                 through parts in float32
//   longer             both directions in one     the parts grow with the groups, and so does what
//                      launch, directed_forward   has to be merged
//   few heads          directed_forward           a block a head or group would leave more than
//                                                 half of the multiprocessors idle
//   times, dropout     directed_forward           extras are compiled for it alone
//   float32, more      directed_forward           no room for P beside the tiles, or no registers
//   than 128 columns                              for the sums of both sides
//
// A class whose tiles do not fit into a block's shared memory (8.6, 8.9, 12.0: 99 KiB) is left for
// a smaller one and more groups.
struct OnceForm {
  int groups;  // 0: S once is not for this call
  int rows_a_group;
  int row_class;
};

OnceForm once_form(const PairCall& call, const Shape& shape, const DeviceLimits& device) {
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  const int64_t rows = std::min(times[0], times[1]), columns = std::max(times[0], times[1]);
  if (!call.shared || shape.extras || rows == 0 || columns > longest) return {};
  // An infinitesimal scale could not hide rows (hidden_row).
  if (call.options.element == Element::float32 || std::abs(call.options.scale) < 1e-6) return {};
  OnceForm form{};
  for (int row_class : shared_row_classes) {
    if (!has_shared_class(row_class, shape.columns)) continue;
    const SharedSmem smem(row_class, shape.columns);
    if (smem.bytes(columns) > device.shared_bytes) continue;
    const int64_t groups = tiles_of(rows, row_class);
    if (groups > most_row_groups || 2 * shape.batch_heads() * groups < device.multiprocessors) {
      continue;
    }
    // Whole warps: what they would leave idle costs as much as what they do.
    const int64_t step = shared_config(row_class, shape.columns).row_tiles * warp_rows;
    const int64_t rows_a_group = tiles_of(tiles_of(rows, groups), step) * step;
    form = {static_cast<int>(groups), static_cast<int>(rows_a_group), row_class};
    if (groups == 1) break;
  }
  return form;
}

SharedSide shared_side(const SequenceView& sequence, const Shape& shape) {
  return {rows_of(sequence.query, shape),         rows_of(sequence.value, shape),
          rows_of(sequence.out, shape),           steps_of(sequence.mask),
          static_cast<float*>(sequence.lse.data), position(sequence.query.shape[2])};
}

std::vector<Plan> shared_forward_plans(const PairCall& call, const Shape& shape,
                                       const OnceForm& form, const Allocate& allocate) {
  const bool a_is_shorter = call.a.query.shape[2] <= call.b.query.shape[2];
  SharedForwardProblem problem{};
  problem.rows = shared_side(a_is_shorter ? call.a : call.b, shape);
  problem.columns = shared_side(a_is_shorter ? call.b : call.a, shape);
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(call.options.scale * log2_of_e);
  problem.row_groups = form.groups;
  problem.rows_a_group = form.rows_a_group;
  const SharedSide column_side = problem.columns;
  const int64_t columns = shape.batch_heads() * column_side.time;
  if (form.groups > 1) {
    const auto floats = [&](int64_t count) {
      return static_cast<float*>(allocate(form.groups * count * sizeof(float)));
    };
    problem.parts = floats(columns * shape.columns);
    problem.part_lse = floats(columns);
    problem.columns.out = {};
    problem.columns.lse = nullptr;
  }
  const SharedSmem smem(form.row_class, shape.columns);
  std::vector<Plan> plans{make_plan(
      {KernelRole::shared_forward, call.options.element, shape.columns, false, form.row_class},
      shape.batch_heads() * form.groups, shared_config(form.row_class, shape.columns).threads(),
      smem.bytes(column_side.time), problem)};
  if (form.groups > 1) {
    const MergeGroupsProblem merge{problem.parts,    problem.part_lse, column_side.out,
                                   column_side.lse,  problem.batch,    problem.heads,
                                   column_side.time, form.groups,      shape.columns};
    plans.push_back(
        row_plan(KernelRole::merge_groups, call.options.element, shape, column_side.time, merge));
  }
  return plans;
}

Shape shape_of(const ChunkedCall& call) {
  const TensorView& query = call.tokens.query;
  Shape shape{};
  shape.batch = query.shape[0];
  shape.heads = query.shape[1];
  shape.dim = std::max(query.shape[3], call.tokens.value.shape[3]);
  shape.columns = head_class(static_cast<int>(shape.dim));
  shape.element_bytes = bytes_of(call.options.element);
  shape.extras = call.summary_key.data || call.options.dropout_seed;
  return shape;
}

// Chunked attention in numbers that a longer lookback than the sequence does not overflow.
struct Chunks {
  int32_t size, count, lookback, lookahead, summaries, causal;

  explicit Chunks(const ChunkedCall& call) {
    const int64_t time = position(call.tokens.query.shape[2]);
    size = static_cast<int32_t>(std::min(call.chunk_size, std::max<int64_t>(time, 1)));
    count = static_cast<int32_t>(tiles_of(time, size));
    lookback = static_cast<int32_t>(std::min<int64_t>(call.lookback, count));
    lookahead = call.causal ? 0 : static_cast<int32_t>(std::min<int64_t>(call.lookahead, count));
    summaries = static_cast<int32_t>(std::min<int64_t>(call.max_summaries, count));
    causal = call.causal;
  }
  Window tokens_of_query() const { return {size, size, -lookback, lookahead + 1, causal}; }
  Window queries_of_token() const { return {size, size, -lookahead, lookback + 1, -causal}; }
  Window summaries_of_query() const { return {size, 1, -lookback - summaries, -lookback, 0}; }
  Window queries_of_summary() const { return {1, size, lookback + 1, lookback + summaries + 1, 0}; }
};

// Adds the plan that counts the real tokens of each chunk; returns where the counts will stand.
float* plan_counts(std::vector<Plan>& plans, const ChunkedCall& call, const Shape& shape,
                   const Chunks& chunks, const Allocate& allocate) {
  const int64_t count = shape.batch * chunks.count;
  float* log_counts = static_cast<float*>(allocate(count * sizeof(float)));
  const ChunkCountProblem problem{
      steps_of(call.tokens.mask),           log_counts,  static_cast<int32_t>(shape.batch),
      position(call.tokens.query.shape[2]), chunks.size, chunks.count};
  plans.push_back(small_plan(KernelRole::chunk_counts, call.options.element, count, problem));
  return log_counts;
}

SequenceView summaries_of(const ChunkedCall& call) {
  SequenceView summaries;
  summaries.key = call.summary_key;
  summaries.value = call.summary_value;
  return summaries;
}

// Gradients, in float32 first where a batch of one was broadcast.
class Gradients {
 public:
  Gradients(const Shape& shape, Element element, const Allocate& allocate)
      : shape_(shape), element_(element), allocate_(allocate) {}

  Rows target(const TensorView& gradient) {
    Rows rows = rows_of(gradient, shape_);
    if (!gradient.data || gradient.shape[0] != 1 || shape_.batch == 1) return rows;
    const int64_t row = gradient.shape[3], time = gradient.shape[2], heads = gradient.shape[1];
    const int64_t count = heads * time * row;
    rows = {};
    rows.data = allocate_(count * shape_.batch * sizeof(float));
    rows.batch_stride = count;
    rows.head_stride = time * row;
    rows.time_stride = row;
    rows.dim = static_cast<int32_t>(row);
    rows.wide = 1;
    const BatchSumProblem problem{static_cast<const float*>(rows.data), gradient.data, count,
                                  static_cast<int32_t>(shape_.batch)};
    sums_.push_back(small_plan(KernelRole::batch_sum, element_, tiles_of(count, 32), problem));
    return rows;
  }

  void finish(std::vector<Plan>& plans) const {
    plans.insert(plans.end(), sums_.begin(), sums_.end());
  }

 private:
  const Shape& shape_;
  Element element_;
  const Allocate& allocate_;
  std::vector<Plan> sums_;
};

Side side_of(const SequenceView& sequence, const TensorView& x, const Shape& shape,
             const float* state, uint32_t stream) {
  Side side{};
  side.x = rows_of(x, shape);
  side.value = rows_of(sequence.value, shape);
  side.grad_out = rows_of(sequence.grad_out, shape);
  side.mask = steps_of(sequence.mask);
  side.times = steps_of(sequence.times);
  side.state = state;
  side.time = position(x.shape[2]);
  side.stream = stream;
  return side;
}

void set_tiles(Owner& owner, const Shape& shape) {
  owner.tiles = static_cast<int32_t>(tiles_of(owner.own.time, shape.backward().rows()));
}

Plan backward_plan(KernelRole role, BackwardProblem& problem, const Shape& shape,
                   const CallOptions& options, int64_t flags) {
  const Config config = shape.backward();
  for (Owner& owner : problem.owners) set_tiles(owner, shape);
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(options.scale * log2_of_e);
  problem.grad_scale = static_cast<float>(options.scale);
  problem.extras = extras_of(options);
  const int64_t tiles = int64_t{problem.owners[0].tiles} + problem.owners[1].tiles;
  const int64_t parts =
      shape.columns / gradient_columns(shape.columns, shape.element_bytes, shape.extras);
  return make_plan({role, options.element, shape.columns, shape.extras, 0},
                   tiles * shape.batch_heads() * parts, config.threads(),
                   backward_shared_bytes(role, shape, flags), problem);
}

// Backward, S once is for a side of up to 64 steps: 0.9 of two calls' instructions at 50 x 375,
// where two owners of tiles take 1.6. With more rows the gradients of a and of its values do not
// stay in registers.
bool computes_once_backward(const PairCall& call, const Shape& shape, const DeviceLimits& device) {
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  // An infinitesimal scale could not hide rows (hidden_row).
  return call.shared && !shape.extras && shape.element_bytes == 2 &&
         shape.columns <= most_once_backward_columns && std::abs(call.options.scale) >= 1e-6 &&
         std::min(times[0], times[1]) > 0 && std::min(times[0], times[1]) <= once_backward_rows &&
         2 * shape.batch_heads() >= device.multiprocessors;
}

// `owners` holds both sequences, each with the gradients that are its own.
Plan once_backward_plan(const BackwardProblem& owners, const Shape& shape,
                        const CallOptions& options) {
  const bool a_is_shorter = owners.owners[0].own.time <= owners.owners[1].own.time;
  const Owner& rows = owners.owners[a_is_shorter ? 0 : 1];
  const Owner& columns = owners.owners[a_is_shorter ? 1 : 0];
  OnceBackwardProblem problem{};
  problem.rows = rows.own;
  problem.columns = columns.own;
  problem.grad_rows = rows.grad_x;
  problem.grad_value_rows = rows.grad_value;
  problem.grad_columns = columns.grad_x;
  problem.grad_value_columns = columns.grad_value;
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(options.scale * log2_of_e);
  problem.grad_scale = static_cast<float>(options.scale);
  return make_plan(
      {KernelRole::once_backward, options.element, shape.columns, false, once_backward_rows},
      shape.batch_heads(), once_backward_threads, OnceSmem(shape.columns).bytes, problem);
}

RowStateProblem::Side state_side(const SequenceView& sequence, int64_t key_time, const Shape& shape,
                                 float* state) {
  return {rows_of(sequence.out, shape),
          rows_of(sequence.grad_out, shape),
          head_steps_of(sequence.lse),
          head_steps_of(sequence.grad_lse),
          state,
          position(sequence.query.shape[2]),
          key_time == 1};
}

Plan state_plan(RowStateProblem& problem, const Shape& shape, Element element) {
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  const int64_t steps = int64_t{problem.sides[0].time} + problem.sides[1].time;
  return row_plan(KernelRole::row_state, element, shape, steps, problem);
}

float* new_state(const SequenceView& sequence, const Shape& shape, const Allocate& allocate) {
  return static_cast<float*>(
      allocate(shape.batch_heads() * sequence.query.shape[2] * 2 * sizeof(float)));
}

}  // namespace

std::string kernel_name(const KernelId& kernel) {
  static const char* const names[] = {"directed_forward", "shared_forward",  "query_backward",
                                      "key_backward",     "shared_backward", "once_backward",
                                      "row_state",        "chunk_counts",    "merge_groups",
                                      "batch_sum",        "decay_sum"};
  std::string name = std::string("mmer_") + names[static_cast<int>(kernel.role)];
  static const char* const elements[] = {"_float16", "_bfloat16", "_float32"};
  name += elements[static_cast<int>(kernel.element)];
  if (kernel.columns == 0) return name;
  if (kernel.rows > 0) {
    return name + "_" + std::to_string(kernel.columns) + "_rows" + std::to_string(kernel.rows);
  }
  return name + "_" + std::to_string(kernel.columns) + (kernel.extras ? "_extras" : "_plain");
}

std::vector<Plan> plan_forward(const PairCall& call, const DeviceLimits& device,
                               const Allocate& allocate) {
  const Shape shape = shape_of(call);
  const OnceForm once = once_form(call, shape, device);
  if (once.groups > 0) return shared_forward_plans(call, shape, once, allocate);
  ForwardProblem problem{};
  problem.directions[0] = direction_of(call.a, shape);
  problem.directions[1] = direction_of(call.b, shape);
  const int64_t time_a = call.a.query.shape[2], time_b = call.b.query.shape[2];
  problem.directions[0].segments[0] = segment_of(call.b, shape, 0);
  problem.directions[0].segments[0].window = all_steps(time_a, time_b);
  problem.directions[1].segments[0] = segment_of(call.a, shape, 1);
  problem.directions[1].segments[0].window = all_steps(time_b, time_a);
  if (shape.batch_heads() * (time_a + time_b) == 0) return {};
  const int64_t flags =
      flag_bytes(shape, call.options, call.a.times, std::max(time_a, time_b), shape.forward().tile);
  return {forward_plan(problem, shape, call.options, flags)};
}

std::vector<Plan> plan_forward(const ChunkedCall& call, const Allocate& allocate) {
  const Shape shape = shape_of(call);
  const Chunks chunks(call);
  std::vector<Plan> plans;
  if (shape.batch_heads() * chunks.count == 0) return plans;
  ForwardProblem problem{};
  Direction& direction = problem.directions[0];
  direction = direction_of(call.tokens, shape);
  direction.segments[0] = segment_of(call.tokens, shape, 0);
  direction.segments[0].window = chunks.tokens_of_query();
  if (call.summary_key.data) {
    direction.segment_count = 2;
    direction.segments[1] = segment_of(summaries_of(call), shape, 1);
    direction.segments[1].window = chunks.summaries_of_query();
    direction.segments[1].log_counts = plan_counts(plans, call, shape, chunks, allocate);
  }
  plans.push_back(forward_plan(problem, shape, call.options, 0));
  return plans;
}

std::vector<Plan> plan_backward(const PairCall& call, const DeviceLimits& device,
                                const Allocate& allocate) {
  const Shape shape = shape_of(call);
  const CallOptions& options = call.options;
  const SequenceView* sequences[2] = {&call.a, &call.b};
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  std::vector<Plan> plans;
  RowStateProblem states{};
  for (int n = 0; n < 2; ++n) {
    states.sides[n] =
        state_side(*sequences[n], times[1 - n], shape, new_state(*sequences[n], shape, allocate));
  }

  Gradients gradients(shape, options.element, allocate);
  const int64_t flags =
      flag_bytes(shape, options, call.a.times, std::max(times[0], times[1]), shape.backward().tile);
  BackwardProblem as_query{}, as_key{};
  DecaySumProblem decay{};
  for (int n = 0; n < 2; ++n) {
    const SequenceView& own = *sequences[n];
    const SequenceView& other = *sequences[1 - n];
    const float* own_state = states.sides[n].state;
    const float* other_state = states.sides[1 - n].state;
    const uint32_t own_stream = n, other_stream = 1 - n;
    Owner& query = as_query.owners[n];
    query.own = side_of(own, own.query, shape, own_state, own_stream);
    query.others[0] = side_of(other, other.key, shape, other_state, other_stream);
    query.windows[0] = all_steps(times[n], times[1 - n]);
    query.other_count = 1;
    query.grad_x = gradients.target(own.grad_query);
    Owner& key = as_key.owners[n];
    key = query;
    key.grad_value = gradients.target(own.grad_value);
    if (call.shared) {
      query.grad_value = key.grad_value;
    } else {
      key.own.x = rows_of(own.key, shape);
      key.others[0].x = rows_of(other.query, shape);
      key.grad_x = gradients.target(own.grad_key);
    }
  }
  if (options.grad_decay.data) {
    const int64_t rows = shape.backward().rows();
    const int64_t blocks_a = tiles_of(times[0], rows), blocks_b = tiles_of(times[1], rows);
    // One similarity has one gradient: in the shared form that of the first sequence's blocks.
    const int64_t blocks = blocks_a + (call.shared ? 0 : blocks_b);
    float* parts = static_cast<float*>(allocate(shape.batch_heads() * blocks * sizeof(float)));
    as_query.decay_blocks = static_cast<int32_t>(blocks);
    as_query.owners[0].grad_decay = parts;
    if (!call.shared) as_query.owners[1].grad_decay = parts;
    as_query.owners[1].first_decay_block = static_cast<int32_t>(blocks_a);
    decay = {parts, static_cast<float*>(options.grad_decay.data), static_cast<int32_t>(shape.batch),
             static_cast<int32_t>(shape.heads), static_cast<int32_t>(blocks)};
  }
  if (shape.batch_heads() * (times[0] + times[1]) > 0) {
    const KernelRole role = call.shared ? KernelRole::shared_backward : KernelRole::query_backward;
    plans.push_back(state_plan(states, shape, options.element));
    if (computes_once_backward(call, shape, device)) {
      plans.push_back(once_backward_plan(as_query, shape, options));
    } else {
      plans.push_back(backward_plan(role, as_query, shape, options, flags));
    }
    if (!call.shared) {
      plans.push_back(backward_plan(KernelRole::key_backward, as_key, shape, options, flags));
    }
  }
  if (options.grad_decay.data) {
    plans.push_back(small_plan(KernelRole::decay_sum, options.element, shape.heads, decay));
  }
  gradients.finish(plans);
  return plans;
}

std::vector<Plan> plan_backward(const ChunkedCall& call, const Allocate& allocate) {
  const Shape shape = shape_of(call);
  const CallOptions& options = call.options;
  const Chunks chunks(call);
  const bool summarised = call.summary_key.data != nullptr;
  std::vector<Plan> plans;
  if (shape.batch_heads() * chunks.count == 0) return plans;
  const SequenceView& tokens = call.tokens;
  const SequenceView summaries = summaries_of(call);
  const float* log_counts =
      summarised ? plan_counts(plans, call, shape, chunks, allocate) : nullptr;
  RowStateProblem states{};
  states.sides[0] =
      state_side(tokens, tokens.key.shape[2], shape, new_state(tokens, shape, allocate));
  const float* state = states.sides[0].state;
  plans.push_back(state_plan(states, shape, options.element));

  Gradients gradients(shape, options.element, allocate);
  const Side queries = side_of(tokens, tokens.query, shape, state, 0);
  const Side keys = side_of(tokens, tokens.key, shape, state, 0);
  Side summary_keys{};
  if (summarised) {
    summary_keys = side_of(summaries, call.summary_key, shape, nullptr, 1);
    summary_keys.log_counts = log_counts;
  }

  BackwardProblem as_query{}, as_key{};
  Owner& query = as_query.owners[0];
  query.own = queries;
  query.others[0] = keys;
  query.windows[0] = chunks.tokens_of_query();
  query.others[1] = summary_keys;
  query.windows[1] = chunks.summaries_of_query();
  query.other_count = summarised ? 2 : 1;
  query.grad_x = gradients.target(tokens.grad_query);
  plans.push_back(backward_plan(KernelRole::query_backward, as_query, shape, options, 0));

  Owner& key = as_key.owners[0];
  key.own = keys;
  key.others[0] = queries;
  key.windows[0] = chunks.queries_of_token();
  key.other_count = 1;
  key.grad_x = gradients.target(tokens.grad_key);
  key.grad_value = gradients.target(tokens.grad_value);
  if (summarised) {
    Owner& summary = as_key.owners[1];
    summary.own = summary_keys;
    summary.others[0] = queries;
    summary.others[0].stream = 1;
    summary.windows[0] = chunks.queries_of_summary();
    summary.other_count = 1;
    summary.grad_x = gradients.target(call.grad_summary_key);
    summary.grad_value = gradients.target(call.grad_summary_value);
  }
  plans.push_back(backward_plan(KernelRole::key_backward, as_key, shape, options, 0));
  gradients.finish(plans);
  return plans;
}

}  // namespace mmer::cuda
