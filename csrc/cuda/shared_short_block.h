// A block of the shared forward of short sides: which head and rows it owns, where things stand in
// its shared memory, how strips of b come there, and the scores that every pass starts from.

#pragma once

#include "shared_results.h"
#include "smem.h"

namespace mmer::cuda {

template <class ElementType, int column_class>
struct ShortBlock {
  using Element = ElementType;
  static constexpr int columns = column_class, rows = short_rows, warps = short_warps;
  static constexpr int threads = warps * 32, row_tiles = rows / 16;
  static constexpr int strip = short_strip, strip_tiles = strip / 16;
  static constexpr int half_columns = columns / 2;
  // Of a column's output a warp has all.
  static constexpr int warp_values = columns, first_value = 0;
  static constexpr int turn = 0;  // of one
  static constexpr ShortSmem layout() { return ShortSmem(columns); }
  using HeadTile = Tile<Element, columns>;
  using Places = LanePlaces<Element, columns>;
  using Loader = RowLoader<Element, columns, 32>;

  const SharedForwardProblem& problem;
  const SharedSide &row_side, &column_side;
  const float scale;
  const int lane, warp, quad, first_of_eight;
  const int pair, half;  // the two warps of a pair have a half of the values each
  const BlockPlace place;
  const int row_count;
  // The strips are dealt out to the pairs in turn: the other one of a pair has the one two further.
  const int first_strip, strip_count;

  unsigned char* const smem;
  const uint32_t base, strip_smem;  // strip_smem: b, v_b and P of this warp
  float *const row_bias_smem, *const row_reference_smem;
  float *const row_parts_smem, *const warp_parts_smem;  // (warps, rows); a float each
  float* const bias_smem;                               // of each column

  const PairLoader<Element, columns, 32> strip_loader;
  // Where a lane reads: rows of a for the scores, rows of v_a, rows of b, and of v_b this warp's
  // half of the values; and its words of P.
  const uint32_t a_place, value_a_place, b_place, value_b_place, weights_place;
  const uint32_t to_other_warp;   // from a place of this warp to the other one's of the pair
  const uint32_t row_bias_place;  // of this thread's rows

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
        place(problem),
        row_count(place.row_count(problem)),
        first_strip(half * 2 + pair),
        strip_count((column_side.time + strip - 1) / strip),
        smem(dynamic_smem()),
        base(shared_address(smem)),
        strip_smem(kept(base + layout().strips + warp * layout().strip_bytes)),
        row_bias_smem(reinterpret_cast<float*>(smem + layout().row_bias)),
        row_reference_smem(reinterpret_cast<float*>(smem + layout().row_reference)),
        row_parts_smem(reinterpret_cast<float*>(smem + layout().row_parts)),
        warp_parts_smem(reinterpret_cast<float*>(smem + layout().warp_parts)),
        bias_smem(reinterpret_cast<float*>(smem + layout().column_bias)),

        strip_loader(column_side, column_side.time, place.batch, place.head),
        a_place(kept(HeadTile{base}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2))),
        value_a_place(kept(HeadTile{base + layout().value_a}.piece(lane % 16, lane / 16))),
        b_place(kept(HeadTile{strip_smem}.piece(lane % 16, lane / 16))),
        value_b_place(kept(HeadTile::advance(b_place + layout().value_b,
                                             half_columns < 16 ? 0 : half * (half_columns / 8)))),
        weights_place(kept(strip_smem + layout().weights + lane * 16)),
        to_other_warp(half == 0 ? layout().strip_bytes : -layout().strip_bytes),
        row_bias_place(base + layout().row_bias + quad * 8) {}

  MMER_DEVICE bool whole_rows() const { return rows <= row_side.whole_end(row_count); }
  // Of the row block of a thread's n-th accumulator, the first of its two.
  MMER_DEVICE int row_pair(int n) const { return n * 8 + quad * 2; }
  // Of the rows that this thread ends with, in two tiles.
  MMER_DEVICE int last_row(int m, int half) const {
    return pair * 32 + m * 16 + half * 8 + first_of_eight;
  }
  // What is added to the scores of a strip's columns lane / 4, and of every eighth from there on.
  MMER_DEVICE const float* column_biases(int number) const {
    return bias_smem + number * strip + kept(threadIdx.x) % 32 / 4;
  }
  // The two warps of a pair.
  MMER_DEVICE void synchronize_pair() const {
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
  }

