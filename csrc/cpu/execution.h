// How a problem is run, whoever has the threads: its split into groups of rows, the memory that
// their parts are kept in, its tasks and merges. A `Parallel` calls work(range) for ranges that
// make up [0, count), side by side, none of them shorter than `grain` but where the count ends.

#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "problem.h"

namespace mmer::cpu {

// How many groups the rows of a head are split into: enough for many cores where there are few
// heads, but none so small that what a group adds is slow to merge.
inline int64_t group_count(const Options& options, int64_t rows) {
  constexpr int64_t tasks = 32, rows_a_group = 512;
  const int64_t heads = std::max<int64_t>(options.batch * options.heads, 1);
  const int64_t wanted = std::min((tasks + heads - 1) / heads, most_groups);
  return std::clamp<int64_t>(rows / rows_a_group, 1, wanted);
}

inline int64_t task_count(const Options& options) {
  return options.batch * options.heads * options.groups;
}

inline int64_t merge_blocks(const Options& options, int64_t steps) {
  return options.batch * options.heads * ((steps + merge_block - 1) / merge_block);
}

// How many tasks of `work` multiplications each are worth a thread of their own.
inline int64_t task_grain(int64_t work) {
  constexpr int64_t work_a_thread = 1 << 19;
  return std::max<int64_t>(1, work_a_thread / std::max<int64_t>(work, 1));
}

// The longer side has the rows: what is kept for the columns then stays in the cache. Where the
// shorter one is a single block it has the rows: the columns are met once then, and vectors of them
// are filled better; if only they are not so many that they are work for several threads.
inline SharedProblem arrange(const Options& options, const Side& a, const Side& b) {
  constexpr int64_t single_block = 64, columns_of_one_thread = 1024;
  const Side &longer = a.time >= b.time ? a : b, &shorter = a.time >= b.time ? b : a;
  const bool turned = shorter.time <= single_block && longer.time <= columns_of_one_thread;
  SharedProblem problem;
  problem.options = options;
  problem.rows = turned ? shorter : longer;
  problem.columns = turned ? longer : shorter;
  problem.options.groups = group_count(options, problem.rows.time);
  return problem;
}

// Memory that the groups of a problem keep their parts in; none for a single group. Heads that fall
// to one thread leave theirs untouched, so that it never becomes real memory.
class Partials {
 public:
  Partials(Options& options, int64_t floats_a_group) {
    if (options.groups == 1) return;
    is_merged_ = std::make_unique<bool[]>(options.batch * options.heads);
    options.is_merged = is_merged_.get();
    const std::size_t bytes = task_count(options) * floats_a_group * sizeof(float);
    memory_.reset(static_cast<float*>(::operator new(bytes, alignment)));
    options.partials = memory_.get();
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Delete {
    void operator()(float* memory) const { ::operator delete(memory, alignment); }
  };
  std::unique_ptr<bool[]> is_merged_;
  std::unique_ptr<float, Delete> memory_;
};

inline int64_t task_grain(const SharedProblem& problem) {
  const Side &rows = problem.rows, &columns = problem.columns;
  const int64_t dims = problem.options.head_dim + rows.value_dim + columns.value_dim;
  return task_grain(rows.time / problem.options.groups * columns.time * dims);
}

// Chunked attention with few groups is short; with many, every group has enough to do.
inline int64_t task_grain(const DirectedProblem& problem) {
  const int64_t dims = problem.options.head_dim + problem.value_dim;
  const int64_t rows = problem.time / problem.options.groups;
  return task_grain(rows * std::min(problem.segments[0].time, 2 * rows) * dims);
}

template <class Parallel>
void run_forward(const KernelTable& kernels, SharedProblem& problem, const Parallel& parallel) {
  const Partials partials(problem.options, kernels.shared_forward_partials(problem));
  parallel(task_count(problem.options), task_grain(problem),
           [&](Range tasks) { kernels.shared_forward(problem, tasks); });
  if (problem.options.groups == 1) return;
  parallel(merge_blocks(problem.options, problem.columns.time), 1,
           [&](Range blocks) { kernels.shared_forward_merge(problem, blocks); });
}

template <class Parallel>
void run_backward(const KernelTable& kernels, SharedProblem& problem, const Parallel& parallel) {
  const Partials partials(problem.options, kernels.shared_backward_partials(problem));
  parallel(task_count(problem.options), task_grain(problem),
           [&](Range tasks) { kernels.shared_backward(problem, tasks); });
  if (problem.options.groups == 1) return;
  parallel(merge_blocks(problem.options, problem.columns.time), 1,
           [&](Range blocks) { kernels.shared_backward_merge(problem, blocks); });
}

template <class Parallel>
void run_forward(const KernelTable& kernels, const DirectedProblem& problem,
                 const Parallel& parallel) {
  parallel(task_count(problem.options), task_grain(problem),
           [&](Range tasks) { kernels.directed_forward(problem, tasks); });
}

template <class Parallel>
void run_backward(const KernelTable& kernels, DirectedProblem& problem, const Parallel& parallel) {
  const Partials partials(problem.options, kernels.directed_backward_partials(problem));
  parallel(task_count(problem.options), task_grain(problem),
           [&](Range tasks) { kernels.directed_backward(problem, tasks); });
  if (problem.options.groups == 1) return;
  // The merge takes the steps of both segments in one row.
  const int64_t steps = problem.segments[0].time + problem.segments[1].time;
  parallel(merge_blocks(problem.options, steps), 1,
           [&](Range blocks) { kernels.directed_backward_merge(problem, blocks); });
}

}  // namespace mmer::cpu
