// The tasks of a thread. A head whose groups all fall to one thread is put together there, in two
// pieces of memory; the parts of a head that is split between threads go to `partials`, and a
// second call merges them. Either way parts are added in the order of their groups, so that the
// bits of a result do not depend on the threads.
//
// A kernel has begin_head, run_group, and a Workspace with `total` and `part` of type Parts. Parts
// take the next group in (merge), go to the results (write), and do both for a split head
// (put_together).

#pragma once

#include "arena.h"
#include "steps.h"

namespace mmer::cpu {
namespace {

template <class Parts, class Problem>
inline int64_t partials_size(const Problem& problem) {
  Arena counting;
  Parts measured(counting, problem);
  return counting.used();
}

template <class Parts, class Problem>
inline Parts partials_of(const Problem& problem, int64_t task) {
  Arena partial(problem.options.partials + task * partials_size<Parts>(problem));
  return Parts(partial, problem);
}

template <class Kernel, class Problem>
inline void run_tasks(const Problem& problem, Range tasks) {
  using Parts = typename Kernel::Parts;
  const Options& options = problem.options;
  Scratch<typename Kernel::Workspace, Problem> scratch(problem);
  [[maybe_unused]] const typename Kernel::Session session;
  typename Kernel::Workspace& work = scratch.workspace;
  Kernel kernel(problem, work);
  int64_t begun = -1;
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    const Task task = task_of(options, number);
    const int64_t head = number / options.groups, first = head * options.groups;
    if (head != begun) kernel.begin_head(task);
    begun = head;
    if (first < tasks.begin || first + options.groups > tasks.end) {
      kernel.run_group(task, partials_of<Parts>(problem, number));
      continue;
    }
    kernel.run_group(task, task.group == 0 ? work.total : work.part);
    if (task.group > 0) work.total.merge(problem, task, Parts::all(problem), work.part);
    if (task.group + 1 < options.groups) continue;
    work.total.write(problem, task, Parts::all(problem));
    if (options.is_merged != nullptr) options.is_merged[head] = true;
  }
}

// Merges the blocks of the heads that were split.
template <class Parts, class Problem>
inline void merge_blocks(const Problem& problem, Range blocks) {
  const int64_t groups = problem.options.groups;
  const Range all = Parts::all(problem);
  const int64_t blocks_a_head = (all.end - all.begin + merge_block - 1) / merge_block;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t head = block / blocks_a_head;
    if (problem.options.is_merged[head]) continue;
    const int64_t first = all.begin + block % blocks_a_head * merge_block;
    const Range steps{first, smaller(first + merge_block, all.end)};
    Parts::put_together(problem, task_of(problem.options, head * groups), steps);
  }
}

}  // namespace
}  // namespace mmer::cpu
