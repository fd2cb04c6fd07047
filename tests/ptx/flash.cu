// A small FlashAttention forward for tests of the emulator: bfloat16, head_dim 64, one warp for 16
// queries. Each value of Bug is one mistake, compiled into a kernel of its own.
#include <cuda_bf16.h>
#include <math_constants.h>
#include <stdint.h>

enum class Bug { none, no_barrier, short_wait, no_swizzle, key_mask, query_mask, fragment_row };

constexpr int kDim = 64;
constexpr int kQueries = 64;
constexpr int kKeys = 64;
constexpr int kThreads = kQueries / 16 * 32;
constexpr int kChunks = kDim / 8;
constexpr int kTileBytes = kKeys * kDim * 2;

__device__ __forceinline__ void copy_async(uint32_t smem, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(source), "r"(bytes)
               : "memory");
}

template <int groups>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

template <bool transposed>
__device__ __forceinline__ void load_matrix(uint32_t (&x)[4], uint32_t smem) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(smem)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(smem)
                 : "memory");
  }
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t&>(pair);
}

template <Bug bug>
__device__ __forceinline__ int place(int row, int chunk) {
  return row * kDim * 2 + ((bug == Bug::no_swizzle ? chunk : chunk ^ (row & 7)) << 4);
}

template <Bug bug>
__device__ __forceinline__ void load_tile(uint32_t smem, const __nv_bfloat16* source, int first_row,
                                          int rows) {
  for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks;
    bool real = bug == Bug::query_mask ? first_row + row <= rows : first_row + row < rows;
    copy_async(smem + place<bug>(row, chunk),
               source + (real ? first_row + row : 0) * kDim + chunk * 8, real ? 16 : 0);
  }
}

// query, key, value, out: (heads, steps, 64); lse: (heads, steps) in base 2
template <Bug bug>
__device__ void flash(const __nv_bfloat16* query, const __nv_bfloat16* key,
                      const __nv_bfloat16* value, __nv_bfloat16* out, float* lse, int steps,
                      float scale_log2) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint32_t q_smem = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
  uint32_t k_smem = q_smem + kTileBytes, v_smem = k_smem + 2 * kTileBytes;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, thread = lane % 4;
  int first_query = blockIdx.x * kQueries;
  long long head = static_cast<long long>(blockIdx.y) * steps * kDim;
  query += head, key += head, value += head, out += head;

  int tiles = (steps + kKeys - 1) / kKeys;
  load_tile<bug>(q_smem, query, first_query, steps);
  load_tile<bug>(k_smem, key, 0, steps);
  load_tile<bug>(v_smem, value, 0, steps);
  asm volatile("cp.async.commit_group;" ::: "memory");

  uint32_t q_rmem[kDim / 16][4];
  float acc_rmem[kDim / 8][4] = {}, row_max[2] = {-CUDART_INF_F, -CUDART_INF_F}, row_sum[2] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    uint32_t k_tile = k_smem + tile % 2 * kTileBytes, v_tile = v_smem + tile % 2 * kTileBytes;
    if (tile + 1 < tiles) {
      load_tile<bug>(k_smem + (tile + 1) % 2 * kTileBytes, key, (tile + 1) * kKeys, steps);
      load_tile<bug>(v_smem + (tile + 1) % 2 * kTileBytes, value, (tile + 1) * kKeys, steps);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    wait_async<bug == Bug::short_wait ? 2 : 1>();
    __syncthreads();
    if (tile == 0) {
      for (int k = 0; k < kDim / 16; ++k) {
        load_matrix<false>(q_rmem[k],
                           q_smem + place<bug>(warp * 16 + lane % 16, k * 2 + lane / 16));
      }
    }
    // (16 queries, 64 keys) of a warp
    float s_rmem[kKeys / 8][4] = {};
    for (int k = 0; k < kDim / 16; ++k) {
      for (int j = 0; j < kKeys / 8; j += 2) {
        uint32_t b[4];
        load_matrix<false>(
            b, k_tile + place<bug>(j * 8 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
        mma(s_rmem[j], q_rmem[k], b[0], b[1]);
        mma(s_rmem[j + 1], q_rmem[k], b[2], b[3]);
      }
    }
    for (int half = 0; half < 2; ++half) {
      float new_max = row_max[half];
      for (int j = 0; j < kKeys / 8; ++j) {
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          int column = tile * kKeys + j * 8 + thread * 2 + e % 2;
          bool real = bug == Bug::key_mask ? column <= steps : column < steps;
          s_rmem[j][e] = real ? s_rmem[j][e] * scale_log2 : -CUDART_INF_F;
          new_max = fmaxf(new_max, s_rmem[j][e]);
        }
      }
      new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffff, new_max, 1));
      new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffff, new_max, 2));
      float shrink = exp2f(row_max[half] - new_max);
      row_max[half] = new_max;
      row_sum[half] *= shrink;
      for (int j = 0; j < kDim / 8; ++j)
        acc_rmem[j][2 * half] *= shrink, acc_rmem[j][2 * half + 1] *= shrink;
      for (int j = 0; j < kKeys / 8; ++j) {
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s_rmem[j][e] = exp2f(s_rmem[j][e] - new_max);
          row_sum[half] += s_rmem[j][e];
        }
      }
    }
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t p[4] = {pack(s_rmem[2 * k][0], s_rmem[2 * k][1]),
                       pack(s_rmem[2 * k][2], s_rmem[2 * k][3]),
                       pack(s_rmem[2 * k + 1][0], s_rmem[2 * k + 1][1]),
                       pack(s_rmem[2 * k + 1][2], s_rmem[2 * k + 1][3])};
      for (int j = 0; j < kDim / 8; j += 2) {
        uint32_t b[4];
        load_matrix<true>(b, v_tile + place<bug>(k * 16 + lane % 16, j + lane / 16));
        mma(acc_rmem[j], p, b[0], b[1]);
        mma(acc_rmem[j + 1], p, b[2], b[3]);
      }
    }
    if (bug != Bug::no_barrier) __syncthreads();
  }
  for (int half = 0; half < 2; ++half) {
    float sum = row_sum[half];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    int row = first_query + warp * 16 + (bug == Bug::fragment_row ? group ^ 1 : group) + half * 8;
    if (row >= steps) continue;
    if (thread == 0)
      lse[static_cast<long long>(blockIdx.y) * steps + row] = row_max[half] + log2f(sum);
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<uint32_t*>(out + static_cast<long long>(row) * kDim + j * 8 + thread * 2) =
          pack(acc_rmem[j][2 * half] / sum, acc_rmem[j][2 * half + 1] / sum);
    }
  }
}

#define KERNEL(bug)                                                                     \
  extern "C" __global__ void __launch_bounds__(kThreads) flash_##bug(                   \
      const __nv_bfloat16* query, const __nv_bfloat16* key, const __nv_bfloat16* value, \
      __nv_bfloat16* out, float* lse, int steps, float scale_log2) {                    \
    flash<Bug::bug>(query, key, value, out, lse, steps, scale_log2);                    \
  }
KERNEL(none)
KERNEL(no_barrier)
KERNEL(short_wait)
KERNEL(no_swizzle)
KERNEL(key_mask)
KERNEL(query_mask)
KERNEL(fragment_row)
