#include "plan_once_backward.h"

#include <algorithm>
#include <cmath>

namespace mmer::cuda {

namespace {

// What the busiest multiprocessor executes, in warp instructions of a pair of steps by
// benchmarks.cuda_counters: 0.9 with 128 rows, 1.0 with 64, 1.2 where S is computed for each row.
double cost_of(const OnceBackwardForm& form, const Shape& shape, int64_t rows, int64_t columns,
               int multiprocessors) {
  const double a_pair = form.row_class == 128 ? 0.9 : 1.0;
  // Warps beyond the last row do next to nothing.
  const int64_t rows_a_block = std::min<int64_t>(int64_t{form.tiles_a_group} * form.row_class,
                                                 tiles_of(rows, warp_rows) * warp_rows);
  const int64_t blocks = tiles_of(shape.batch_heads() * form.groups, multiprocessors);
  return static_cast<double>(blocks * rows_a_block) * static_cast<double>(columns) * a_pair;
}

double cost_of_owners(const Shape& shape, int64_t longer, int64_t shorter, int multiprocessors) {
  const double a_block = static_cast<double>(shape.backward().rows()) * static_cast<double>(longer);
  const double all = 2.0 * static_cast<double>(shape.batch_heads()) * static_cast<double>(longer) *
                     static_cast<double>(shorter);
  return std::max(a_block, all / multiprocessors) * 1.2;
}

}  // namespace

OnceBackwardForm once_backward_form(const PairCall& call, const Shape& shape,
                                    const DeviceLimits& device) {
  const int64_t times[2] = {call.a.query.shape[2], call.b.query.shape[2]};
  const int64_t shorter = std::min(times[0], times[1]), longer = std::max(times[0], times[1]);
  // An infinitesimal scale could not hide rows (hidden_row).
  if (!call.shared || shape.extras || shape.element_bytes != 2 || shorter == 0 ||
      shape.columns > most_once_backward_columns || std::abs(call.options.scale) < 1e-6) {
    return {};
  }
  OnceBackwardForm best{};
  double lowest = cost_of_owners(shape, longer, shorter, device.multiprocessors);
  for (int row_class : once_row_classes) {
    if (OnceSmem(row_class, shape.columns).bytes > device.shared_bytes) continue;
    const bool shorter_are_rows = shorter <= row_class;
    const int64_t rows = shorter_are_rows ? shorter : longer;
    OnceBackwardForm form{};
    form.row_class = row_class;
    form.a_is_rows = (times[0] <= times[1]) == shorter_are_rows;
    form.row_tiles = static_cast<int>(tiles_of(rows, row_class));
    for (int groups = 1; groups <= std::min(form.row_tiles, most_once_groups); ++groups) {
      form.tiles_a_group = static_cast<int>(tiles_of(form.row_tiles, groups));
      form.groups = static_cast<int>(tiles_of(form.row_tiles, form.tiles_a_group));
      const double cost =
          cost_of(form, shape, rows, shorter_are_rows ? longer : shorter, device.multiprocessors);
      if (cost >= lowest) continue;
      lowest = cost;
      best = form;
    }
    if (shorter_are_rows) break;
  }
  return best;
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
