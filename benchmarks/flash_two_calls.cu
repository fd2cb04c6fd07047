// The baseline that the CUDA kernels are counted against: one direction of attention as
// FlashAttention-2 computes it, called twice. Dense, bfloat16, 64 columns; no mask, no options.
//
// Forward: 64 queries a block of four warps, 64 keys a tile, two stages, an online softmax in log2.
// Backward, five products: 64 keys a block, whose gradients stay in registers, 64 queries a tile;
// the gradient of the queries is added up in float32 by atomics, FlashAttention-2's default, and
// rounded by a kernel of its own. S and its gradient are computed transposed, so that only the
// latter passes through shared memory: less than FlashAttention-2 does.

#include "config.h"
#include "products.h"
#include "visible.h"

namespace mmer::cuda {

struct FlashProblem {
  const uint16_t *query, *key, *value;
  uint16_t* out;
  float* lse;
  int32_t queries, keys;
  float scale;  // in units of log2
  int32_t unused;
};

struct FlashBackwardProblem {
  const uint16_t *query, *key, *value, *grad_out;
  const float *lse, *delta;
  float* grad_query_sum;
  uint16_t *grad_key, *grad_value;
  int32_t queries, keys;
  float scale, grad_scale;
};

struct FlashRowsProblem {
  const uint16_t *out, *grad_out;
  const float* sum;
  float* delta;
  uint16_t* rounded;
  int32_t rows;
  float grad_scale;
};

constexpr int flash_columns = 64, flash_rows = 64, flash_threads = 128;
using FlashTile = Tile<bfloat16, flash_columns>;

// Starts to load 64 rows of a head.
MMER_DEVICE void flash_load(FlashTile target, const uint16_t* source, int head, int first,
                            int length) {
  const int piece = threadIdx.x % 8;
  const uint16_t* source_gmem =
      source + (static_cast<int64_t>(head) * length + first + threadIdx.x / 8) * flash_columns +
      piece * 8;
  const uint32_t place = target.piece(threadIdx.x / 8, piece);
#pragma unroll
  for (int n = 0; n < flash_rows; n += flash_threads / 8) {
    const bool inside = first + n + static_cast<int>(threadIdx.x) / 8 < length;
    cp_async(place + n * FlashTile::row_bytes, source_gmem, inside ? 16 : 0);
    source_gmem += flash_threads / 8 * flash_columns;
  }
}

template <int offset>
MMER_DEVICE void add_global(float* pointer, float value) {
  asm volatile("red.global.add.f32 [%0+%2], %1;" ::"l"(pointer), "f"(value), "n"(offset)
               : "memory");
}

MMER_DEVICE Rows flash_target(uint16_t* data, int length) {
  return {data, 0, int64_t{length} * flash_columns, flash_columns, flash_columns, 1, 0};
}

extern "C" __global__ void __launch_bounds__(128)
    flash_call(const __grid_constant__ FlashProblem problem) {
  constexpr int columns = flash_columns, rows = flash_rows, tile = 64;
  constexpr int tile_bytes = tile * columns * 2;
  using HeadTile = FlashTile;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  const HeadTile q_smem{base};
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const int blocks = (problem.queries + rows - 1) / rows;
  const int head = blockIdx.x / blocks, row = blockIdx.x % blocks * rows;

  const uint32_t stages = base + rows * columns * 2;
  const auto load_tile = [&](int number) {
    const uint32_t stage = stages + number % 2 * 2 * tile_bytes;
    flash_load(HeadTile{stage}, problem.key, head, number * tile, problem.keys);
    flash_load(HeadTile{stage + tile_bytes}, problem.value, head, number * tile, problem.keys);
  };
  flash_load(q_smem, problem.query, head, row, problem.queries);
  load_tile(0);
  cp_async_commit();

  const LanePlaces first_keys = transposed_places(HeadTile{stages});
  const LanePlaces first_values = value_places(HeadTile{stages + tile_bytes});
  const int tiles = (problem.keys + tile - 1) / tile;
  uint32_t q_rmem[columns / 16][4];
  float out_rmem[columns / 8][4], row_max[2] = {-infinity, -infinity}, row_sum[2] = {0.0f, 0.0f};
  set_zero(out_rmem);
  for (int number = 0; number < tiles; ++number) {
    if (number + 1 < tiles) load_tile(number + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (number == 0) {
#pragma unroll
      for (int step = 0; step < columns / 16; ++step) {
        load_fragment(q_rmem[step], q_smem, warp_row, step);
      }
    }
    if (row + warp_row < problem.queries) {
      LanePlaces keys = first_keys, values = first_values;
      keys.move(number % 2 * 2 * tile_bytes);
      values.move(number % 2 * 2 * tile_bytes);
      float scores_rmem[tile / 8][4];
      set_zero(scores_rmem);
      multiply_transposed<tile>(scores_rmem, keys, [&](int step, uint32_t (&a)[4]) {
#pragma unroll
        for (int n = 0; n < 4; ++n) a[n] = q_rmem[step][n];
      });
      if ((number + 1) * tile > problem.keys) {
#pragma unroll
        for (int n = 0; n < tile / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = number * tile + n * 8 + lane % 4 * 2 + e % 2;
            if (key >= problem.keys) scores_rmem[n][e] = -infinity;
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = row_max[half];
#pragma unroll
        for (int n = 0; n < tile / 8; ++n) {
          largest = fmaxf(largest, fmaxf(scores_rmem[n][2 * half], scores_rmem[n][2 * half + 1]));
        }
        largest = row_maximum(largest);
        const float shrink = exp2_fast((row_max[half] - largest) * problem.scale);
        const float reference = largest * problem.scale;
        row_max[half] = largest;
        row_sum[half] *= shrink;
#pragma unroll
        for (int n = 0; n < columns / 8; ++n) {
          out_rmem[n][2 * half] *= shrink;
          out_rmem[n][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < tile / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            scores_rmem[n][e] = exp2_fast(fmaf(scores_rmem[n][e], problem.scale, -reference));
            row_sum[half] += scores_rmem[n][e];
          }
        }
      }
      unrolled<tile / 16>([&](auto step) {
        uint32_t weights[4];
        bfloat16::left_operand(weights, scores_rmem, step);
        accumulate_step<decltype(step)::value, 0, columns>(out_rmem, weights, values);
      });
    }
    __syncthreads();
  }
  cp_async_wait<0>();

  const int first_row = row + warp_row;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_row + half * 8 + lane / 4;
    const float sum = row_total(row_sum[half]);
    inverse[half] = 1.0f / sum;
    if (lane % 4 == 0 && query < problem.queries) {
      problem.lse[static_cast<int64_t>(head) * problem.queries + query] =
          (row_max[half] * problem.scale + log2_fast(sum)) * ln_2;
    }
  }
  if (first_row >= problem.queries) return;
  store_warp_rows<columns>(q_smem, warp_row, flash_target(problem.out, problem.queries), 0, head,
                           first_row, problem.queries, 0,
                           [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
}

// rowsum(out * grad_out), eight lanes for each row.
extern "C" __global__ void __launch_bounds__(128)
    flash_delta(const __grid_constant__ FlashRowsProblem problem) {
  const int64_t row = (int64_t{blockIdx.x} * flash_threads + threadIdx.x) / 8;
  const int64_t place =
      (row < problem.rows ? row : problem.rows - 1) * flash_columns + threadIdx.x % 8 * 8;
  const uint4 out = *reinterpret_cast<const uint4*>(problem.out + place);
  const uint4 grad = *reinterpret_cast<const uint4*>(problem.grad_out + place);
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    sum = fmaf(bfloat16::unpack(element_of<bfloat16>(out, n)),
               bfloat16::unpack(element_of<bfloat16>(grad, n)), sum);
  }
  for (int lanes = 4; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (threadIdx.x % 8 == 0 && row < problem.rows) problem.delta[row] = sum;
}

extern "C" __global__ void __launch_bounds__(128)
    flash_backward(const __grid_constant__ FlashBackwardProblem problem) {
  constexpr int columns = flash_columns, rows = flash_rows, tile = 64;
  constexpr int tile_bytes = tile * columns * 2, grad_stride = tile * 2 + 16;
  using HeadTile = FlashTile;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  const HeadTile k_smem{base}, v_smem{base + tile_bytes};
  const uint32_t stages = base + 2 * tile_bytes, grad_scores = stages + 4 * tile_bytes;
  // Two stages of both.
  float* minus_lse_smem = reinterpret_cast<float*>(smem + 6 * tile_bytes + rows * grad_stride);
  float* minus_delta_smem = minus_lse_smem + 2 * tile;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const int blocks = (problem.keys + rows - 1) / rows;
  const int head = blockIdx.x / blocks, row = blockIdx.x % blocks * rows;
  const int64_t first_of_head = int64_t{head} * problem.queries;

  const auto load_tile = [&](int number) {
    const uint32_t stage = stages + number % 2 * 2 * tile_bytes;
    const int first = number * tile;
    flash_load(HeadTile{stage}, problem.query, head, first, problem.queries);
    flash_load(HeadTile{stage + tile_bytes}, problem.grad_out, head, first, problem.queries);
    if (threadIdx.x < tile) {
      const int step = first + threadIdx.x, place = number % 2 * tile + threadIdx.x;
      const bool inside = step < problem.queries;
      minus_lse_smem[place] = inside ? problem.lse[first_of_head + step] * -log2_e : -infinity;
      minus_delta_smem[place] = inside ? -problem.delta[first_of_head + step] : 0.0f;
    }
  };
  flash_load(k_smem, problem.key, head, row, problem.keys);
  flash_load(v_smem, problem.value, head, row, problem.keys);
  load_tile(0);
  cp_async_commit();

  const LanePlaces first_queries = transposed_places(HeadTile{stages});
  const LanePlaces first_values = value_places(HeadTile{stages});
  LanePlaces keys = value_places(k_smem);
  keys.keep();
  const uint32_t grad_place = kept(grad_scores + (lane / 16 * 8 + lane % 8) * grad_stride +
                                   warp_row * 2 + lane / 8 % 2 * 16);
  const uint32_t pair_place =
      kept(grad_scores + (warp_row + lane / 4) * grad_stride + lane % 4 * 4);
  const int tiles = (problem.queries + tile - 1) / tile;
  uint32_t k_rmem[columns / 16][4], v_rmem[columns / 16][4];
  float grad_key_rmem[columns / 8][4], grad_value_rmem[columns / 8][4];
  set_zero(grad_key_rmem);
  set_zero(grad_value_rmem);
  for (int number = 0; number < tiles; ++number) {
    if (number + 1 < tiles) load_tile(number + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (number == 0) {
#pragma unroll
      for (int step = 0; step < columns / 16; ++step) {
        load_fragment(k_rmem[step], k_smem, warp_row, step);
        load_fragment(v_rmem[step], v_smem, warp_row, step);
      }
    }
    LanePlaces queries = first_queries, values = first_values;
    queries.move(number % 2 * 2 * tile_bytes);
    values.move(number % 2 * 2 * tile_bytes);
    // A lane has the first of its columns, 2 (lane % 4) of eight, here.
    const int pair = number % 2 * tile + lane % 4 * 2;
    const auto pair_of = [&](const float* values_smem, int n) {
      return *reinterpret_cast<const float2*>(values_smem + pair + n * 8);
    };
    // S^T (16, queries) and its gradient of P, which starts at minus delta.
    float weights_rmem[tile / 8][4], grad_scores_rmem[tile / 8][4];
    set_zero(weights_rmem);
    multiply_transposed<tile>(weights_rmem, queries, [&](int step, uint32_t (&a)[4]) {
#pragma unroll
      for (int n = 0; n < 4; ++n) a[n] = k_rmem[step][n];
    });
#pragma unroll
    for (int n = 0; n < tile / 8; ++n) {
      const float2 delta = pair_of(minus_delta_smem, n);
      grad_scores_rmem[n][0] = grad_scores_rmem[n][2] = delta.x;
      grad_scores_rmem[n][1] = grad_scores_rmem[n][3] = delta.y;
    }
    multiply_transposed<tile, tile_bytes>(grad_scores_rmem, queries,
                                          [&](int step, uint32_t (&a)[4]) {
#pragma unroll
                                            for (int n = 0; n < 4; ++n) a[n] = v_rmem[step][n];
                                          });
    uint32_t words[tile / 8][2];  // of dS^T
    unrolled<tile / 8>([&](auto n) {
      const float2 lse = pair_of(minus_lse_smem, n);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights_rmem[n][e] =
            exp2_fast(fmaf(weights_rmem[n][e], problem.scale, e % 2 ? lse.y : lse.x));
        grad_scores_rmem[n][e] *= weights_rmem[n][e];
      }
      words[n][0] = bfloat16::pack(grad_scores_rmem[n][0], grad_scores_rmem[n][1]);
      words[n][1] = bfloat16::pack(grad_scores_rmem[n][2], grad_scores_rmem[n][3]);
      constexpr int place = decltype(n)::value * 16;
      store_shared<place>(pair_place, words[n][0]);
      store_shared<place + 8 * grad_stride>(pair_place, words[n][1]);
    });
    unrolled<tile / 16>([&](auto step) {
      constexpr int number = decltype(step)::value;
      uint32_t a[4];
      bfloat16::left_operand(a, weights_rmem, step);
      accumulate_step<number, tile_bytes, columns>(grad_value_rmem, a, values);
      bfloat16::left_operand(a, words, step);
      accumulate_step<number, 0, columns>(grad_key_rmem, a, values);
    });
    __syncthreads();
    // (16 queries, columns) = dS (16, keys) k (keys, columns)
    if (number * tile + warp_row < problem.queries) {
      float grad_query_rmem[columns / 8][4];
      set_zero(grad_query_rmem);
      unrolled<rows / 16>([&](auto step) {
        constexpr int number = decltype(step)::value;
        uint32_t a[4];
        ldmatrix_transposed<number * 16 * grad_stride>(a, grad_place);
        accumulate_step<number, 0, columns>(grad_query_rmem, a, keys);
      });
      const int query = number * tile + warp_row + lane / 4;
      float* sum_gmem = problem.grad_query_sum + (first_of_head + query) * columns + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (query + half * 8 >= problem.queries) break;
        unrolled<columns / 8>([&](auto n) {
          constexpr int place = decltype(n)::value * 32;
          add_global<place>(sum_gmem, grad_query_rmem[n][2 * half]);
          add_global<place + 4>(sum_gmem, grad_query_rmem[n][2 * half + 1]);
        });
        sum_gmem += 8 * columns;
      }
    }
    __syncthreads();
  }
  cp_async_wait<0>();
  if (row + warp_row >= problem.keys) return;
  const auto store = [&](uint16_t* target, const auto& gradient_rmem, float scale) {
    store_warp_rows<columns>(k_smem, warp_row, flash_target(target, problem.keys), 0, head,
                             row + warp_row, problem.keys, 0,
                             [&](int n, int e) { return gradient_rmem[n][e] * scale; });
  };
  store(problem.grad_key, grad_key_rmem, problem.grad_scale);
  store(problem.grad_value, grad_value_rmem, 1.0f);
}

// What two calls leave is two gradients of each qk, which autograd adds up: eight lanes for each
// row.
extern "C" __global__ void __launch_bounds__(128)
    flash_add(const __grid_constant__ FlashRowsProblem problem) {
  const int64_t row = (int64_t{blockIdx.x} * flash_threads + threadIdx.x) / 8;
  if (row >= problem.rows) return;
  const int64_t place = row * flash_columns + threadIdx.x % 8 * 8;
  const uint4 first = *reinterpret_cast<const uint4*>(problem.out + place);
  const uint4 second = *reinterpret_cast<const uint4*>(problem.grad_out + place);
  float sums[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    sums[n] = bfloat16::unpack(element_of<bfloat16>(first, n)) +
              bfloat16::unpack(element_of<bfloat16>(second, n));
  }
  store_global(problem.rounded + place, bfloat16::piece(sums));
}

// The gradient of the queries, rounded: eight lanes for each row.
extern "C" __global__ void __launch_bounds__(128)
    flash_round(const __grid_constant__ FlashRowsProblem problem) {
  const int64_t row = (int64_t{blockIdx.x} * flash_threads + threadIdx.x) / 8;
  if (row >= problem.rows) return;
  const int64_t place = row * flash_columns + threadIdx.x % 8 * 8;
  const float4 low = *reinterpret_cast<const float4*>(problem.sum + place);
  const float4 high = *reinterpret_cast<const float4*>(problem.sum + place + 4);
  const float scale = problem.grad_scale;
  const float values[8] = {low.x * scale,  low.y * scale,  low.z * scale,  low.w * scale,
                           high.x * scale, high.y * scale, high.z * scale, high.w * scale};
  store_global(problem.rounded + place, bfloat16::piece(values));
}

}  // namespace mmer::cuda
