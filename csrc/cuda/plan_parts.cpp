#include "plan_parts.h"

#include <algorithm>
#include <cmath>

namespace mmer::cuda {

std::string kernel_name(const KernelId& kernel) {
  static const char* const names[] = {
      "directed_forward", "shared_forward", "shared_short",    "query_backward", "key_backward",
      "shared_backward",  "once_backward",  "merge_gradients", "row_state",      "chunk_counts",
      "merge_groups",     "batch_sum",      "decay_sum"};
  std::string name = std::string("mmer_") + names[static_cast<int>(kernel.role)];
  static const char* const elements[] = {"_float16", "_bfloat16", "_float32"};
  name += elements[static_cast<int>(kernel.element)];
  if (kernel.columns == 0) return name;
  if (kernel.rows > 0) {
    return name + "_" + std::to_string(kernel.columns) + "_rows" + std::to_string(kernel.rows);
  }
  return name + "_" + std::to_string(kernel.columns) + (kernel.extras ? "_extras" : "_plain");
}

int32_t position(int64_t value) {
  if (value > longest) throw std::invalid_argument("a sequence is longer than 2**29 steps");
  return static_cast<int32_t>(value);
}

Shape shape_of(const PairCall& call) {
  const TensorView& a = call.a.query;
  const TensorView& b = call.b.query;
  Shape shape{};
  shape.batch = a.shape[0] == 1 ? b.shape[0] : a.shape[0];
  shape.heads = a.shape[1];
  shape.dim = std::max({a.shape[3], call.a.value.shape[3], call.b.value.shape[3]});
  shape.columns = head_class(static_cast<int>(shape.dim));
  shape.element_bytes = bytes_of(call.options.element);
  shape.extras = call.a.times.data || call.options.dropout_seed;
  return shape;
}

Shape shape_of(const ChunkedCall& call) {
  const TensorView& query = call.tokens.query;
  Shape shape{};
  shape.batch = query.shape[0];
  shape.heads = query.shape[1];
  shape.dim = std::max(query.shape[3], call.tokens.value.shape[3]);
  shape.columns = head_class(static_cast<int>(shape.dim));
  shape.element_bytes = bytes_of(call.options.element);
  shape.extras = call.summary_key.data || call.options.dropout_seed;
  return shape;
}

Rows rows_of(const TensorView& tensor, const Shape& shape) {
  Rows rows{};
  if (!tensor.data) return rows;
  rows.data = tensor.data;
  rows.batch_stride = tensor.shape[0] == 1 && shape.batch != 1 ? 0 : tensor.strides[0];
  rows.head_stride = tensor.strides[1];
  rows.time_stride = tensor.strides[2];
  rows.dim = static_cast<int32_t>(tensor.shape[3]);
  const int64_t piece = 16 / shape.element_bytes;
  const auto whole_pieces = [&](int dimension) {
    return tensor.shape[dimension] <= 1 || tensor.strides[dimension] % piece == 0;
  };
  rows.aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && whole_pieces(0) &&
                 whole_pieces(1) && whole_pieces(2);
  return rows;
}

Steps steps_of(const TensorView& tensor) {
  if (!tensor.data) return {};
  return {tensor.data, tensor.shape[0] == 1 ? 0 : tensor.strides[0], tensor.strides[1]};
}

HeadSteps head_steps_of(const TensorView& tensor) {
  if (!tensor.data) return {};
  return {static_cast<const float*>(tensor.data), tensor.strides[0], tensor.strides[1],
          tensor.strides[2]};
}

Window all_steps(int64_t own_time, int64_t other_time) {
  return {position(std::max<int64_t>(own_time, 1)), position(std::max<int64_t>(other_time, 1)), 0,
          1, 0};
}

Extras extras_of(const CallOptions& options) {
  Extras extras{};
  extras.max_gap = static_cast<float>(options.max_gap);
  extras.decay = static_cast<const float*>(options.decay.data);
  extras.decay_stride = options.decay.strides[0];
  if (options.dropout_seed) {
    extras.seed = options.dropout_seed;
    // At least 1, which says that there is dropout; a word of 0 is dropped for it.
    extras.keep_threshold = std::max<uint64_t>(
        static_cast<uint64_t>(std::nearbyint(options.dropout_p * 4294967296.0)), 1);
    extras.keep_scale =
        options.dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - options.dropout_p)) : 0.0f;
  }
  return extras;
}

int64_t flag_bytes(const Shape& shape, const CallOptions& options, const TensorView& times,
                   int64_t longer, int tile) {
  if (!shape.extras || !times.data || !(options.max_gap < INFINITY)) return 0;
  return tiles_of(longer, tile) + 1;
}

}  // namespace mmer::cuda
