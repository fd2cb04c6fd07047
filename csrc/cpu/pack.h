// Memory of a task, and the copies of a head that the products read: float32, zero where padded,
// whatever the padding holds.

#pragma once

#include <new>

#include "element.h"
#include "exp.h"
#include "matmul.h"

namespace mmer::cpu {
namespace {

// Hands out pieces of one allocation. Without memory it only counts, so that a structure that takes
// its pieces in its constructor states its size by being made once.
class Arena {
 public:
  explicit Arena(float* memory = nullptr) : memory_(memory) {}

  float* take(int64_t count) {
    float* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += round_up(count, 16);
    return piece;
  }

  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

// One allocation for all tasks of a thread.
template <class Workspace, class Problem>
class Scratch {
 public:
  explicit Scratch(const Problem& problem)
      : memory_(allocate(problem)), arena_(memory_), workspace(arena_, problem) {}
  ~Scratch() { ::operator delete(memory_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  static constexpr std::align_val_t alignment{64};

  static float* allocate(const Problem& problem) {
    Arena counting;
    Workspace measured(counting, problem);
    return static_cast<float*>(::operator new(counting.used() * sizeof(float), alignment));
  }

  float* memory_;
  Arena arena_;

 public:
  Workspace workspace;
};

inline void fill(float* x, int64_t count, float value) {
  for (int64_t n = 0; n < count; ++n) x[n] = value;
}

inline void scale_row(float* row, int64_t count, float factor) {
  for (int64_t n = 0; n < count; ++n) row[n] *= factor;
}

// Rounded as the products of matmul.h are: a query that sees one key has dP - D = 0 exactly.
inline float dot(const float* x, const float* y, int64_t count) {
  if (count > longest_sum) {
    return dot(x, y, count / 2) + dot(x + count / 2, y + count / 2, count - count / 2);
  }
  float sum = 0.0f;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  for (int64_t n = 0; n < count; ++n) sum = __builtin_fmaf(x[n], y[n], sum);
#else
  for (int64_t n = 0; n < count; ++n) sum += x[n] * y[n];
#endif
  return sum;
}

// Row stride of packed matrices: whole vectors, and no power of two, whose rows would compete for
// the same sets of the cache.
inline int64_t row_stride(int64_t dim) {
  const int64_t stride = round_up(dim, lanes);
  return stride % 32 == 0 ? stride + lanes : stride;
}

// packed (steps, stride) = tensor[batch, head, steps, :dim], 0 where bias is -infinity
inline void pack_rows(const TensorView& tensor, int64_t batch, int64_t head, Range steps,
                      int64_t dim, const float* bias, float* packed) {
  const int64_t stride = row_stride(dim), whole = round_up(dim, lanes);
  for (int64_t step = steps.begin; step < steps.end; ++step, packed += stride) {
    if (bias[step - steps.begin] == -infinity) {
      fill(packed, whole, 0.0f);
      continue;
    }
    read_row(tensor, batch, head, step, dim, packed);
    fill(packed + dim, whole - dim, 0.0f);
  }
}

// The same with scale * query, whose products with the keys are the scores.
inline void pack_queries(const TensorView& tensor, int64_t batch, int64_t head, Range steps,
                         int64_t dim, const float* bias, float scale, float* packed) {
  pack_rows(tensor, batch, head, steps, dim, bias, packed);
  for (int64_t n = 0; n < steps.end - steps.begin; ++n) {
    scale_row(packed + n * row_stride(dim), dim, scale);
  }
}

// panels (ceil(count / panel_width), dim, panel_width) = transpose of rows (count, dim)
inline void pack_panels(const float* rows, int64_t count, int64_t dim, float* panels) {
  const int64_t stride = row_stride(dim);
  for (int64_t first = 0; first < count; first += panel_width, panels += dim * panel_width) {
    const int64_t width = smaller(panel_width, count - first);
    for (int64_t k = 0; k < dim; ++k) {
      const float* column = rows + first * stride + k;
      float* panel_row = panels + k * panel_width;
      for (int64_t n = 0; n < width; ++n) panel_row[n] = column[n * stride];
      for (int64_t n = width; n < panel_width; ++n) panel_row[n] = 0.0f;
    }
  }
}

inline int64_t panels_size(int64_t count, int64_t dim) {
  return round_up(count, panel_width) * dim;
}

// The right factor that pack_panels makes, from a step on that is a multiple of panel_width.
inline Panels transposed_panels(const float* panels, int64_t dim, int64_t first) {
  return {panels + first * dim, panel_width, dim * panel_width};
}

// The right factor that pack_rows makes, from any step on.
inline Panels row_panels(const float* rows, int64_t dim, int64_t first) {
  return {rows + first * row_stride(dim), row_stride(dim), panel_width};
}

// bias (steps): 0 for a real step, -infinity for a padded one; how many are real.
inline int64_t read_mask(const MaskView& mask, int64_t batch, Range steps, float* bias) {
  int64_t real = 0;
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const bool here = is_real(mask, batch, step);
    bias[step - steps.begin] = here ? 0.0f : -infinity;
    real += here;
  }
  return real;
}

// times (steps), 0 for a padded step.
inline void read_times(const TimesView& times, int64_t batch, Range steps, const float* bias,
                       float* seconds) {
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const int64_t n = step - steps.begin;
    const bool here = bias[n] != -infinity;
    seconds[n] = here ? times.data[batch * times.strides[0] + step * times.strides[1]] : 0.0f;
  }
}

// Earliest and latest real step of a block.
struct Interval {
  float first = infinity;
  float last = -infinity;
};

inline Interval interval_of(const float* seconds, const float* bias, int64_t count) {
  Interval interval;
  for (int64_t n = 0; n < count; ++n) {
    if (bias[n] == -infinity) continue;
    interval.first = seconds[n] < interval.first ? seconds[n] : interval.first;
    interval.last = seconds[n] > interval.last ? seconds[n] : interval.last;
  }
  return interval;
}

inline bool further_apart(const Interval& x, const Interval& y, float gap) {
  return x.first - y.last > gap || y.first - x.last > gap;
}

// Blocks of at most `most` steps, as equal as they can be.
inline Range block_of(Range steps, int64_t most, int64_t block) {
  const int64_t count = steps.end - steps.begin, blocks = (count + most - 1) / most;
  return {steps.begin + count * block / blocks, steps.begin + count * (block + 1) / blocks};
}

inline int64_t blocks_of(Range steps, int64_t most) {
  return (steps.end - steps.begin + most - 1) / most;
}

inline float slope_of(const Options& options, int64_t head) {
  return options.decay == nullptr ? 0.0f : options.decay[head];
}

// Batch, head and group of a task.
struct Task {
  int64_t batch, head, group, number;
};

inline Task task_of(const Options& options, int64_t number) {
  const int64_t batch_head = number / options.groups;
  return {batch_head / options.heads, batch_head % options.heads, number % options.groups, number};
}

inline uint32_t dropout_row(const Options& options, const Task& task) {
  return static_cast<uint32_t>(task.batch * options.heads + task.head);
}

}  // namespace
}  // namespace mmer::cpu
