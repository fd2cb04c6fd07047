// The shared forward where a block's rows of the shorter sequence a are at most 64.
//
// A warp takes strips of 16 steps of b, and all rows of a for each: S^T (16, 64). So a strip's sums
// and its out_b are complete in the registers of one warp, which loads its strips itself. out_a is
// added up over the strips in registers, too; two warps exchange what they have of P, so that each
// needs to hold one half of the value dimension.
//
// P^T, as the accumulators hold it, is the left factor of out_b = P^T v_a; transposed by movmatrix
// it is that of out_a = P v_b.

#pragma once

#include "config.h"
#include "shared_results.h"

namespace mmer::cuda {

template <class ElementType, int column_class>
struct ShortBlock {
  using Element = ElementType;
  static constexpr int columns = column_class, rows = short_rows, warps = short_warps;
  static constexpr int threads = warps * 32, row_tiles = rows / 16;
  static constexpr int pairs = warps / 2, half_columns = columns / 2;
  // Of a column's output a warp has all.
  static constexpr int warp_values = columns, first_value = 0;
  static constexpr ShortSmem layout() { return ShortSmem(columns); }
  using HeadTile = Tile<Element, columns>;
  using Places = LanePlaces<Element, columns>;

  const SharedForwardProblem& problem;
  const SharedSide &row_side, &column_side;
  const float scale;
  const int lane, warp, quad, first_of_eight;
  const int pair, half;  // the two warps of a pair have a half of the values each
  const int row_group, batch_head, batch, head;
  const int block_row, row_count, strip_count;
  const HiddenRows hidden;

  unsigned char* const smem;
  const uint32_t base;
  float *const row_bias_smem, *const row_reference_smem;
  float *const row_parts_smem, *const warp_parts_smem;  // (warps, rows); a float each
  float* const bias_smem;                               // of each column

  const Visibility row_mask, column_visible;
  const PairLoader<Element, columns, 32> strip_loader;
  // Where a lane reads: rows of a for the scores, rows of v_a, and 16 rows of a strip.
  const uint32_t a_place, value_a_place, strip_place;
  const uint32_t value_place;  // the same of v_b, this warp's half of the values
  const uint32_t exchange_place;  // of this lane, in the first buffer
  const uint32_t row_bias_place;  // of this thread's rows
  // Of a strip's columns, the one that this lane finishes: two of a quad's lanes have one each.
  const int lane_column;

  MMER_DEVICE explicit ShortBlock(const SharedForwardProblem& problem)
      : problem(problem),
        row_side(problem.rows),
        column_side(problem.columns),
        scale(problem.scale),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        quad(lane % 4),
        first_of_eight(lane / 4),
        pair(warp / 2),
        half(warp % 2),
        row_group(blockIdx.x % problem.row_groups),
        batch_head(blockIdx.x / problem.row_groups),
        batch(batch_head / problem.heads),
        head(batch_head % problem.heads),
        block_row(row_group * problem.rows_a_group),
        row_count(min(row_side.time - block_row, problem.rows_a_group)),
        strip_count((column_side.time + 15) / 16),
        hidden(problem.scale),
        smem(dynamic_smem()),
        base(shared_address(smem)),
        row_bias_smem(reinterpret_cast<float*>(smem + layout().row_bias)),
        row_reference_smem(reinterpret_cast<float*>(smem + layout().row_reference)),
        row_parts_smem(reinterpret_cast<float*>(smem + layout().row_parts)),
        warp_parts_smem(reinterpret_cast<float*>(smem + layout().warp_parts)),
        bias_smem(reinterpret_cast<float*>(smem + layout().column_bias)),
        row_mask(row_side.mask, batch, block_row + row_count),
        column_visible(column_side.mask, batch, column_side.time),
        strip_loader(column_side.x, column_side.value, column_visible, batch, head),
        a_place(kept(HeadTile{base}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2))),
        value_a_place(kept(HeadTile{base + layout().value_a}.piece(lane % 16, lane / 16))),
        strip_place(kept(HeadTile{base + layout().strips}.piece(lane % 16, lane / 16))),
        value_place(kept(HeadTile::advance(strip_place + layout().stage_bytes / 2,
                                           half_columns < 16 ? 0 : half * (half_columns / 8)))),
        exchange_place(kept(base + layout().exchange + lane * 16)),
        row_bias_place(kept(base + layout().row_bias + quad * 8)),
        lane_column(kept(static_cast<uint32_t>(lane % 2 * 8 + first_of_eight))) {}