  // Worked out anew: nothing is kept for it.
  MMER_DEVICE HiddenRows hidden() const { return HiddenRows(scale); }
  // Writes down which rows and columns are real.
  MMER_DEVICE void mark_visible() const {
    const Visibility rows_visible(row_side.mask, place.batch, place.first_row + row_count);
    mark_steps<threads>(row_bias_smem, rows, hidden().score,
                        [&](int row) { return rows_visible(place.first_row + row); });
    mark_steps<threads>(bias_smem, strip_count * strip, -infinity,
                        Visibility(column_side.mask, place.batch, column_side.time));
  }
  MMER_DEVICE bool sees_something() const {
    return is_any_marked<threads>(row_bias_smem, rows) &&
           is_any_marked<threads>(bias_smem, strip_count * strip);
  }

  // a, v_a (rows, columns)
  MMER_DEVICE void load_rows() const {
    const PairLoader<Element, columns, threads> loader(row_side, place.first_row + row_count,
                                                       place.batch, place.head);
    loader.template load<rows, layout().value_a>(HeadTile{base}, place.first_row, [&](int step) {
      return row_bias_smem[step - place.first_row] == 0.0f;
    });
  }
  // b, v_b (strip, columns), a group of copies each.
  MMER_DEVICE void load_b(int number) const { load(strip_loader.x, 0, number); }
  MMER_DEVICE void load_value_b(int number) const {
    load(strip_loader.value, layout().value_b, number);
  }

  // scores (tiles, 16, count) = b (16 tiles, columns) times the transpose of a's rows from
  // `first_row` on, (count, columns). `b_place` may be another warp's.
  template <int tiles, int count>
  MMER_DEVICE void multiply_strip(float (&scores)[tiles][count / 8][4], uint32_t b_place,
                                  int first_row) const {
#pragma unroll
    for (int t = 0; t < tiles; ++t) set_zero(scores[t]);
    if (!whole_rows()) {
      unrolled<count / 8>([&](auto n) {
        const float2 starts = load_shared_pair<n * 32>(row_bias_place + first_row * 4);
#pragma unroll
        for (int t = 0; t < tiles; ++t) {
          scores[t][n][0] = scores[t][n][2] = starts.x;
          scores[t][n][1] = scores[t][n][3] = starts.y;
        }
      });
    }
    const Places row_places(a_place + first_row * Places::row_bytes);
    unrolled<columns / 16>([&](auto step) {
      uint32_t b[tiles][4];
      unrolled<tiles>([&](auto t) {
        ldmatrix<t * 16 * Places::row_bytes>(b[t], HeadTile::advance(b_place, step * 2));
      });
      unrolled<count / 16>([&](auto n) {
        uint32_t a[4];
        ldmatrix<Places::offset(n * 16, 0)>(a, row_places.place(step));
#pragma unroll
        for (int t = 0; t < tiles; ++t) {
          Element::mma(scores[t][2 * n], b[t], a[0], a[1]);
          Element::mma(scores[t][2 * n + 1], b[t], a[2], a[3]);
        }
      });
    });
  }

 private:
  MMER_DEVICE void load(const Loader& loader, uint32_t offset, int number) const {
    const int first = number * strip;
    const HeadTile tile_smem{strip_smem + offset};
    if (number < strip_count) {
      strip_loader.template load<strip>(loader, tile_smem, first,
                                        [&](int column) { return bias_smem[column] == 0.0f; });
    }
    cp_async_commit();
  }
  static MMER_DEVICE unsigned char* dynamic_smem() {
    extern __shared__ __align__(128) unsigned char block_smem[];
    return block_smem;
  }
};

}  // namespace mmer::cuda
