"""Everything that is measured: our backends, and the peers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import mmer
from mmer._extras import extra_with, install_command
from mmer.benchmark.cases import ChunkShape
from mmer.benchmark.peers import engines, libraries, pytorch
from mmer.benchmark.problem import Call, Problem, Unavailable, torch_call

OURS, TORCH, ENGINE, LIBRARY = "ours", "torch", "engine", "library"


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operators.

    Attributes:
        name: how it is called in tables and by ``--peers``.
        kind: :data:`OURS`, :data:`TORCH`, :data:`ENGINE` or :data:`LIBRARY`.
        make: ``make(problem) -> call``; raises Unavailable, or ImportError.
        distribution: the package whose version is noted.
        compiles: whether it compiles for each shape, which takes long.
    """

    name: str
    kind: str
    make: Callable[[Problem], Call]
    distribution: str = "torch"
    compiles: bool = False

    def prepare(self, problem: Problem) -> Call:
        """Return what computes a problem.

        Raises:
            Unavailable: It cannot; the message says why.
        """
        try:
            return self.make(problem)
        except ImportError as error:
            extra = extra_with(error.name or "")
            advice = f": {install_command(extra)}" if extra else ""
            raise Unavailable(f"{error.name} is not installed{advice}") from error

    @property
    def version(self) -> str:
        """The version of its distribution, empty if that is not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return ""


def _ours(problem: Problem, backend: str) -> Call:
    case, shape = problem.case, problem.case.shape
    function = getattr(mmer, case.operator)
    if isinstance(shape, ChunkShape):
        reach = (shape.chunk_size, shape.lookback, shape.lookahead)
        return torch_call(lambda *x: (function(*x, *reach, backend=backend),), problem)
    return torch_call(partial(function, backend=backend), problem)


def our_implementations(device: str = "cpu") -> list[Implementation]:
    """Return one implementation for each of our backends with kernels for a device.

    Where there is none, it is the reference.
    """
    wanted = ("cpu",) if device == "cpu" else ("cuda", "triton")
    names = [name for name in mmer.kernels.available_backends() if name in wanted]
    return [
        Implementation(
            f"mmer {name}", OURS, partial(_ours, backend=name), distribution="mmer-attention"
        )
        for name in names or ["reference"]
    ]


PEERS: dict[str, Implementation] = {
    peer.name: peer
    for peer in (
        Implementation("sdpa", TORCH, pytorch.sdpa),
        Implementation("eager", TORCH, pytorch.eager),
        Implementation("sdpa flipped", TORCH, pytorch.sdpa_flipped),
        Implementation("sdpa windows", TORCH, pytorch.sdpa_windows),
        Implementation("torch.compile", TORCH, pytorch.compiled_eager, compiles=True),
        Implementation("flex", TORCH, pytorch.flex, compiles=True),
        Implementation("openvino", ENGINE, engines.openvino, "openvino"),
        Implementation("onnxruntime", ENGINE, engines.onnx_runtime, "onnxruntime"),
        Implementation(
            "lucidrains",
            LIBRARY,
            libraries.bidirectional_cross_attention,
            "bidirectional-cross-attention",
        ),
        Implementation("local-attention", LIBRARY, libraries.local_attention, "local-attention"),
        Implementation("flash-attention", LIBRARY, libraries.flash_attention, "flash-attn"),
    )
}


def choose_peers(names: Sequence[str]) -> list[Implementation]:
    """Return the peers of these names.

    Raises:
        ValueError: A name is no peer's.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers: there is no {name!r}, only {', '.join(PEERS)}")
    return [PEERS[name] for name in names]
