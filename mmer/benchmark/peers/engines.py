"""Inference engines on the CPU: OpenVINO and ONNX Runtime, each with a model made for the case.

Inputs lie in memory as the engine likes them before the clock starts, and every call writes into
fresh memory, as PyTorch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmer.benchmark.cases import BACKWARD, ChunkShape
from mmer.benchmark.problem import Call, Problem, Unavailable, directed


def openvino(problem: Problem) -> Call:
    """OpenVINO's scaled_dot_product_attention, all directions in one model."""
    _refuse(problem)
    import openvino
    from openvino import opset13, properties

    case = problem.case
    kinds = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}
    if case.dtype not in kinds:
        raise Unavailable(f"not tried in {case.dtype}")
    kind = kinds[case.dtype]
    parameters = [opset13.parameter(list(x.shape), kind) for x in problem.inputs]
    nodes = [
        opset13.scaled_dot_product_attention(q, k, v) for q, k, v in directed(case, parameters)
    ]
    settings = {
        properties.hint.inference_precision: kind,
        properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
        properties.inference_num_threads: torch.get_num_threads(),
    }
    model = openvino.Core().compile_model(openvino.Model(nodes, parameters), "CPU", settings)
    request = model.create_infer_request()

    def wrap(x: Tensor) -> Any:
        bits = x.view(torch.int16) if case.dtype == "bfloat16" else x
        return openvino.Tensor(bits.numpy(), list(x.shape), kind)

    inputs = [wrap(x) for x in problem.inputs]
    for number, tensor in enumerate(inputs):
        request.set_input_tensor(number, tensor)

    def call() -> tuple[Tensor, ...]:
        outputs = tuple(torch.empty_like(x) for x in problem.output_gradients)
        for number, x in enumerate(outputs):
            request.set_output_tensor(number, wrap(x))
        request.infer()
        return outputs

    return call


def onnx_runtime(problem: Problem) -> Call:
    """ONNX Runtime's com.microsoft MultiHeadAttention, one node for each direction."""
    _refuse(problem)
    import onnxruntime
    from onnx import TensorProto, helper

    case, heads = problem.case, problem.case.shape.heads
    if case.dtype != "float32":
        raise Unavailable(f"its CPU operator does not take {case.dtype}")

    def value(name: str, shape: tuple[int, ...]) -> Any:
        batch, _, time, dim = shape
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, time, heads * dim])

    names = [f"input_{number}" for number in range(len(problem.inputs))]
    outputs = [f"output_{number}" for number in range(len(problem.output_gradients))]
    nodes = [
        helper.make_node(
            "MultiHeadAttention", list(inputs), [output], domain="com.microsoft", num_heads=heads
        )
        for inputs, output in zip(directed(case, names), outputs, strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [value(n, s) for n, s in zip(names, case.input_shapes, strict=True)],
        [value(n, s) for n, s in zip(outputs, case.output_shapes, strict=True)],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning for a while and slow down whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    # (batch, time, heads * head_dim) is the layout of the operator.
    inputs = [x.transpose(1, 2).flatten(2).contiguous() for x in problem.inputs]
    binding = session.io_binding()

    def place(x: Tensor) -> tuple[Any, ...]:
        return ("cpu", 0, TensorProto.FLOAT, list(x.shape), x.data_ptr())

    for name, x in zip(names, inputs, strict=True):
        binding.bind_input(name, *place(x))

    def call() -> tuple[Tensor, ...]:
        results = []
        for name, (batch, _, time, dim) in zip(outputs, case.output_shapes, strict=True):
            out = inputs[0].new_empty(batch, time, heads * dim)
            binding.bind_output(name, *place(out))
            results.append(out.unflatten(2, (heads, dim)).transpose(1, 2))
        session.run_with_iobinding(binding)
        return tuple(results)

    return call


def _refuse(problem: Problem) -> None:
    if problem.case.direction == BACKWARD:
        raise Unavailable("it is an inference engine: no backward")
    if isinstance(problem.case.shape, ChunkShape):
        raise Unavailable("it has no attention over chunks")
    if problem.inputs[0].device.type != "cpu":
        raise Unavailable("it is measured on the CPU only")
