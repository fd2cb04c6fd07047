#include "plan_once_backward.h"

#include <algorithm>
#include <cmath>

namespace mmer::cuda {

namespace {

// What the busiest multiprocessor executes, in warp instructions by benchmarks.cuda_counters: of a
// pair of steps 0.7 with 128 rows, 0.8 with 64, and 0.7 where S is computed for each row, twice
// then; of a warp for each tile of rows, and once for all. S for each row weighs half as much
// again: S once executes and reads less in all, which leaves more to whatever else the GPU has to
// do.
constexpr double owners_a_pair = 1.5 * 0.7, a_row_tile = 250.0, a_warp = 300.0;
// Of a step whose gradients are added up, and of each of its parts.
constexpr double a_step = 12.0, a_part = 5.5;
// What could have been executed while another kernel is launched, and for a byte of global memory.
constexpr double launch = 2000.0, a_byte = 1.0 / 16.0;
// So many bytes of parts stay in a cache.
constexpr double cached_bytes = 16e6;
// A block of fewer pairs would spend too much on its beginning and its end, and so would more than
// eight blocks a head of fewer than twice as many.
constexpr int64_t fewest_pairs = 1 << 14;
constexpr int64_t few_blocks = 8;

int64_t rows_of_block(const OnceBackwardForm& form, int64_t rows) {
  // Warps beyond the last row do next to nothing.
  return std::min<int64_t>(int64_t{form.row_tiles_a_group} * form.row_class,
                           tiles_of(rows, warp_rows) * warp_rows);
}

int64_t columns_of_block(const OnceBackwardForm& form, int64_t columns) {
  return std::min<int64_t>(int64_t{form.column_tiles_a_group} * once_config(form.row_class).tile,
                           columns);
}

bool is_allowed(const OnceBackwardForm& form, int64_t rows, int64_t columns) {
  const int64_t blocks = int64_t{form.row_groups} * form.column_groups;
  return blocks == 1 ||
         (rows_of_block(form, rows) * columns_of_block(form, columns) >= fewest_pairs &&
          blocks <= std::max(few_blocks, rows * columns / (2 * fewest_pairs)));
}

double cost_of(const OnceBackwardForm& form, const Shape& shape, int64_t rows, int64_t columns,
               int multiprocessors) {
  const double a_pair = form.row_class == 128 ? 0.7 : 0.8;
  const int warps = once_config(form.row_class).warps;
  const int64_t heads = shape.batch_heads();
  const int64_t blocks = tiles_of(heads * form.row_groups * form.column_groups, multiprocessors);
  const auto pairs =
      static_cast<double>(rows_of_block(form, rows) * columns_of_block(form, columns));
  const double executed = static_cast<double>(blocks) *
                          (pairs * a_pair + warps * (a_warp + a_row_tile * form.row_tiles_a_group));
  double merge = 0.0, parts = 0.0;
  const auto share = [&](int groups, int64_t steps) {
    if (groups == 1) return;
    merge += (a_step + a_part * groups) * static_cast<double>(heads * steps);
    parts += static_cast<double>(groups * heads * steps * 2 * shape.columns) * sizeof(float);
  };
  share(form.row_groups, columns);
  share(form.column_groups, rows);
  // What is compared, values and gradients of outputs; and the sums that wait for the next rows.
  const double read =
      static_cast<double>(heads * (form.column_groups * rows + form.row_tiles * columns) * 3 *
                          shape.columns) *
      shape.element_bytes;
  const double waiting = static_cast<double>(heads * (form.row_tiles - form.row_groups) * columns *
                                             4 * shape.columns) *
                         sizeof(float);
  const double once = std::max(executed, (read + waiting + parts) * a_byte / multiprocessors);
  if (merge == 0.0) return once;
  if (parts > cached_bytes) merge = std::max(merge, parts * a_byte);
  return once + launch + merge / multiprocessors;
}

double cost_of_owners(const Shape& shape, int64_t longer, int64_t shorter, int multiprocessors) {
  const Config config = shape.backward();
  const auto heads = static_cast<double>(shape.batch_heads());
  const double begins = config.threads() / 32 * (a_warp + a_row_tile);  // of each block
  const auto pairs = [&](int64_t rows, int64_t columns) {
    return static_cast<double>(rows) * static_cast<double>(columns) * owners_a_pair;
  };
  const auto blocks =
      static_cast<double>(tiles_of(longer, config.rows()) + tiles_of(shorter, config.rows()));
  const double all = heads * (2.0 * pairs(longer, shorter) + blocks * begins);
  return std::max(pairs(config.rows(), longer) + begins, all / multiprocessors);
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
    if (!once_exists(row_class, shape.columns) ||
        OnceSmem(row_class, shape.columns).bytes > device.shared_bytes) {
      continue;
    }
    const bool shorter_are_rows = shorter <= row_class;
    if (!shorter_are_rows && !OnceConfig::many_tiles(shape.columns)) continue;
    const int64_t rows = shorter_are_rows ? shorter : longer;
    const int64_t columns = shorter_are_rows ? longer : shorter;
    OnceBackwardForm form{};
    form.row_class = row_class;
    form.a_is_rows = (times[0] <= times[1]) == shorter_are_rows;
    form.row_tiles = static_cast<int>(tiles_of(rows, row_class));
    form.column_tiles = static_cast<int>(tiles_of(columns, once_config(row_class).tile));
    for (int row_groups = 1; row_groups <= std::min(form.row_tiles, most_once_parts);
         ++row_groups) {
      form.row_tiles_a_group = static_cast<int>(tiles_of(form.row_tiles, row_groups));
      form.row_groups = static_cast<int>(tiles_of(form.row_tiles, form.row_tiles_a_group));
      const int parts_left = row_groups > 1 ? most_once_parts - row_groups : most_once_parts;
      for (int column_groups = 1;
           column_groups == 1 || column_groups <= std::min(form.column_tiles, parts_left);
           ++column_groups) {
        form.column_tiles_a_group = static_cast<int>(tiles_of(form.column_tiles, column_groups));
        form.column_groups =
            static_cast<int>(tiles_of(form.column_tiles, form.column_tiles_a_group));
        if (!is_allowed(form, rows, columns)) break;
        const double cost = cost_of(form, shape, rows, columns, device.multiprocessors);
        if (cost >= lowest) continue;
        lowest = cost;
        best = form;
      }
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
  problem.sides[0] = rows.own;
  problem.sides[1] = columns.own;
  for (Side& side : problem.sides) {
    // A softmax over one step is constant: no value changes its weights. To find that from
    // differences would leave their rounding.
    if (side.time == 1) side.value.dim = 0;
  }
  for (int n = 0; n < 2; ++n) {
    const Side& side = problem.sides[n];
    // A mask of the other sequence hides gradients.
    problem.plain[n] = side.x.aligned && side.value.aligned && side.grad_out.aligned &&
                       !rows.own.mask.data && !columns.own.mask.data;
  }
  problem.grad_rows = rows.grad_x;
  problem.grad_value_rows = rows.grad_value;
  problem.grad_columns = columns.grad_x;
  problem.grad_value_columns = columns.grad_value;
  problem.batch = static_cast<int32_t>(shape.batch);
  problem.heads = static_cast<int32_t>(shape.heads);
  problem.scale = static_cast<float>(options.scale * log2_of_e);
  problem.grad_scale = static_cast<float>(options.scale);
  problem.row_tiles = form.row_tiles;
  problem.row_groups = form.row_groups;
  problem.row_tiles_a_group = form.row_tiles_a_group;
  problem.column_tiles = form.column_tiles;
  problem.column_groups = form.column_groups;
  problem.column_tiles_a_group = form.column_tiles_a_group;
  const OnceConfig config = once_config(form.row_class);
  const OnceSmem smem(form.row_class, shape.columns);
  const int64_t heads = shape.batch_heads();
  const auto new_parts = [&](int64_t groups, int64_t steps) {
    return static_cast<float*>(
        allocate(groups * heads * steps * 2 * shape.columns * sizeof(float)));
  };
  if (form.row_tiles > 1) {
    problem.column_parts = new_parts(form.row_groups, int64_t{form.column_tiles} * config.tile);
  }
  if (form.column_groups > 1) {
    problem.row_parts = new_parts(form.column_groups, int64_t{form.row_tiles} * form.row_class);
  }
  const auto plan = [&](KernelRole role, const OnceBackwardProblem& parameters, int64_t blocks,
                        int threads, int64_t shared_bytes) {
    return make_plan({role, options.element, shape.columns, false, form.row_class}, blocks, threads,
                     shared_bytes, parameters);
  };
  const bool rows_shared = form.column_groups > 1, columns_shared = form.row_groups > 1;
  OnceBackwardProblem merge = problem;
  if (columns_shared) {
    problem.grad_columns = problem.grad_value_columns = {};
  } else {
    merge.grad_columns = merge.grad_value_columns = {};
  }
  if (rows_shared) {
    problem.grad_rows = problem.grad_value_rows = {};
  } else {
    merge.grad_rows = merge.grad_value_rows = {};
  }
  std::vector<Plan> plans{plan(KernelRole::once_backward, problem,
                               heads * form.row_groups * form.column_groups, config.threads(),
                               smem.bytes)};
  const int64_t merge_warps = heads * (columns_shared * form.column_tiles * (config.warps / 2) +
                                       rows_shared * form.row_tiles * config.warps);
  if (merge_warps > 0) {
    plans.push_back(plan(KernelRole::merge_gradients, merge,
                         tiles_of(merge_warps, once_merge_warps), once_merge_warps * 32, 0));
  }
  return plans;
}

}  // namespace mmer::cuda
