#include "launch.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace mmer::cuda {

// Exported by the kernels' sources, which are compiled once for each element type.
const void* find_directed_forward_float16(const KernelId& kernel);
const void* find_directed_forward_bfloat16(const KernelId& kernel);
const void* find_shared_forward_float16(const KernelId& kernel);
const void* find_shared_forward_bfloat16(const KernelId& kernel);
const void* find_owner_backward_float16(const KernelId& kernel);
const void* find_owner_backward_bfloat16(const KernelId& kernel);
const void* find_small_kernels_float16(const KernelId& kernel);
const void* find_small_kernels_bfloat16(const KernelId& kernel);

namespace {

const void* find_kernel(const KernelId& kernel) {
  const bool is_float16 = kernel.element == Element::float16;
  switch (kernel.role) {
    case KernelRole::directed_forward:
      return is_float16 ? find_directed_forward_float16(kernel)
                        : find_directed_forward_bfloat16(kernel);
    case KernelRole::shared_forward:
      return is_float16 ? find_shared_forward_float16(kernel)
                        : find_shared_forward_bfloat16(kernel);
    case KernelRole::query_backward:
    case KernelRole::key_backward:
    case KernelRole::shared_backward:
      return is_float16 ? find_owner_backward_float16(kernel)
                        : find_owner_backward_bfloat16(kernel);
    default:
      return is_float16 ? find_small_kernels_float16(kernel) : find_small_kernels_bfloat16(kernel);
  }
}

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  // A failure would otherwise be reported again by whoever asks for the last error next.
  cudaGetLastError();
  throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

void launch(const std::vector<Plan>& plans, void* stream) {
  constexpr int64_t without_opt_in = 48 * 1024;
  for (const Plan& plan : plans) {
    const void* kernel = find_kernel(plan.kernel);
    if (!kernel) throw std::runtime_error(kernel_name(plan.kernel) + " was not compiled");
    if (plan.shared_bytes > without_opt_in) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(plan.shared_bytes)),
            kernel_name(plan.kernel));
    }
    void* arguments[] = {const_cast<unsigned char*>(plan.parameters.data())};
    check(
        cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(plan.blocks)),
                         dim3(static_cast<unsigned>(plan.threads)), arguments,
                         static_cast<size_t>(plan.shared_bytes), static_cast<cudaStream_t>(stream)),
        kernel_name(plan.kernel));
  }
}

}  // namespace mmer::cuda
