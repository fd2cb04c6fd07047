#include <algorithm>

#include "plan_chunks.h"
#include "plan_once_backward.h"
#include "plan_parts.h"

namespace mmer::cuda {

namespace {

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
  for (Owner& owner : problem.owners) set_tiles(owner, shape);
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(options.scale * log2_of_e);
  problem.grad_scale = static_cast<float>(options.scale);
  problem.extras = extras_of(options);
  const int64_t tiles = int64_t{problem.owners[0].tiles} + problem.owners[1].tiles;
  const int64_t parts =
      shape.columns / gradient_columns(shape.columns, shape.element_bytes, shape.extras);
  const BackwardSmem smem(shape.columns, shape.element_bytes, role != KernelRole::key_backward,
                          role != KernelRole::query_backward);
  return make_plan({role, options.element, shape.columns, shape.extras, 0},
                   tiles * shape.batch_heads() * parts, smem.config.threads(), smem.flags + flags,
                   problem);
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
  const int64_t tiles =
      tiles_of(problem.sides[0].time, state_rows) + tiles_of(problem.sides[1].time, state_rows);
  return small_plan(KernelRole::row_state, element, shape.batch_heads() * tiles, problem);
}

float* new_state(const SequenceView& sequence, const Shape& shape, const Allocate& allocate) {
  return static_cast<float*>(
      allocate(shape.batch_heads() * sequence.query.shape[2] * 2 * sizeof(float)));
}

}  // namespace

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
    const OnceBackwardForm once = once_backward_form(call, shape, device);
    if (once.row_class > 0) {
      for (Plan& plan : once_backward_plans(as_query, shape, options, once, allocate)) {
        plans.push_back(std::move(plan));
      }
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
