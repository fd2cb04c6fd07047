// The rows that a product reads: those of one head of a tensor, as float32, 0 where they are
// padded.

#pragma once

#include <type_traits>

#include "element.h"
#include "exp.h"

namespace mmer::cpu {
namespace {

inline void fill(float* x, int64_t count, float value) {
  int64_t n = 0;
  for (; n + lanes <= count; n += lanes) store(x + n, broadcast(value));
  for (; n < count; ++n) x[n] = value;
}

inline void scale_row(float* row, int64_t count, float factor) {
  for (int64_t n = 0; n < count; ++n) row[n] *= factor;
}

// Row stride of packed matrices: whole vectors, and no power of two, whose rows would compete for
// the same sets of the cache.
inline int64_t row_stride(int64_t dim) {
  const int64_t stride = round_up(dim, 16);
  return stride % 32 == 0 ? stride + 16 : stride;
}

// The head dimension ends at 256.
constexpr int64_t longest_row = 256 + 16;

// Rows (count, dim) in memory.
struct Rows {
  const float* data;
  int64_t stride;
};

// Steps of one head. `bias` begins at the step `first`, and is -infinity where a step is padded;
// without it, none is.
struct Source {
  TensorView tensor;
  int64_t batch = 0, head = 0, dim = 0;
  const float* bias = nullptr;
  int64_t first = 0;

  // Rows (steps, dim) that are in memory already.
  static Source of(const float* rows, int64_t stride, int64_t dim) {
    Source source;
    source.tensor.data = const_cast<float*>(rows);
    source.tensor.strides[2] = stride;
    source.tensor.strides[3] = 1;
    source.dim = dim;
    return source;
  }

  bool is_padded(int64_t step) const { return bias != nullptr && bias[step - first] == -infinity; }

  // row (width) = the step's row and zeros
  void read(int64_t step, int64_t width, float* row) const {
    const int64_t read = is_padded(step) ? 0 : round_up(dim, lanes);
    if (read > 0) read_row(tensor, batch, head, step, dim, row);
    if (read < width) fill(row + read, width - read, 0.0f);
  }

  // Where the tensor's own memory will do: its rows are float32, `unit` by `unit` elements, and
  // none is padded.
  bool is_in_place(Range steps, int64_t unit) const {
    if (tensor.type != ElementType::float32 || tensor.strides[3] != 1 || dim % unit != 0) {
      return false;
    }
    bool any_padded = false;
    for (int64_t step = steps.begin; step < steps.end; ++step) any_padded |= is_padded(step);
    return !any_padded;
  }

  // rows (steps, dim), in the tensor or copied to `copy`, whose rows are row_stride(dim) apart and
  // end in zeros. Who reads whole vectors needs units of a vector.
  Rows rows(Range steps, float* copy, int64_t unit = lanes) const {
    if (is_in_place(steps, unit)) {
      const float* data = static_cast<const float*>(tensor.data);
      return {data + element_offset(tensor, batch, head, steps.begin), tensor.strides[2]};
    }
    const int64_t stride = row_stride(dim), width = round_up(dim, lanes);
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      read(step, width, copy + (step - steps.begin) * stride);
    }
    return {copy, stride};
  }
};

inline bool is_square(int64_t count, int64_t k, int64_t dim) {
  return count == lanes && k + lanes <= dim;
}

// Up to `lanes` rows' elements from k on, a vector for each row; 0 where there are none. Whole
// squares stay in registers.
template <bool whole>
__attribute__((always_inline)) inline void load_square(Rows rows, int64_t count, int64_t k,
                                                       int64_t dim, Vector (&square)[lanes]) {
#pragma GCC unroll 16
  for (int n = 0; n < lanes; ++n) {
    if constexpr (whole) {
      square[n] = load(rows.data + n * rows.stride + k);
    } else {
      square[n] = n < count ? load_part(rows.data + n * rows.stride, k, dim) : Vector{};
    }
  }
}

// Squared length of the longest of the rows and of one of length `norm`; NaN counts as longest.
inline float larger_norm(float norm, const Source& source, Range steps) {
  float copy[lanes * longest_row];
  Vector longest = broadcast(norm);
  for (int64_t first = steps.begin; first < steps.end; first += lanes) {
    const int64_t count = smaller(lanes, steps.end - first);
    const Rows rows = source.rows({first, first + count}, copy, 1);
    Vector squares[lanes] = {};
    for (int64_t k = 0; k < source.dim; k += lanes) {
      const auto add = [&](auto whole) {
        Vector x[lanes];
        load_square<whole>(rows, count, k, source.dim, x);
#pragma GCC unroll 16
        for (int n = 0; n < lanes; ++n) squares[n] += x[n] * x[n];
      };
      is_square(count, k, source.dim) ? add(std::true_type{}) : add(std::false_type{});
    }
    const Vector sums = sum_each(squares);
    longest = sums <= longest ? longest : sums;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(longest[lane] <= norm)) norm = longest[lane];
  }
  return norm;
}

}  // namespace
}  // namespace mmer::cpu
