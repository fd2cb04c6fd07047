// What is computed before and after the attention kernels: one pass over what they read or wrote.
// Compiled once for each element type, MMER_ELEMENT.

#include "config.h"
#include "kernel_names.h"
#include "tile.h"
#include "visible.h"

namespace mmer::cuda {

namespace {

// A warp for each item; the lanes that have none to do are those of the last warps.
MMER_DEVICE int64_t warp_number() {
  return (static_cast<int64_t>(blockIdx.x) * small_kernel_threads + threadIdx.x) / 32;
}

MMER_DEVICE float read(const HeadSteps& values, int batch, int head, int step) {
  return values
      .data[batch * values.batch_stride + head * values.head_stride + step * values.time_stride];
}

// A block for block_rows rows of a head, of either sequence.
template <class Element>
MMER_DEVICE void row_state(const RowStateProblem& problem) {
  using Bits = typename Element::Bits;
  constexpr int lanes = row_lanes, piece_elements = 16 / Element::bytes;
  const int steps = problem.sides[0].time + problem.sides[1].time;
  const int blocks_a_head = (steps + block_rows - 1) / block_rows;
  const int batch_head = blockIdx.x / blocks_a_head;
  const int item = blockIdx.x % blocks_a_head * block_rows + threadIdx.x / lanes;
  // The lanes beyond the last row repeat it, as all of a warp have to shuffle.
  int step = min(item, steps - 1);
  const bool second = step >= problem.sides[0].time;
  const RowStateProblem::Side& side = problem.sides[second];
  if (second) step -= problem.sides[0].time;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;

  const int first_column = threadIdx.x % lanes * piece_elements;
  const Bits* out_gmem =
      head_rows<Bits>(side.out, batch, head) + step * side.out.time_stride + first_column;
  const Bits* grad_gmem =
      head_rows<Bits>(side.grad_out, batch, head) + step * side.grad_out.time_stride + first_column;
  const bool aligned = side.out.aligned && side.grad_out.aligned;
  float correction = 0.0f;
  for (int left = side.constant ? 0 : side.out.dim - first_column; left > 0;
       left -= lanes * piece_elements) {
    uint4 out, grad;
    if (aligned && left >= piece_elements) {
      out = *reinterpret_cast<const uint4*>(out_gmem);
      grad = *reinterpret_cast<const uint4*>(grad_gmem);
    } else {
      out = gather(out_gmem, left);
      grad = gather(grad_gmem, left);
    }
#pragma unroll
    for (int n = 0; n < piece_elements; ++n) {
      correction = fmaf(Element::unpack(element_of<Element>(out, n)),
                        Element::unpack(element_of<Element>(grad, n)), correction);
    }
    out_gmem += lanes * piece_elements;
    grad_gmem += lanes * piece_elements;
  }
  for (int n = lanes / 2; n > 0; n /= 2) correction += shuffle_xor(correction, n);
  if (threadIdx.x % lanes != 0 || item >= steps) return;
  const float lse = read(side.lse, batch, head, step);
  if (side.grad_lse.data) correction -= read(side.grad_lse, batch, head, step);
  // The gradient that arrives at a query without keys is dropped, NaN included.
  reinterpret_cast<float2*>(side.state)[static_cast<int64_t>(batch_head) * side.time + step] =
      lse > -infinity ? make_float2(lse * log2_e, correction) : make_float2(infinity, 0.0f);
}

MMER_DEVICE void chunk_counts(const ChunkCountProblem& problem) {
  const int64_t item = warp_number();
  const int batch = static_cast<int>(item / problem.chunks);
  const int chunk = static_cast<int>(item % problem.chunks);
  if (batch >= problem.batch) return;
  const Visibility visible(problem.mask, batch, problem.time);
  const int first = chunk * problem.chunk_size;
  const int end = min(first + problem.chunk_size, problem.time);
  int count = 0;
  for (int step = first + static_cast<int>(threadIdx.x % 32); step < end; step += 32) {
    count += visible(step);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) count += shuffle_xor(count, lanes);
  if (threadIdx.x % 32 == 0) {
    problem.log_counts[item] = count > 0 ? log2f(static_cast<float>(count)) : -infinity;
  }
}

// A block for block_rows rows of a head.
template <class Element>
MMER_DEVICE void merge_groups(const MergeGroupsProblem& problem) {
  using Bits = typename Element::Bits;
  constexpr int lanes = row_lanes, piece_elements = 16 / Element::bytes;
  const int blocks_a_head = (problem.time + block_rows - 1) / block_rows;
  const int batch_head = blockIdx.x / blocks_a_head;
  const int step = blockIdx.x % blocks_a_head * block_rows + threadIdx.x / lanes;
  if (step >= problem.time) return;
  // The groups' parts, (batch, heads, groups, time)
  const int64_t part_row = int64_t{batch_head} * problem.row_groups * problem.time + step;
  float2 found[most_row_groups];  // a sum and what was subtracted; nothing was where it is 0
  float weights[most_row_groups], largest = -infinity, total = 0.0f;
#pragma unroll
  for (int group = 0; group < most_row_groups; ++group) {
    found[group] = make_float2(0.0f, -infinity);
    if (group < problem.row_groups) {
      found[group] =
          reinterpret_cast<const float2*>(problem.part_sums)[part_row + group * problem.time];
    }
    if (found[group].x == 0.0f) found[group].y = -infinity;
    largest = fmaxf(largest, found[group].y);
  }
  const float reference = largest > -infinity ? largest : 0.0f;
#pragma unroll
  for (int group = 0; group < most_row_groups; ++group) {
    weights[group] = exp2_fast(found[group].y - reference);
    total += weights[group] * found[group].x;
  }
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  const int piece = threadIdx.x % lanes;
  if (piece == 0) {
    problem.lse[int64_t{batch_head} * problem.time + step] =
        total > 0.0f ? (reference + log2_fast(total)) * ln_2 : -infinity;
  }
  Bits* out_gmem = const_cast<Bits*>(head_rows<Bits>(problem.out, batch_head / problem.heads,
                                                     batch_head % problem.heads)) +
                   step * problem.out.time_stride;
#pragma unroll 1
  for (int column = piece * piece_elements; column < problem.out.dim;
       column += lanes * piece_elements) {
    float sums[piece_elements] = {};
#pragma unroll
    for (int group = 0; group < most_row_groups; ++group) {
      if (group >= problem.row_groups) break;
      const float4* part_gmem = reinterpret_cast<const float4*>(
          problem.parts + (part_row + group * problem.time) * problem.part_columns + column);
      const float factor = weights[group] * inverse;
#pragma unroll
      for (int n = 0; n < piece_elements / 4; ++n) {
        const float4 part = part_gmem[n];
        sums[4 * n] = fmaf(factor, part.x, sums[4 * n]);
        sums[4 * n + 1] = fmaf(factor, part.y, sums[4 * n + 1]);
        sums[4 * n + 2] = fmaf(factor, part.z, sums[4 * n + 2]);
        sums[4 * n + 3] = fmaf(factor, part.w, sums[4 * n + 3]);
      }
    }
    const uint4 words = Element::piece(sums);
    if (problem.out.aligned && column + piece_elements <= problem.out.dim) {
      store_global(out_gmem + column, words);
    } else {
#pragma unroll
      for (int n = 0; n < piece_elements; ++n) {
        if (column + n < problem.out.dim) out_gmem[column + n] = element_of<Element>(words, n);
      }
    }
  }
}

template <class Element>
MMER_DEVICE void batch_sum(const BatchSumProblem& problem) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * small_kernel_threads + threadIdx.x;
  if (place >= problem.count) return;
  float sum = 0.0f;
  for (int batch = 0; batch < problem.batch; ++batch) {
    sum += problem.parts[batch * problem.count + place];
  }
  static_cast<typename Element::Bits*>(problem.sum)[place] = Element::round(sum);
}

// A warp for each head.
MMER_DEVICE void decay_sum(const DecaySumProblem& problem) {
  const int64_t head = warp_number();
  if (head >= problem.heads) return;
  const int64_t count = static_cast<int64_t>(problem.batch) * problem.blocks;
  float sum = 0.0f;
  for (int64_t n = threadIdx.x % 32; n < count; n += 32) {
    const int64_t batch = n / problem.blocks, block = n % problem.blocks;
    sum += problem.parts[(batch * problem.heads + head) * problem.blocks + block];
  }
  sum = warp_total(sum);
  if (threadIdx.x % 32 == 0) problem.sum[head] = sum;
}

}  // namespace

