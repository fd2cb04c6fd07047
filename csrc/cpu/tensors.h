// From tensors to what the kernels take, through PyTorch's stable ABI: views, new tensors, torch's
// threads. Written for calls that last a few microseconds.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <optional>

#include "problem.h"

namespace mmer::cpu {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// torch's number of a dtype; `scalar_type()` compares it with those of all dtypes.
inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

inline ElementType element_type(const Tensor& tensor) {
  static const int32_t float32 = aoti_torch_dtype_float32();
  static const int32_t float16 = aoti_torch_dtype_float16();
  static const int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  const int32_t dtype = dtype_of(tensor);
  if (dtype == float32) return ElementType::float32;
  if (dtype == bfloat16) return ElementType::bfloat16;
  STD_TORCH_CHECK(dtype == float16, "the CPU kernels take float32, float16 and bfloat16");
  return ElementType::float16;
}

// Of a tensor (batch, heads, time, dim) or, without the last, (batch, heads, time).
inline TensorView view(const Tensor& tensor, int64_t batch) {
  TensorView seen;
  seen.data = tensor.data_ptr();
  seen.type = element_type(tensor);
  const auto strides = tensor.strides();
  std::copy(strides.begin(), strides.end(), seen.strides);
  if (batch != 1 && tensor.size(0) == 1) seen.strides[0] = 0;
  return seen;
}

inline TensorView view(const MaybeTensor& tensor, int64_t batch) {
  return tensor ? view(*tensor, batch) : TensorView{};
}

// Of a tensor (batch or 1, steps).
template <class View>
View steps_view(const MaybeTensor& tensor) {
  if (!tensor) return {};
  return {static_cast<decltype(View::data)>(tensor->const_data_ptr()),
          {tensor->size(0) == 1 ? 0 : tensor->stride(0), tensor->stride(1)}};
}

template <std::size_t count>
Tensor new_tensor(const std::array<int64_t, count>& shape, int32_t dtype) {
  std::array<int64_t, count> strides;
  int64_t stride = 1;
  for (std::size_t n = count; n-- > 0; stride *= std::max<int64_t>(shape[n], 1)) {
    strides[n] = stride;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(count, shape.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <std::size_t count>
Tensor new_floats(const std::array<int64_t, count>& shape) {
  return new_tensor(shape, aoti_torch_dtype_float32());
}

inline Dropout make_dropout(const MaybeTensor& seed, double dropout_p) {
  Dropout dropout;
  if (!seed || dropout_p == 0.0) return dropout;
  dropout.active = true;
  dropout.seed = *static_cast<const int64_t*>(seed->const_data_ptr());
  dropout.threshold = static_cast<uint64_t>(std::nearbyint(dropout_p * 4294967296.0));
  dropout.scale = dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - dropout_p)) : 0.0f;
  return dropout;
}

// torch's own pool, so that torch.set_num_threads is obeyed; what is short stays on this thread.
struct TorchThreads {
  template <class Work>
  void operator()(int64_t count, int64_t grain, const Work& work) const {
    if (count <= grain) {
      if (count > 0) work(Range{0, count});
      return;
    }
    torch::stable::parallel_for(0, count, grain,
                                [&](int64_t begin, int64_t end) { work(Range{begin, end}); });
  }
};

// A gradient in its tensor's own shape. Where the batch was broadcast, the kernels write every
// batch's part in float32, to be added up afterwards.
class Gradient {
 public:
  Gradient(const Tensor& input, int64_t batch)
      : batch_(batch), result_(new_tensor(shape_of(input), dtype_of(input))) {
    std::array<int64_t, 4> shape = shape_of(input);
    if (shape[0] != 1 || batch == 1) return;
    shape[0] = batch;
    wide_ = new_floats(shape);
  }

  TensorView target() const { return view(wide_ ? *wide_ : result_, batch_); }

  Tensor finish(const KernelTable& kernels) const {
    if (wide_) {
      const TensorView parts = view(*wide_, batch_), sum = view(result_, 1);
      TorchThreads()(result_.size(1), 1, [&](Range heads) {
        kernels.sum_batch(parts, sum, batch_, result_.size(2), result_.size(3), heads);
      });
    }
    return result_;
  }

 private:
  static std::array<int64_t, 4> shape_of(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    return {sizes[0], sizes[1], sizes[2], sizes[3]};
  }

  int64_t batch_;
  Tensor result_;
  MaybeTensor wide_;
};

}  // namespace mmer::cpu
