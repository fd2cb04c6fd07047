#include "plan_once_backward.h"

#include <algorithm>
#include <cmath>

namespace mmer::cuda {

OnceBackwardForm once_backward_form(const PairCall& call, const Shape& shape,
                                    const DeviceLimits& device) {
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  const int64_t shorter = std::min(times[0], times[1]);
  // An infinitesimal scale could not hide rows (hidden_row).
  if (!call.shared || shape.extras || shape.element_bytes != 2 || shorter == 0 ||
      shape.columns > most_once_backward_columns || std::abs(call.options.scale) < 1e-6) {
    return {};
  }
  OnceBackwardForm form{};
  for (int row_class : once_row_classes) {
    if (OnceSmem(row_class, shape.columns).bytes <= device.shared_bytes) form.row_class = row_class;
    if (shorter <= form.row_class) break;
  }
  if (form.row_class == 0) return {};
  const bool shorter_are_rows = shorter <= form.row_class;
  form.a_is_rows = (times[0] <= times[1]) == shorter_are_rows;
  form.row_tiles = static_cast<int>(tiles_of(times[form.a_is_rows ? 0 : 1], form.row_class));
  // The tiles that the busiest multiprocessor does, one block after the other.
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int groups = 1; groups <= std::min(form.row_tiles, most_once_groups); ++groups) {
    const int64_t tiles_a_group = tiles_of(form.row_tiles, groups);
    const int64_t busiest = tiles_of(shape.batch_heads() * tiles_of(form.row_tiles, tiles_a_group),
                                     device.multiprocessors) *
                            tiles_a_group;
    if (busiest >= fewest) continue;
    fewest = busiest;
    form.tiles_a_group = static_cast<int>(tiles_a_group);
    form.groups = static_cast<int>(tiles_of(form.row_tiles, tiles_a_group));
  }
  if (2 * shape.batch_heads() * form.groups < device.multiprocessors) return {};
  return form;
}

std::vector<Plan> once_backward_plans(const BackwardProblem& owners, const Shape& shape,
                                      const CallOptions& options, const OnceBackwardForm& form,
                                      const Allocate& allocate) {
  const Owner& rows = owners.owners[form.a_is_rows ? 0 : 1];
  const Owner& columns = owners.owners[form.a_is_rows ? 1 : 0];
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
  problem.row_tiles = form.row_tiles;
  problem.groups = form.groups;
  problem.tiles_a_group = form.tiles_a_group;
  const OnceConfig config = once_config(form.row_class);
  const OnceSmem smem(form.row_class, shape.columns);
  const int64_t tiles = shape.batch_heads() * tiles_of(columns.own.time, config.tile);
  if (form.row_tiles > 1) {
    problem.parts = static_cast<float*>(
        allocate(form.groups * tiles * 2 * config.tile * shape.columns * sizeof(float)));
  }
  const auto plan = [&](KernelRole role, int64_t blocks, int64_t shared_bytes) {
    return make_plan({role, options.element, shape.columns, false, form.row_class}, blocks,
                     config.threads(), shared_bytes, problem);
  };
  const int64_t blocks = shape.batch_heads() * form.groups;
  if (form.groups == 1) return {plan(KernelRole::once_backward, blocks, smem.bytes)};
  problem.grad_columns = problem.grad_value_columns = {};
  std::vector<Plan> plans{plan(KernelRole::once_backward, blocks, smem.bytes)};
  problem.grad_columns = columns.grad_x;
  problem.grad_value_columns = columns.grad_value;
  problem.grad_rows = problem.grad_value_rows = {};
  plans.push_back(plan(KernelRole::merge_gradients, tiles, 2 * smem.tile_bytes));
  return plans;
}

}  // namespace mmer::cuda
