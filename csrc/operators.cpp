// Registration of the small compiled operators with PyTorch's stable ABI; those of attention are in
// cpu/. Argument checks and memory here, arithmetic in torch-free sources. One binary serves every
// torch from TORCH_TARGET_VERSION on, and every Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "cpu/capability.h"
#include "dropout_bits.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t words_per_task = 1 << 14;

void check_word(const char* name, int64_t value, int64_t limit) {
  STD_TORCH_CHECK(0 <= value && value <= limit, "philox_uniform_bits: ", name, " must lie in [0, ",
                  limit, "], got ", value);
}

Tensor philox_uniform_bits(const Tensor& seed, int64_t batch_heads, int64_t queries, int64_t keys,
                           int64_t stream) {
  constexpr int64_t words = int64_t{1} << 32;
  STD_TORCH_CHECK(seed.dim() == 0 && seed.scalar_type() == ScalarType::Long,
                  "philox_uniform_bits: seed must be a 0-dim int64 tensor");
  check_word("batch_heads", batch_heads, words);
  check_word("queries", queries, words);
  check_word("keys", keys, 4 * words);
  check_word("stream", stream, words - 1);

  const std::array<int64_t, 3> shape{batch_heads, queries, keys};
  const Tensor bits = torch::stable::new_empty(seed, {shape.data(), shape.size()});
  if (bits.numel() == 0) return bits;
  const int64_t seed_value = *seed.const_data_ptr<int64_t>();
  int64_t* bits_data = bits.mutable_data_ptr<int64_t>();
  const int64_t rows_per_task = std::max<int64_t>(1, words_per_task / keys);
  torch::stable::parallel_for(
      0, batch_heads * queries, rows_per_task, [&](int64_t row_begin, int64_t row_end) {
        mmer::write_dropout_bits(bits_data, seed_value, queries, keys, stream, row_begin, row_end);
      });
  return bits;
}

std::string kernel_capability() {
  return mmer::cpu::kernel_capability();
}

}  // namespace

STABLE_TORCH_LIBRARY(mmer_cpu, library) {
  library.def("kernel_capability() -> str");
  library.def(
      "philox_uniform_bits(Tensor seed, SymInt batch_heads, SymInt queries, SymInt keys, int "
      "stream) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CompositeExplicitAutograd, library) {
  library.impl("kernel_capability", TORCH_BOX(&kernel_capability));
}

STABLE_TORCH_LIBRARY_IMPL(mmer_cpu, CPU, library) {
  library.impl("philox_uniform_bits", TORCH_BOX(&philox_uniform_bits));
}