  MMER_DEVICE bool whole_rows() const { return rows <= row_count && !row_side.mask.data; }
  // Of the row block of a thread's n-th accumulator, the first of its two.
  MMER_DEVICE int row_pair(int n) const { return n * 8 + quad * 2; }

  // Of the rows that this thread ends with, in two tiles.
  MMER_DEVICE int last_row(int m, int half) const {
    return pair * 32 + m * 16 + half * 8 + first_of_eight;
  }

  // a, v_a (rows, columns)
  MMER_DEVICE void load_rows() const {
    const PairLoader<Element, columns, threads> loader(row_side.x, row_side.value, row_mask, batch,
                                                       head);
    loader.template load<rows, layout().value_a>(
        HeadTile{base}, block_row,
        [&](int step) { return row_bias_smem[step - block_row] == 0.0f; });
  }

  // Each warp has two stages of b and v_b (16, columns): how far from the first is a strip's?
  static MMER_DEVICE uint32_t stage(int strip) {
    return strip % (2 * warps) * layout().stage_bytes;
  }
  MMER_DEVICE uint32_t strip_address(uint32_t stage) const {
    return base + layout().strips + stage;
  }
  MMER_DEVICE void load_strip(int strip, uint32_t stage) const {
    if (strip < strip_count) {
      strip_loader.template load<16, layout().stage_bytes / 2>(
          HeadTile{strip_address(stage)}, strip * 16,
          [&](int column) { return bias_smem[column] == 0.0f; });
    }
    cp_async_commit();
  }
  // The two warps of a pair.
  MMER_DEVICE void synchronize_pair() const {
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
  }
  // Where P of the strip in a stage stands, as left factor: (row_tiles, lanes, 4) words.
  MMER_DEVICE uint32_t exchanged(uint32_t stage) const {
    constexpr int stage_bytes = layout().stage_bytes, bytes = layout().exchange_bytes;
    return exchange_place + (stage_bytes < bytes ? stage * (bytes / stage_bytes)
                                                 : stage / (stage_bytes / bytes));
  }

  // scores (16, count) = b (16, columns) in a stage times the transpose of a's rows from `first_row`
  // on, (count, columns)
  template <int count>
  MMER_DEVICE void multiply_strip(float (&scores)[count / 8][4], uint32_t stage,
                                  int first_row) const {
    set_zero(scores);
    if (!whole_rows()) {
      unrolled<count / 8>([&](auto n) {
        const float2 starts = load_shared_pair<n * 32>(row_bias_place + first_row * 4);
        scores[n][0] = scores[n][2] = starts.x;
        scores[n][1] = scores[n][3] = starts.y;
      });
    }
    const Places row_places(a_place + first_row * Places::row_bytes);
    const uint32_t first = strip_place + stage;
    multiply_transposed<count>(scores, row_places, [&](int step, uint32_t (&b)[4]) {
      ldmatrix(b, HeadTile::advance(first, step * 2));
    });
  }

 private:
  static MMER_DEVICE unsigned char* dynamic_smem() {
    extern __shared__ __align__(128) unsigned char block_smem[];
    return block_smem;
  }
};

// What a warp adds up over its strips: out_a, and the sums of a thread's 16 rows over its columns.
template <class Block>
struct ShortSums {
  float out_rmem[Block::row_tiles][Block::half_columns / 8][4];
  float row_sum[Block::rows / 4];

  MMER_DEVICE void set_zero() {
#pragma unroll
    for (int m = 0; m < Block::row_tiles; ++m) mmer::cuda::set_zero(out_rmem[m]);
#pragma unroll
    for (float& sum : row_sum) sum = 0.0f;
  }
};

// Of this thread's columns, what is added to the scores of one.
template <class Block>
MMER_DEVICE void load_column_bias(float (&bias)[2], const Block& block, int strip) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bias[half] = block.bias_smem[strip * 16 + half * 8 + block.first_of_eight];
  }
}

// The maximum of the first strip of S: each warp looks at 16 rows.
template <class Block>
MMER_DEVICE float find_short_reference(const Block& block) {
  using Range = SafeRange<typename Block::Element>;
  float scores_rmem[2][4], bias[2], largest = -infinity;
  block.template multiply_strip<16>(scores_rmem, 0, block.warp * 16);
  load_column_bias(bias, block, 0);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      largest = fmaxf(largest, fmaf(scores_rmem[n][e], block.scale, bias[e / 2]));
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) largest = fmaxf(largest, shuffle_xor(largest, lanes));
  if (block.lane == 0) block.warp_parts_smem[block.warp] = largest;
  __syncthreads();
