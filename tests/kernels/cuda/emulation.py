"""The CUDA kernels as a backend without a GPU: their launch plans, executed from nvcc's PTX.

What runs is what a GPU would be given: the plans come from the code that launches, the PTX from the
sources that are built. Only the machine is replaced (`tests.ptx`), which also reports every race,
every read of memory that nothing was written to, and every access outside of the tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mmer.kernels.backends as backends
from mmer._build import load_native
from mmer.kernels import bidirectional, chunked, shared
from mmer.kernels.registration import OperatorDefinition, define
from tests.ptx import Counters, LoadedModule, Output, Scratch, Struct, compile_cuda

SOURCES = Path(__file__).resolve().parents[3] / "csrc" / "cuda"
_SOURCE_OF = {
    "directed_forward": "directed_forward.cu",
    "shared_forward": "shared_forward.cu",
    "shared_short": "shared_short.cu",
    "query_backward": "owner_backward.cu",
    "key_backward": "owner_backward.cu",
    "shared_backward": "owner_backward.cu",
    "once_backward": "once_backward.cu",
    "merge_gradients": "once_backward.cu",
}
_DEFINITIONS = {
    module.operator.DEFINITION.name: module.operator.DEFINITION
    for module in (shared, bidirectional, chunked)
}


@dataclass
class Launch:
    """One kernel that ran."""

    plan: Any
    counters: Counters


@dataclass
class Machine:
    """Where plans are executed.

    Attributes:
        arch: What the kernels are compiled for.
        sources: Folder of the kernels' sources.
        seed: Order in which warps run; None runs them in step.
        multiprocessors: So few that one block a head keeps them busy, or more.
        shared_bytes: Shared memory of a block; an A100's by default.
        execute: False only notes what would run; results are left undefined.
        launches: What ran, in order.
    """

    arch: str = "sm_80"
    sources: Path = SOURCES
    seed: int | None = None
    multiprocessors: int = 1
    shared_bytes: int = 163 * 1024
    execute: bool = True
    launches: list[Launch] = field(default_factory=list)

    def run(self, plans: Sequence[Any], memory: dict[int, Any]) -> None:
        """Execute plans whose pointers are those of ``memory``, by address."""
        for plan in plans:
            if not self.execute:
                self.launches.append(Launch(plan, Counters()))
                continue
            kernel = kernels_of(plan.kernel, self.arch, self.sources)[plan.kernel]
            words = np.frombuffer(plan.parameters, np.uint64)
            parameters = Struct([memory.get(int(word), word) for word in words])
            counters = kernel.launch(
                (plan.blocks,), (plan.threads,), [parameters], plan.shared_bytes, seed=self.seed
            )
            self.launches.append(Launch(plan, counters))


def kernels_of(kernel: str, arch: str, sources: Path) -> LoadedModule:
    """The compiled source of a kernel, for its element type and class of head dimensions."""
    name, defines = source_of(kernel)
    return _compiled(sources / name, tuple(defines.items()), arch)


def source_of(kernel: str) -> tuple[str, dict[str, Any]]:
    """The file that holds a kernel, and the macros that it is compiled with."""
    role, element, *variant = kernel.removeprefix("mmer_").rsplit("_", 3)
    if variant[-1] in ("plain", "extras") or variant[-1].startswith("rows"):
        return _SOURCE_OF[role], {"MMER_ELEMENT": element, "MMER_ONLY_COLUMNS": int(variant[0])}
    return "small_kernels.cu", {"MMER_ELEMENT": variant[-1]}


@cache
def _compiled(source: Path, defines: tuple[tuple[str, Any], ...], arch: str) -> LoadedModule:
    return compile_cuda(source, arch, defines=dict(defines), options=["--expt-relaxed-constexpr"])


class Call:
    """The tensors of one call, and the address of each."""

    def __init__(self) -> None:
        self.native = load_native()
        self.memory: dict[int, Any] = {}
        self.kept: list[Tensor] = []

    def view(self, x: Tensor | None, *, output: bool = False) -> Any:
        if x is None or not x.numel():
            x_shape = (0,) if x is None else tuple(x.shape)
            return self.native.TensorView(0, x_shape, [1] * len(x_shape))
        self.memory[x.data_ptr()] = Output(x) if output else x.detach()
        self.kept.append(x)
        return self.native.TensorView(x.data_ptr(), x.shape, x.stride())

    def new(self, *shape: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
        x = torch.empty(shape, dtype=dtype)
        return x, self.view(x, output=True)

    def allocate(self, size: int) -> int:
        x = torch.empty(max(size, 1), dtype=torch.uint8)
        self.memory[x.data_ptr()] = Scratch(x)
        self.kept.append(x)
        return x.data_ptr()

    def options(self, element: torch.dtype, options: Any) -> Any:
        made = self.native.CallOptions()
        made.set_element(str(element).removeprefix("torch."))
        made.scale, made.dropout_p = options.scale, options.dropout_p
        if options.dropout_seed is not None:
            self.view(options.dropout_seed)
            made.set_dropout_seed(options.dropout_seed.data_ptr())
        if hasattr(options, "decay"):
            made.decay, made.max_gap = self.view(options.decay), options.max_gap
        return made


def _pair_call(
    call: Call, definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> Any:
    made = call.native.PairCall()
    made.options = call.options(tensors[0].dtype, options)
    made.shared = definition.name == "shared_cross_attention"
    if made.shared:
        qk_a, qk_b, v_a, v_b = tensors
        tensors = (qk_a, qk_a, v_a, qk_b, qk_b, v_b)
    for side, parts, mask, times in (
        ("a", tensors[:3], options.mask_a, options.times_a),
        ("b", tensors[3:], options.mask_b, options.times_b),
    ):
        view = getattr(made, side)
        view.query, view.key, view.value = map(call.view, parts)
        view.mask, view.times = call.view(mask), call.view(times)
    return made


def _chunked_call(call: Call, tensors: Sequence[Tensor], options: Any) -> Any:
    made = call.native.ChunkedCall()
    made.options = call.options(tensors[0].dtype, options)
    view = made.tokens
    view.query, view.key, view.value = map(call.view, tensors)
    view.mask = call.view(options.mask)
    made.summary_key, made.summary_value = (
        call.view(options.summary_k),
        call.view(options.summary_v),
    )
    for name in ("chunk_size", "lookback", "lookahead", "causal"):
        setattr(made, name, getattr(options, name))
    made.max_summaries = min(options.max_summaries, 2**62)
    return made


def forward(
    machine: Machine, definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> tuple[Tensor, ...]:
    """Outputs and log-sum-exps of a validated call."""
    call = Call()
    shapes = definition.output_shapes(tensors)
    outs = [call.new(*shape, dtype=tensors[0].dtype) for shape in shapes]
    lses = [call.new(*shape[:-1], dtype=torch.float32) for shape in shapes]
    if len(shapes) == 1:
        made = _chunked_call(call, tensors, options)
        sequences = (made.tokens,)
    else:
        made = _pair_call(call, definition, tensors, options)
        sequences = (made.a, made.b)
    for sequence, (_, out), (_, lse) in zip(sequences, outs, lses, strict=True):
        sequence.out, sequence.lse = out, lse
    if len(shapes) == 1:
        plans = call.native.plan_cuda_forward(made, call.allocate)
    else:
        limits = (machine.multiprocessors, machine.shared_bytes)
        plans = call.native.plan_cuda_forward(made, *limits, call.allocate)
    machine.run(plans, call.memory)
    return tuple(x for x, _ in (*outs, *lses))


def backward(
    machine: Machine, definition: OperatorDefinition, arguments: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """Gradients, from the arguments of the backward operator."""
    outputs = definition.outputs
    grads, rest = arguments[: 2 * outputs], arguments[2 * outputs :]
    *tensors, options = rest[: -2 * outputs]
    saved = rest[-2 * outputs :]
    call = Call()
    dtype = tensors[0].dtype
    gradients = [call.new(*x.shape, dtype=dtype) for x in tensors]
    last: list[Tensor | None] = []
    if outputs == 1:
        made = _chunked_call(call, tensors, options)
        sequences = (made.tokens,)
        view = made.tokens
        view.grad_query, view.grad_key, view.grad_value = (x for _, x in gradients)
        last = [None, None]
        if options.summary_k is not None:
            pair = [call.new(*x.shape, dtype=dtype) for x in (options.summary_k, options.summary_v)]
            made.grad_summary_key, made.grad_summary_value = (x for _, x in pair)
            last = [x for x, _ in pair]
    else:
        made = _pair_call(call, definition, tensors, options)
        sequences = (made.a, made.b)
        views = [x for _, x in gradients]
        if made.shared:
            qk_a, qk_b, v_a, v_b = views
            views = [qk_a, qk_a, v_a, qk_b, qk_b, v_b]
        for sequence, parts in ((made.a, views[:3]), (made.b, views[3:])):
            sequence.grad_query, sequence.grad_key, sequence.grad_value = parts
        last = [None]
        if options.decay is not None:
            last[0], view = call.new(*options.decay.shape, dtype=torch.float32)
            made_options = made.options
            made_options.grad_decay = view
    for n, sequence in enumerate(sequences):
        sequence.grad_out, sequence.grad_lse = call.view(grads[n]), call.view(grads[outputs + n])
        sequence.out, sequence.lse = call.view(saved[n]), call.view(saved[outputs + n])
    limits = () if outputs == 1 else (machine.multiprocessors, machine.shared_bytes)
    machine.run(call.native.plan_cuda_backward(made, *limits, call.allocate), call.memory)
    return (*(x for x, _ in gradients), *last)


_machine = Machine()


@cache
def _define() -> None:
    for definition in _DEFINITIONS.values():

        def run_forward(
            *arguments: Any, definition: OperatorDefinition = definition
        ) -> tuple[Tensor, ...]:
            return forward(_machine, definition, arguments[:-1], arguments[-1])

        def run_backward(
            *arguments: Any, definition: OperatorDefinition = definition
        ) -> tuple[Tensor | None, ...]:
            return backward(_machine, definition, arguments)

        define(definition, "mmer_cuda", run_forward, run_backward)


@contextlib.contextmanager
def emulated_backend(**settings: Any) -> Iterator[Machine]:
    """Make ``backend="cuda"`` execute CPU tensors' calls under emulation, with autograd."""
    _define()
    before, unavailable = dict(backends._registered), dict(backends._unavailable)
    fresh = Machine(**settings)
    _machine.__dict__.update(fresh.__dict__)
    backends.register_backend(
        backends.Backend("cuda", ("cpu",), lambda *_: None, frozenset(_DEFINITIONS))
    )
    try:
        yield _machine
    finally:
        backends._registered.clear()
        backends._registered.update(before)
        backends._unavailable.clear()
        backends._unavailable.update(unavailable)
