#include <algorithm>
#include <cmath>

#include "plan_chunks.h"
#include "plan_parts.h"

namespace mmer::cuda {

namespace {

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
                   ForwardSmem(shape.columns, shape.element_bytes).flags + flags, problem);
}

// S once, or once for each direction? By executed instructions and bytes of two calls
// (benchmarks.cuda_counters):
//
//   shorter side       form                       why
//   up to 384 rows     S once, a block a head     0.55 to 0.57 of the instructions; every tensor is
//                                                 read and written once
//   up to four groups  S once, a block a head     0.59 of the instructions with two groups and 0.34
//   of rows            that takes them in turns   of the bytes, although the columns' outputs pass
//                                                 through parts in float32
//   the same, fewer    S once, a block a group,   more blocks, where that makes them end sooner
//   heads              then merge_groups
//   longer             both directions in one     0.76 to 0.8 of the instructions; with the groups
//                      launch, directed_forward   grow the parts, and what has to be merged
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
  int turns;   // groups of a block
  int rows_a_group;
  int row_class;
};

// How often all multiprocessors get a block, the last time perhaps not all.
int64_t waves_of(int64_t blocks, const DeviceLimits& device) {
  return tiles_of(blocks, device.multiprocessors);
}

OnceForm once_form(const PairCall& call, const Shape& shape, const DeviceLimits& device) {
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  const int64_t rows = std::min(times[0], times[1]), columns = std::max(times[0], times[1]);
  if (!call.shared || shape.extras || rows == 0 || columns > longest) return {};
  // An infinitesimal scale could not hide rows (hidden_row).
  if (call.options.element == Element::float32 || std::abs(call.options.scale) < 1e-6) return {};
  OnceForm form{};
  for (int row_class : shared_row_classes) {
    const SharedClass block{row_class, shape.columns};
    if (!block.exists() || block.shared_bytes(columns) > device.shared_bytes) continue;
    const int64_t groups = tiles_of(rows, row_class);
    if (groups > most_row_groups || 2 * shape.batch_heads() * groups < device.multiprocessors) {
      continue;
    }
    const bool takes_turns =
        !block.is_short() && groups * waves_of(shape.batch_heads(), device) <=
                                 waves_of(groups * shape.batch_heads(), device);
    // Blocks should end together; in turns, all warps should have something to do.
    const int64_t rows_a_group =
        takes_turns ? row_class
                    : tiles_of(tiles_of(rows, groups), block.row_step()) * block.row_step();
    form = {static_cast<int>(groups), static_cast<int>(takes_turns ? groups : 1),
            static_cast<int>(rows_a_group), row_class};
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
  problem.blocks_a_head = form.groups / form.turns;
  problem.turns = form.turns;
  problem.rows_a_group = form.rows_a_group;
  // Each turn reads what the one before has left, and leaves its own, but for the last.
  problem.part_slots = form.turns > 2 ? 2 : 1;
  const SharedSide column_side = problem.columns;
  const int64_t part_columns =
      shape.batch_heads() * problem.blocks_a_head * problem.part_slots * column_side.time;
  if (form.groups > 1) {
    const auto floats = [&](int64_t count) {
      return static_cast<float*>(allocate(count * sizeof(float)));
    };
    problem.parts = floats(part_columns * shape.columns);
    problem.part_sums = floats(part_columns * 2);
  }
  if (problem.blocks_a_head > 1) {
    problem.columns.out = {};
    problem.columns.lse = nullptr;
  }
  const SharedClass block{form.row_class, shape.columns};
  std::vector<Plan> plans{
      make_plan({block.is_short() ? KernelRole::shared_short : KernelRole::shared_forward,
                 call.options.element, shape.columns, false, form.row_class},
                shape.batch_heads() * problem.blocks_a_head, block.threads(),
                block.shared_bytes(column_side.time), problem)};
  if (problem.blocks_a_head > 1) {
    const MergeGroupsProblem merge{problem.parts,    problem.part_sums, column_side.out,
                                   column_side.lse,  problem.batch,     problem.heads,
                                   column_side.time, form.groups,       shape.columns};
    plans.push_back(
        row_plan(KernelRole::merge_groups, call.options.element, shape, column_side.time, merge));
  }
  return plans;
}

}  // namespace

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

}  // namespace mmer::cuda
