// What the operators of both cross-attentions share: their options, and the gradient of the decay.

#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "checks.h"
#include "execution.h"

namespace mmer::cpu {

// In the order of the operators' schema; the decay is small, and may have any stride.
struct PairOptions {
  const MaybeTensor &decay, &mask_a, &mask_b, &times_a, &times_b, &dropout_seed;
  double scale, max_gap, dropout_p;

  std::vector<float> slopes() const {
    std::vector<float> slopes;
    if (!decay) return slopes;
    const float* data = static_cast<const float*>(decay->const_data_ptr());
    for (int64_t head = 0; head < decay->size(0); ++head) {
      slopes.push_back(data[head * decay->stride(0)]);
    }
    return slopes;
  }

  Options options(const Tensor& first, int64_t batch, const std::vector<float>& slopes) const {
    Options options;
    options.batch = batch;
    options.heads = first.size(1);
    options.head_dim = first.size(3);
    options.scale = static_cast<float>(scale);
    options.timed = times_a.has_value();
    options.decay = slopes.empty() ? nullptr : slopes.data();
    options.max_gap = static_cast<float>(max_gap);
    options.dropout = make_dropout(dropout_seed, dropout_p);
    return options;
  }
};

// The tensors of one sequence have one batch size and length; returns the batch size.
inline int64_t check_side(const Checks& checks, std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  const int64_t time = first.dim() == 4 ? first.size(2) : -1;
  const int64_t batch = checks.steps(first, time);
  for (const Tensor* tensor : tensors) {
    checks.require(checks.steps(*tensor, time) == batch, "batch sizes");
  }
  return batch;
}

// Returns the common batch size; one side may have batch size 1.
inline int64_t check_pair(const Checks& checks, const PairOptions& pair,
                          std::initializer_list<const Tensor*> side_a,
                          std::initializer_list<const Tensor*> side_b) {
  const int64_t batch_a = check_side(checks, side_a), batch_b = check_side(checks, side_b);
  const int64_t batch = batch_a == 1 ? batch_b : batch_a;
  checks.require(batch_b == batch || batch_b == 1, "batch sizes");
  const int64_t time_a = (*side_a.begin())->size(2), time_b = (*side_b.begin())->size(2);
  checks.mask(pair.mask_a, batch, time_a);
  checks.mask(pair.mask_b, batch, time_b);
  checks.times(pair.times_a, batch, time_a);
  checks.times(pair.times_b, batch, time_b);
  checks.require(pair.times_a.has_value() == pair.times_b.has_value(), "times");
  checks.decay(pair.decay);
  checks.seed(pair.dropout_seed);
  return batch;
}

// What a backward gets of one direction beside the inputs.
inline void check_results(const Checks& checks, const Tensor& out, const Tensor& lse,
                          const Tensor& grad_out, const MaybeTensor& grad_lse, int64_t batch,
                          const Tensor& query, const Tensor& value) {
  const int64_t time = query.size(2), dim = value.size(3);
  checks.output(out, batch, time, dim);
  checks.output(grad_out, batch, time, dim);
  checks.log_sum_exp(lse, batch, time);
  checks.log_sum_exp(grad_lse, batch, time);
}

// The gradient of the decay from each task of a problem.
class DecayGradient {
 public:
  DecayGradient(const MaybeTensor& decay, Options& options) : options_(options) {
    if (!decay) return;
    tasks_.resize(task_count(options));
    options.grad_decay = tasks_.data();
  }

  double sum(int64_t head) const {
    double sum = 0.0;
    for (int64_t batch = 0; batch < options_.batch; ++batch) {
      const int64_t first = (batch * options_.heads + head) * options_.groups;
      for (int64_t group = 0; group < options_.groups; ++group) sum += tasks_[first + group];
    }
    return sum;
  }

  // (heads,), added up over problems in their order; empty if there was no decay.
  static Tensor add_up(const MaybeTensor& decay, const Tensor& grad_out,
                       std::initializer_list<const DecayGradient*> problems) {
    if (!decay) return new_tensor(std::array<int64_t, 1>{0}, dtype_of(grad_out));
    const Tensor gradient = new_floats(std::array{decay->size(0)});
    float* data = static_cast<float*>(gradient.mutable_data_ptr());
    for (int64_t head = 0; head < decay->size(0); ++head) {
      double sum = 0.0;
      for (const DecayGradient* problem : problems) sum += problem->sum(head);
      data[head] = static_cast<float>(sum);
    }
    return gradient;
  }

 private:
  const Options& options_;
  std::vector<double> tasks_;
};

}  // namespace mmer::cpu
