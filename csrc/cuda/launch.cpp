#include "launch.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace mmer::cuda {

// Exported by the kernels' sources, which are compiled once for each element type.
#define MMER_DECLARE(element)                                      \
  const void* find_directed_forward_##element(const KernelId& id); \
  const void* find_owner_backward_##element(const KernelId& id);   \
  const void* find_small_kernels_##element(const KernelId& id);
MMER_DECLARE(float16)
MMER_DECLARE(bfloat16)
MMER_DECLARE(float32)
#undef MMER_DECLARE
// Of two bytes an element only.
const void* find_shared_forward_float16(const KernelId& id);
const void* find_shared_forward_bfloat16(const KernelId& id);
const void* find_shared_short_float16(const KernelId& id);
const void* find_shared_short_bfloat16(const KernelId& id);
const void* find_once_backward_float16(const KernelId& id);
const void* find_once_backward_bfloat16(const KernelId& id);

namespace {

using Find = const void* (*)(const KernelId&);

struct Finders {
  Find directed_forward, owner_backward, small_kernels, shared_forward, shared_short, once_backward;
};

const Finders& finders_of(Element element) {
#define MMER_FINDERS(element) \
  find_directed_forward_##element, find_owner_backward_##element, find_small_kernels_##element
  static const Finders finders[] = {{MMER_FINDERS(float16), find_shared_forward_float16,
                                     find_shared_short_float16, find_once_backward_float16},
                                    {MMER_FINDERS(bfloat16), find_shared_forward_bfloat16,
                                     find_shared_short_bfloat16, find_once_backward_bfloat16},
                                    {MMER_FINDERS(float32), nullptr, nullptr, nullptr}};
#undef MMER_FINDERS
  return finders[static_cast<int>(element)];
}

Find finder_of(const KernelId& kernel) {
  const Finders& finders = finders_of(kernel.element);
  switch (kernel.role) {
    case KernelRole::directed_forward:
      return finders.directed_forward;
    case KernelRole::shared_forward:
      return finders.shared_forward;
    case KernelRole::shared_short:
      return finders.shared_short;
    case KernelRole::once_backward:
    case KernelRole::merge_gradients:
      return finders.once_backward;
    case KernelRole::query_backward:
    case KernelRole::key_backward:
    case KernelRole::shared_backward:
      return finders.owner_backward;
    default:
      return finders.small_kernels;
  }
}

const void* find_kernel(const KernelId& kernel) {
  const Find find = finder_of(kernel);
  return find ? find(kernel) : nullptr;
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