#pragma unroll
  for (int n = 0; n < Block::warps; ++n) largest = fmaxf(largest, block.warp_parts_smem[n]);
  return largest > block.hidden.nothing_seen ? largest - Range::first_maximum : 0.0f;
}

// The maximum of each row over all columns, for the exact pass.
template <class Block>
MMER_DEVICE void find_row_maxima(const Block& block) {
  float row_max[Block::rows / 4];
#pragma unroll
  for (float& x : row_max) x = -infinity;
#pragma unroll 1
  for (int strip = block.warp; strip < block.strip_count; strip += Block::warps) {
    __syncwarp();
    block.load_strip(strip, block.stage(strip));
    cp_async_wait<0>();
    __syncwarp();
    float scores_rmem[Block::rows / 8][4], bias[2];
    block.template multiply_strip<Block::rows>(scores_rmem, block.stage(strip), 0);
    load_column_bias(bias, block, strip);
#pragma unroll
    for (int n = 0; n < Block::rows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& largest = row_max[2 * n + e % 2];
        largest = fmaxf(largest, fmaf(scores_rmem[n][e], block.scale, bias[e / 2]));
      }
    }
  }
  float* const warp_smem = block.row_parts_smem + block.warp * Block::rows;
#pragma unroll
  for (int n = 0; n < Block::rows / 4; ++n) {
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      row_max[n] = fmaxf(row_max[n], shuffle_xor(row_max[n], lanes));
    }
    if (block.first_of_eight == 0) warp_smem[block.row_pair(n / 2) + n % 2] = row_max[n];
  }
  __syncthreads();
  const int row = threadIdx.x;
  if (row < Block::rows) {
    float largest = -infinity;
#pragma unroll
    for (int n = 0; n < Block::warps; ++n) {
      largest = fmaxf(largest, block.row_parts_smem[n * Block::rows + row]);
    }
    block.row_reference_smem[row] = largest > block.hidden.nothing_seen ? largest : 0.0f;
  }
  __syncthreads();
}

// P^T (16, rows) of a strip, rounded, two neighbouring rows a word.
template <class Block>
struct ShortWeights {
  static constexpr int words = Block::rows / 8;
  uint32_t of_columns[words][2], of_rows[words][2];
  float column_sum[2], bias[2], point[2];  // of each column

  // `exact`: each direction has an exponential of its own, from the maxima of its rows or columns.
  template <bool exact>
  MMER_DEVICE void weigh(const Block& block, ShortSums<Block>& own, int strip, uint32_t stage,
                         float reference) {
    using Element = typename Block::Element;
    float scores_rmem[words][4];
    block.template multiply_strip<Block::rows>(scores_rmem, stage, 0);
    load_column_bias(bias, block, strip);
    point[0] = point[1] = exact ? -infinity : reference;
    if constexpr (exact) {
#pragma unroll
      for (int n = 0; n < words; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float logit = fmaf(scores_rmem[n][e], block.scale, bias[e / 2]);
          point[e / 2] = fmaxf(point[e / 2], logit);
        }
      }
#pragma unroll
      for (float& largest : point) {
        largest = row_maximum(largest);
        if (!(largest > block.hidden.nothing_seen)) largest = 0.0f;
      }
    }
    const float summand[2] = {bias[0] - point[0], bias[1] - point[1]};
#pragma unroll
    for (int n = 0; n < words; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float of_column[2], of_row[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = scores_rmem[n][2 * half + e];
          of_column[e] = of_row[e] = exp2_fast(fmaf(score, block.scale, summand[half]));
          if constexpr (exact) {
            const float row_point = block.row_reference_smem[block.row_pair(n) + e];
            of_row[e] = exp2_fast(fmaf(score, block.scale, bias[half]) - row_point);
          }
          column_sum[half] = n + e == 0 ? of_column[0] : column_sum[half] + of_column[e];
          own.row_sum[2 * n + e] += of_row[e];
        }
        of_columns[n][half] = Element::pack(of_column[0], of_column[1]);
        of_rows[n][half] = exact ? Element::pack(of_row[0], of_row[1]) : of_columns[n][half];
      }
    }
  }
};