#define MMER_SMALL(name, problem_type, call)                                                \
  extern "C" __global__ void __launch_bounds__(small_kernel_threads)                        \
      MMER_EXPAND_SMALL(name, MMER_ELEMENT)(const __grid_constant__ problem_type problem) { \
    call(problem);                                                                          \
  }
#define MMER_JOIN_SMALL(name, element) mmer_##name##_##element
#define MMER_EXPAND_SMALL(name, element) MMER_JOIN_SMALL(name, element)
MMER_SMALL(row_state, RowStateProblem, row_state<MMER_ELEMENT>)
MMER_SMALL(chunk_counts, ChunkCountProblem, chunk_counts)
MMER_SMALL(merge_groups, MergeGroupsProblem, merge_groups<MMER_ELEMENT>)
MMER_SMALL(batch_sum, BatchSumProblem, batch_sum<MMER_ELEMENT>)
MMER_SMALL(decay_sum, DecaySumProblem, decay_sum)

const void* MMER_FINDER(small_kernels)(const KernelId& kernel) {
#define MMER_FIND(name)  \
  case KernelRole::name: \
    return reinterpret_cast<const void*>(&MMER_EXPAND_SMALL(name, MMER_ELEMENT));
  switch (kernel.role) {
    MMER_FIND(row_state)
    MMER_FIND(chunk_counts)
    MMER_FIND(merge_groups)
    MMER_FIND(batch_sum)
    MMER_FIND(decay_sum)
    default:
      return nullptr;
  }
#undef MMER_FIND
}

}  // namespace mmer::cuda
