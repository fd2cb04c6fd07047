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

// The two tensors of a head whose rows are multiplied for row_state.
template <class Element>
struct RowPairs {
  using Bits = typename Element::Bits;
  static constexpr int piece_elements = 16 / Element::bytes;
  const Bits *out_gmem, *grad_gmem;
  int64_t out_stride, grad_stride;
  int dim, last;
  bool aligned;

  MMER_DEVICE RowPairs(const RowStateProblem::Side& side, int batch, int head)
      : out_gmem(head_rows<Bits>(side.out, batch, head)),
        grad_gmem(head_rows<Bits>(side.grad_out, batch, head)),
        out_stride(side.out.time_stride),
        grad_stride(side.grad_out.time_stride),
        dim(side.out.dim),
        last(side.time - 1),
        aligned(side.out.aligned && side.grad_out.aligned) {}

  // rowsum(out * grad_out) of a row, by two lanes. Rows beyond the end repeat the last, as all
  // lanes of a warp have to shuffle.
  MMER_DEVICE float sum_of(int row) const {
    row = min(row, last);
    const int first_column = threadIdx.x % row_lanes * piece_elements;
    const Bits* out_row = out_gmem + row * out_stride + first_column;
    const Bits* grad_row = grad_gmem + row * grad_stride + first_column;
    float sum = 0.0f;
    for (int left = dim - first_column; left > 0; left -= row_lanes * piece_elements) {
      uint4 out, grad;
      if (aligned && left >= piece_elements) {
        out = *reinterpret_cast<const uint4*>(out_row);
        grad = *reinterpret_cast<const uint4*>(grad_row);
      } else {
        out = gather(out_row, left);
        grad = gather(grad_row, left);
      }
#pragma unroll
      for (int n = 0; n < piece_elements; ++n) {
        sum = fmaf(Element::unpack(element_of<Element>(out, n)),
                   Element::unpack(element_of<Element>(grad, n)), sum);
      }
      out_row += row_lanes * piece_elements;
      grad_row += row_lanes * piece_elements;
    }
    for (int n = row_lanes / 2; n > 0; n /= 2) sum += shuffle_xor(sum, n);
    return sum;
  }

  // Whether tensor cores can: they multiply 16 rows of one tensor by 16 of the other, of which the
  // diagonal is wanted, in far fewer instructions.
  MMER_DEVICE bool fits_mma() const { return Element::bytes == 2 && aligned && dim % 32 == 0; }
  // The same of 16 rows from `first` on. Both factors are read in the same order of the columns, 16
  // bytes a lane. Of the four lanes with rows r and r + 8 of the product, one has the diagonal of
  // both; r + 8 is given to the one beside it.
  MMER_DEVICE float diagonal_of(int first) const {
    const int row = first + static_cast<int>(threadIdx.x % 32 / 4), column = threadIdx.x % 4 * 8;
    const int64_t upper = min(row, last), lower = min(row + 8, last);
    const Bits* rows_gmem[4] = {
        out_gmem + upper * out_stride + column, out_gmem + lower * out_stride + column,
        grad_gmem + upper * grad_stride + column, grad_gmem + lower * grad_stride + column};
    float above[4] = {}, below[4] = {};
#pragma unroll 2
    for (int left = dim; left > 0; left -= 32) {
      uint4 pieces[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        pieces[n] = *reinterpret_cast<const uint4*>(rows_gmem[n]);
        rows_gmem[n] += 32;
      }
      multiply(above, pieces[0], pieces[1], pieces[2]);
      multiply(below, pieces[0], pieces[1], pieces[3]);
    }
    const bool odd = threadIdx.x / 4 % 2;
    const float of_lower = shuffle_xor(odd ? below[3] : below[2], 1);
    return diagonal_distance() == 0 ? (odd ? above[1] : above[0]) : of_lower;
  }
  static MMER_DEVICE int diagonal_distance() { return threadIdx.x % 4 ^ threadIdx.x / 8 % 4; }

 private:
  static MMER_DEVICE void multiply(float (&sums)[4], uint4 upper, uint4 lower, uint4 b) {
    if constexpr (Element::bytes == 2) {
      const uint32_t left[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32_t right[4] = {upper.z, lower.z, upper.w, lower.w};
      Element::mma(sums, left, b.x, b.y);
      Element::mma(sums, right, b.z, b.w);
    }
  }
};

// A warp for state_rows rows of a head, of one of the sequences.
template <class Element>
MMER_DEVICE void row_state(const RowStateProblem& problem) {
  constexpr int strips = state_rows / 16;
  const int first_tiles = (problem.sides[0].time + state_rows - 1) / state_rows;
  const int tiles = first_tiles + (problem.sides[1].time + state_rows - 1) / state_rows;
  const int item = static_cast<int>(warp_number());
  const int batch_head = item / tiles, tile = item % tiles;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  if (batch >= problem.batch) return;
  const bool second = tile >= first_tiles;
  const RowStateProblem::Side& side = problem.sides[second];
  const int first = (tile - (second ? first_tiles : 0)) * state_rows;
  const RowPairs<Element> pairs(side, batch, head);
  float corrections[strips] = {};
  int row = threadIdx.x % 32 / row_lanes;
  bool chosen = threadIdx.x % row_lanes == 0;
  if (pairs.fits_mma() && !side.constant) {
    row = threadIdx.x % 32 / 4 + (pairs.diagonal_distance() == 1 ? 8 : 0);
    chosen = pairs.diagonal_distance() < 2;
#pragma unroll
    for (int n = 0; n < strips; ++n) corrections[n] = pairs.diagonal_of(first + n * 16);
  } else if (!side.constant) {
#pragma unroll
    for (int n = 0; n < strips; ++n) corrections[n] = pairs.sum_of(first + n * 16 + row);
  }
  if (!chosen) return;
#pragma unroll
  for (int n = 0; n < strips; ++n) {
    const int step = first + n * 16 + row;
    if (step >= side.time) return;
    float correction = corrections[n];
    const float lse = read(side.lse, batch, head, step);
    if (side.grad_lse.data) correction -= read(side.grad_lse, batch, head, step);
    // The gradient that arrives at a query without keys is dropped, NaN included.
    reinterpret_cast<float2*>(side.state)[static_cast<int64_t>(batch_head) * side.time + step] =
        lse > -infinity ? make_float2(lse * log2_e, correction) : make_float2(infinity, 0.0f);
  }
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