// out_a (rows, half of the columns) += P (rows, 16) v_b (16, half of the columns) in a stage
template <class Block>
MMER_DEVICE void add_strip(ShortSums<Block>& own, const Block& block, uint32_t stage,
                           const uint32_t (&weights)[Block::row_tiles][4]) {
  using Element = typename Block::Element;
  const auto multiply = [&](int n, uint32_t b_low, uint32_t b_high) {
#pragma unroll
    for (int m = 0; m < Block::row_tiles; ++m) {
      Element::mma(own.out_rmem[m][n], weights[m], b_low, b_high);
    }
  };
  const uint32_t place = block.value_place + stage;
  uint32_t b[4];
  if constexpr (Block::half_columns == 8) {
    ldmatrix_transposed(b, place);
    multiply(0, block.half ? b[2] : b[0], block.half ? b[3] : b[1]);
  } else {
#pragma unroll
    for (int n = 0; n < Block::half_columns / 16; ++n) {
      ldmatrix_transposed(b, Block::HeadTile::advance(place, n * 2));
      multiply(2 * n, b[0], b[1]);
      multiply(2 * n + 1, b[2], b[3]);
    }
  }
}

// The steps of a strip, of which a warp has all: log-sum-exp and out_b; returns whether a sum left
// the safe range.
template <class Block>
MMER_DEVICE bool finish_strip(const Block& block, const ColumnResults<Block>& results, int strip,
                              uint32_t stage, float (&out_rmem)[Block::columns / 8][4],
                              const ShortWeights<Block>& weights) {
  const float sums[2] = {row_total(weights.column_sum[0]), row_total(weights.column_sum[1])};
  const bool second = block.lane & 1;
  const float sum = second ? sums[1] : sums[0];
  const float bias = second ? weights.bias[1] : weights.bias[0];
  const int column = strip * 16 + block.lane_column;
  const bool unsafe = (bias == 0.0f) & !is_safe<typename Block::Element>(sum);
  if (block.quad < 2 && column < block.column_side.time) {
    results.store_lse(column, sum, second ? weights.point[1] : weights.point[0]);
  }
  const float column_inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  const int first_lane = block.lane & 28;
  const float inverse[2] = {shuffle(column_inverse, first_lane),
                            shuffle(column_inverse, first_lane + 1)};
  clear_rows(out_rmem, inverse);
  results.store(block.strip_address(stage), strip * 16,
                [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
  return unsafe;
}

// A pass over the strips, the first of which is being loaded.
template <bool exact, class Block>
MMER_DEVICE bool attend_strips(const Block& block, ShortSums<Block>& own,
                               const ColumnResults<Block>& results, float reference) {
  using Element = typename Block::Element;
  constexpr int columns = Block::columns, row_tiles = Block::row_tiles;
  bool unsafe = false;
  own.set_zero();
#pragma unroll 1
  for (int strip = block.warp; strip < block.strip_count + block.warp; strip += Block::warps) {
    const bool exists = strip < block.strip_count;
    const uint32_t stage = kept(block.stage(strip));
    cp_async_wait<0>();
    __syncwarp();
    ShortWeights<Block> weights;
    uint32_t transposed[row_tiles][4];
    if (exists) {
      weights.template weigh<exact>(block, own, strip, stage, reference);
      unrolled<row_tiles>([&](auto m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          transposed[m][n] = movmatrix_transposed(weights.of_rows[2 * m + n % 2][n / 2]);
        }
        store_shared<m * 512>(block.exchanged(stage), words_of(transposed[m]));
      });
    }
    block.synchronize_pair();
    block.load_strip(strip + Block::warps, stage ^ Block::warps * Block::layout().stage_bytes);
    if (exists) {
      add_strip(own, block, stage, transposed);
      // out_b (16, columns) = P^T (16, rows) v_a (rows, columns)
      float out_rmem[columns / 8][4];
      set_zero(out_rmem);
      const typename Block::Places value_a_places(block.value_a_place);
      unrolled<row_tiles>([&](auto m) {
        uint32_t left[4];
        Element::left_operand(left, weights.of_columns, m);
        accumulate_step<m, 0, columns>(out_rmem, left, value_a_places);
      });
      unsafe |= finish_strip(block, results, strip, stage, out_rmem, weights);
    }
    if ((strip ^ 1) < block.strip_count) {
      const uint32_t other_stage = stage ^ Block::layout().stage_bytes;
      unrolled<row_tiles>([&](auto m) {
        const uint4 words = load_shared<m * 512>(block.exchanged(other_stage));
        transposed[m][0] = words.x, transposed[m][1] = words.y;
        transposed[m][2] = words.z, transposed[m][3] = words.w;
      });
      add_strip(own, block, other_stage, transposed);
    }
  }
  return unsafe;
}

// The rows' sums over all columns; returns whether one left the safe range.
template <class Block>
MMER_DEVICE bool add_up_short_rows(const Block& block, ShortSums<Block>& own) {
  constexpr int rows = Block::rows;
  // A thread of eight is left with its pair of all 16 rows' sums.
  add_and_halve<16, 16>(own.row_sum);
  add_and_halve<8, 8>(own.row_sum);
  add_and_halve<4, 4>(own.row_sum);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    block.row_parts_smem[block.warp * rows + block.lane * 2 + e] = own.row_sum[e];
  }
  __syncthreads();
  const int row = threadIdx.x;
  if (row >= rows) return false;
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < Block::warps; ++n) sum += block.row_parts_smem[n * rows + row];
  block.row_parts_smem[row] = sum;
  return (block.row_bias_smem[row] == 0.0f) & !is_safe<typename Block::Element>(sum);
}

