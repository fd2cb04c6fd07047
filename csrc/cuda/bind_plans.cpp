#include "bind_plans.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace py = pybind11;

namespace mmer::cuda {

namespace {

TensorView make_view(uintptr_t data, const std::vector<int64_t>& shape,
                     const std::vector<int64_t>& strides) {
  if (shape.size() > 4 || shape.size() != strides.size()) {
    throw std::invalid_argument("shape and strides must have the same length, 4 at most");
  }
  TensorView view;
  view.data = reinterpret_cast<void*>(data);
  std::copy(shape.begin(), shape.end(), view.shape);
  std::copy(strides.begin(), strides.end(), view.strides);
  return view;
}

Allocate allocate_with(const std::function<uintptr_t(std::size_t)>& allocate) {
  return [allocate](std::size_t bytes) { return reinterpret_cast<void*>(allocate(bytes)); };
}

const std::map<std::string, Element> elements = {
    {"float16", Element::float16}, {"bfloat16", Element::bfloat16}, {"float32", Element::float32}};

using PythonAllocate = std::function<uintptr_t(std::size_t)>;

}  // namespace

void bind_plans(py::module_& module) {
  py::class_<TensorView>(module, "TensorView")
      .def(py::init<>())
      .def(py::init(&make_view), py::arg("data"), py::arg("shape"), py::arg("strides"));
  py::class_<CallOptions>(module, "CallOptions")
      .def(py::init<>())
      .def_readwrite("scale", &CallOptions::scale)
      .def_readwrite("max_gap", &CallOptions::max_gap)
      .def_readwrite("dropout_p", &CallOptions::dropout_p)
      .def_readwrite("decay", &CallOptions::decay)
      .def_readwrite("grad_decay", &CallOptions::grad_decay)
      .def("set_element",
           [](CallOptions& options, const std::string& name) {
             const auto found = elements.find(name);
             if (found == elements.end()) {
               throw std::invalid_argument("element must be float16, bfloat16 or float32, got " +
                                           name);
             }
             options.element = found->second;
           })
      .def("set_dropout_seed", [](CallOptions& options, uintptr_t data) {
        options.dropout_seed = reinterpret_cast<const int64_t*>(data);
      });
  py::class_<SequenceView>(module, "SequenceView")
      .def(py::init<>())
      .def_readwrite("query", &SequenceView::query)
      .def_readwrite("key", &SequenceView::key)
      .def_readwrite("value", &SequenceView::value)
      .def_readwrite("out", &SequenceView::out)
      .def_readwrite("lse", &SequenceView::lse)
      .def_readwrite("mask", &SequenceView::mask)
      .def_readwrite("times", &SequenceView::times)
      .def_readwrite("grad_out", &SequenceView::grad_out)
      .def_readwrite("grad_lse", &SequenceView::grad_lse)
      .def_readwrite("grad_query", &SequenceView::grad_query)
      .def_readwrite("grad_key", &SequenceView::grad_key)
      .def_readwrite("grad_value", &SequenceView::grad_value);
  py::class_<PairCall>(module, "PairCall")
      .def(py::init<>())
      .def_readwrite("options", &PairCall::options)
      .def_readwrite("a", &PairCall::a)
      .def_readwrite("b", &PairCall::b)
      .def_readwrite("shared", &PairCall::shared);
  py::class_<ChunkedCall>(module, "ChunkedCall")
      .def(py::init<>())
      .def_readwrite("options", &ChunkedCall::options)
      .def_readwrite("tokens", &ChunkedCall::tokens)
      .def_readwrite("summary_key", &ChunkedCall::summary_key)
      .def_readwrite("summary_value", &ChunkedCall::summary_value)
      .def_readwrite("grad_summary_key", &ChunkedCall::grad_summary_key)
      .def_readwrite("grad_summary_value", &ChunkedCall::grad_summary_value)
      .def_readwrite("chunk_size", &ChunkedCall::chunk_size)
      .def_readwrite("lookback", &ChunkedCall::lookback)
      .def_readwrite("lookahead", &ChunkedCall::lookahead)
      .def_readwrite("max_summaries", &ChunkedCall::max_summaries)
      .def_readwrite("causal", &ChunkedCall::causal);
  py::class_<Plan>(module, "Plan", R"(One launch of a CUDA kernel, as the operators make it.)")
      .def_property_readonly("kernel", [](const Plan& plan) { return kernel_name(plan.kernel); })
      .def_readonly("blocks", &Plan::blocks)
      .def_readonly("threads", &Plan::threads)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_property_readonly("parameters", [](const Plan& plan) {
        return py::bytes(reinterpret_cast<const char*>(plan.parameters.data()),
                         plan.parameters.size());
      });
  module.def(
      "plan_cuda_forward",
      [](const PairCall& call, int multiprocessors, int64_t shared_bytes,
         const PythonAllocate& allocate) {
        return plan_forward(call, DeviceLimits{multiprocessors, shared_bytes},
                            allocate_with(allocate));
      },
      py::arg("call"), py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("allocate"),
      R"(Return the launches of a call's forward pass on a GPU with so many multiprocessors, and so
many bytes of shared memory a block. allocate(bytes) returns an address.)");
  module.def(
      "plan_cuda_forward",
      [](const ChunkedCall& call, const PythonAllocate& allocate) {
        return plan_forward(call, allocate_with(allocate));
      },
      py::arg("call"), py::arg("allocate"), R"(The same for chunked attention.)");
  module.def(
      "plan_cuda_backward",
      [](const PairCall& call, int multiprocessors, int64_t shared_bytes,
         const PythonAllocate& allocate) {
        return plan_backward(call, DeviceLimits{multiprocessors, shared_bytes},
                             allocate_with(allocate));
      },
      py::arg("call"), py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("allocate"),
      R"(The same for its backward pass.)");
  module.def("plan_cuda_backward", [](const ChunkedCall& call, const PythonAllocate& allocate) {
    return plan_backward(call, allocate_with(allocate));
  });
}

}  // namespace mmer::cuda
