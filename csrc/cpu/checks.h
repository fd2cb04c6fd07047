// Refuses what kernels/arguments.py does not let through, in few nanoseconds: nobody who calls the
// registered operators gets a kernel to read where nothing is. The messages that explain are there.

#pragma once

#include <initializer_list>

#include "tensors.h"

namespace mmer::cpu {

inline bool is_on_cpu(const Tensor& tensor) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
  return device_type == aoti_torch_device_type_cpu();
}

template <class... Sizes>
bool has_shape(const Tensor& tensor, Sizes... sizes) {
  const auto shape = tensor.sizes();
  std::size_t n = 0;
  return shape.size() == sizeof...(sizes) && ((shape[n++] == sizes) && ...);
}

// The tensors of a call, held against the first of them.
class Checks {
 public:
  Checks(const char* name, const Tensor& first)
      : name_(name), dtype_(dtype_of(first)), heads_(first.dim() == 4 ? first.size(1) : -1) {
    element_type(first);
  }

  void require(bool right, const char* what) const {
    STD_TORCH_CHECK(right, name_, ": ", what, " do not fit the other arguments");
  }

  // (batch, heads, steps, dim); returns the batch size.
  int64_t steps(const Tensor& tensor, int64_t steps) const {
    const auto shape = tensor.sizes();
    require(shape.size() == 4 && shape[1] == heads_ && shape[2] == steps && 1 <= shape[3] &&
                shape[3] <= 256 && dtype_of(tensor) == dtype_ && is_on_cpu(tensor),
            "tensors");
    return shape[0];
  }

  // (batch or 1, steps)
  void mask(const MaybeTensor& mask, int64_t batch, int64_t steps) const {
    static const int32_t boolean = aoti_torch_dtype_bool();
    require(!mask || is_row(*mask, batch, steps, boolean), "masks");
  }

  void times(const MaybeTensor& times, int64_t batch, int64_t steps) const {
    static const int32_t float32 = aoti_torch_dtype_float32();
    require(!times || is_row(*times, batch, steps, float32), "times");
  }

  void decay(const MaybeTensor& decay) const {
    require(!decay || (has_shape(*decay, heads_) && is_on_cpu(*decay) &&
                       dtype_of(*decay) == aoti_torch_dtype_float32()),
            "slopes");
  }

  void seed(const MaybeTensor& seed) const {
    require(!seed || (seed->dim() == 0 && is_on_cpu(*seed) &&
                      dtype_of(*seed) == aoti_torch_dtype_int64()),
            "seeds");
  }

  // The output of queries (batch, heads, steps, dim), or its gradient.
  void output(const Tensor& out, int64_t batch, int64_t steps, int64_t dim) const {
    require(has_shape(out, batch, heads_, steps, dim) && dtype_of(out) == dtype_ && is_on_cpu(out),
            "outputs");
  }

  void log_sum_exp(const MaybeTensor& lse, int64_t batch, int64_t steps) const {
    require(!lse || (has_shape(*lse, batch, heads_, steps) && is_on_cpu(*lse) &&
                     dtype_of(*lse) == aoti_torch_dtype_float32()),
            "log-sum-exps");
  }

 private:
  static bool is_row(const Tensor& tensor, int64_t batch, int64_t steps, int32_t dtype) {
    const auto shape = tensor.sizes();
    return shape.size() == 2 && (shape[0] == batch || shape[0] == 1) && shape[1] == steps &&
           dtype_of(tensor) == dtype && is_on_cpu(tensor);
  }

  const char* name_;
  int32_t dtype_;
  int64_t heads_;
};

}  // namespace mmer::cpu
