// mmer._native: what Python asks of the compiled code that is not an operator: how it was built,
// what this CPU can do, how the CUDA kernels would be launched, and the torch-free pieces that
// tests check one by one.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "arithmetic_peak.h"
#include "cpu_features.h"
#include "cuda/bind_plans.h"
#include "philox.h"

namespace py = pybind11;

namespace {

std::map<std::string, std::string> build_information() {
  return {
      {"version", MMER_VERSION},
      {"compiler", MMER_COMPILER},
      {"compiler_version", __VERSION__},
      {"flags", MMER_COMPILE_FLAGS},
      {"torch_target_version", MMER_TORCH_TARGET},
      {"pybind11", MMER_PYBIND11},
  };
}

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
  for (const mmer::NamedCpuFeature& feature : mmer::named_cpu_features) {
    features[feature.name] = mmer::cpu_features().*feature.value;
  }
  return features;
}

mmer::CpuFeatures features_of(const std::vector<std::string>& names) {
  mmer::CpuFeatures features;
  for (const std::string& name : names) {
    bool known = false;
    for (const mmer::NamedCpuFeature& feature : mmer::named_cpu_features) {
      if (name != feature.name) continue;
      features.*feature.value = known = true;
    }
    if (!known) throw std::invalid_argument("features: unknown CPU feature " + name);
  }
  return features;
}

std::string cpu_capability() {
  return mmer::choose_cpu_capability(mmer::cpu_features(), std::getenv("MMER_CPU_CAPABILITY"));
}

std::string choose_cpu_capability(const std::vector<std::string>& features,
                                  const std::string& requested) {
  return mmer::choose_cpu_capability(features_of(features), requested.c_str());
}

std::array<uint32_t, 4> philox4x32_10(const std::array<uint32_t, 4>& counter,
                                      const std::array<uint32_t, 2>& key) {
  const mmer::PhiloxWords words =
      mmer::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Build information, CPU features, and torch-free pieces of the compiled code.";
  module.def("build_information", &build_information,
             R"(Return the version, compiler, flags and targets that this module was built with.)");
  module.def("cpu_features", &cpu_features,
             R"(Return each instruction set that mmer knows, and whether this CPU has it.)");
  module.def(
      "cpu_capability", &cpu_capability,
      R"(Return the set of CPU kernels chosen here: the best one that this CPU can run, or the
one that MMER_CPU_CAPABILITY names. Raises ValueError if that one cannot run.)");
  module.def(
      "choose_cpu_capability", &choose_cpu_capability, py::arg("features"),
      py::arg("requested") = "",
      R"(Return what cpu_capability() would choose on a CPU with exactly the named features.)");
  mmer::cuda::bind_plans(module);
  module.def("philox4x32_10", &philox4x32_10, py::arg("counter"), py::arg("key"),
             R"(Return the four random words of Philox4x32-10 for a counter and a key.)");
  module.def(
      "measure_arithmetic_peaks", &mmer::measure_arithmetic_peaks, py::arg("threads"),
      py::arg("seconds") = 0.2, py::call_guard<py::gil_scoped_release>(),
      R"(Return the most floating point operations a second that this many threads reach, by kind of
instruction: "float32", and where the CPU has them "avx512_bf16" and "amx_bf16". Takes about
`seconds` for each.)");
}