// Adds up out_a of the two pairs, each of which ends with 32 rows, and stores it.
template <class Block>
MMER_DEVICE void finish_short_rows(const Block& block, ShortSums<Block>& own,
                                   float reference) {
  constexpr int count = Block::half_columns / 8;
  using Part = float[2][count][4];
  Part& upper = *reinterpret_cast<Part*>(own.out_rmem[0]);
  Part& lower = *reinterpret_cast<Part*>(own.out_rmem[2]);
  // (2, pairs, 2, half of the columns / 8, lanes, 4): what each warp has of the other pair's rows.
  const auto place = [&](int pair) {
    return kept(block.exchange_place + ((block.half * 2 + pair) * 2 * count) * 512);
  };
  const auto give = [&](const Part& part) {
    const uint32_t first = place(1 - block.pair);
    unrolled<2 * count>([&](auto n) {
      store_shared<n * 512>(first, words_of(part[n / count][n % count]));
    });
  };
  if (block.pair == 0) {
    give(lower);
  } else {
    give(upper);
#pragma unroll
    for (int n = 0; n < 8 * count; ++n) {
      upper[n / 4 / count][n / 4 % count][n % 4] = lower[n / 4 / count][n / 4 % count][n % 4];
    }
  }
  __syncthreads();
  const uint32_t first = place(block.pair);
  unrolled<2 * count>([&](auto n) {
    add_words(upper[n / count][n % count], load_shared<n * 512>(first));
  });
  const SharedSide& side = block.row_side;
  float inverse[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = block.last_row(m, half);
      const float total = block.row_parts_smem[row];
      inverse[m][half] = total > 0.0f ? 1.0f / total : 0.0f;
      if (block.quad == 0 && block.half == 0 && row < block.row_count) {
        const float point = reference == no_reference ? block.row_reference_smem[row] : reference;
        side.lse[static_cast<int64_t>(block.batch_head) * side.time + block.block_row + row] =
            total > 0.0f ? (log2_fast(total) + point) * ln_2 : -infinity;
      }
    }
    clear_rows(upper[m], inverse[m]);
  }
  const int first_row = block.pair * 32;
  if (first_row >= block.row_count) return;
  const RowWriter<typename Block::Element, Block::columns, Block::half_columns> writer(
      side.out, block.batch, block.head, block.half * Block::half_columns);
  writer.template store<2>(block.base + first_row * Block::HeadTile::row_bytes,
                           block.block_row + first_row, block.block_row + block.row_count,
                           [&](int n, int e) {
                             return upper[n / count][n % count][e] * inverse[n / count][e / 2];
                           });
}

template <class Element, int columns>
MMER_DEVICE void shared_short_forward(const SharedForwardProblem& problem) {
  const ShortBlock<Element, columns> block(problem);
  using Block = ShortBlock<Element, columns>;
  const ColumnResults results(block);
  const bool sees_rows = mark_steps<Block::threads>(
      block.row_bias_smem, Block::rows, block.hidden.score,
      [&](int row) { return block.row_mask(block.block_row + row); });
  const bool sees_columns = mark_steps<Block::threads>(
      block.bias_smem, block.strip_count * 16, -infinity, block.column_visible);
  block.load_rows();
  block.load_strip(block.warp, block.stage(block.warp));
  cp_async_wait<0>();
  __syncthreads();
  float reference = find_short_reference(block);

  ShortSums<Block> own;
  bool unsafe = attend_strips<false>(block, own, results, reference);
  unsafe |= add_up_short_rows(block, own);
  // Sums of nothing are as they should be.
  if (__syncthreads_or(unsafe && sees_rows && sees_columns)) {
    reference = no_reference;
    find_row_maxima(block);
    block.load_strip(block.warp, block.stage(block.warp));
    attend_strips<true>(block, own, results, reference);
    add_up_short_rows(block, own);
    __syncthreads();
  }
  finish_short_rows(block, own, reference);
}

}  // namespace mmer::cuda
