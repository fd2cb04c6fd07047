// The baseline that the CUDA kernels are counted against: one direction of attention as
// FlashAttention-2 computes it, called twice. Dense, bfloat16, 64 columns; no mask, no options.
//
// 64 queries a block of four warps, 64 keys a tile, two stages, an online softmax in log2.

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

extern "C" __global__ void __launch_bounds__(128)
    flash_call(const __grid_constant__ FlashProblem problem) {
  constexpr int columns = 64, rows = 64, tile = 64, threads = 128;
  constexpr int tile_bytes = tile * columns * 2;
  using HeadTile = Tile<bfloat16, columns>;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  const HeadTile q_smem{base};
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const int blocks = (problem.queries + rows - 1) / rows;
  const int head = blockIdx.x / blocks, row = blockIdx.x % blocks * rows;

  const auto load = [&](HeadTile target, const uint16_t* source, int first, int length) {
    const int piece = threadIdx.x % 8;
    const uint16_t* source_gmem =
        source + (static_cast<int64_t>(head) * length + first + threadIdx.x / 8) * columns +
        piece * 8;
#pragma unroll
    for (int n = threadIdx.x / 8; n < tile; n += threads / 8) {
      cp_async(target.piece(n, piece), source_gmem, first + n < length ? 16 : 0);
      source_gmem += threads / 8 * columns;
    }
  };
  const auto load_tile = [&](int number) {
    const uint32_t stage = base + rows * columns * 2 + number % 2 * 2 * tile_bytes;
    load(HeadTile{stage}, problem.key, number * tile, problem.keys);
    load(HeadTile{stage + tile_bytes}, problem.value, number * tile, problem.keys);
  };
  load(q_smem, problem.query, row, problem.queries);
  load_tile(0);
  cp_async_commit();

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
      const uint32_t stage = base + rows * columns * 2 + number % 2 * 2 * tile_bytes;
      float scores_rmem[tile / 8][4];
      set_zero(scores_rmem);
      multiply_transposed<tile>(scores_rmem, HeadTile{stage}, [&](int step, uint32_t (&a)[4]) {
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
      accumulate<tile, columns>(out_rmem, scores_rmem, HeadTile{stage + tile_bytes}, 0);
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
  const Rows target{
      problem.out, 0, static_cast<int64_t>(problem.queries) * columns, columns, columns, 1, 0};
  store_warp_rows<columns>(q_smem, warp_row, target, 0, head, first_row, problem.queries, 0,
                           [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
}

}  // namespace mmer::cuda
