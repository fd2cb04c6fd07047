"""Fused attention operators for multimodal sequences, several backends behind each function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import bidirectional, chunked, cpu, cuda, shared, triton_backend
from .backends import (
    Explanation,
    available_backends,
    define_reference,
    explain_call,
    machine_reasons,
)
from .bidirectional import bidirectional_cross_attention
from .chunked import (
    ChunkedAttentionState,
    chunk_summaries,
    chunked_attention,
    chunked_attention_step,
)
from .chunked.window import WINDOW
from .decompositions import decompose
from .registration import OperatorDefinition
from .shared import shared_cross_attention

__all__ = [
    "ChunkedAttentionState",
    "Explanation",
    "available_backends",
    "bidirectional_cross_attention",
    "chunk_summaries",
    "chunked_attention",
    "chunked_attention_step",
    "decompositions",
    "explain",
    "machine_reasons",
    "shared_cross_attention",
]

_OPERATORS: dict[str, tuple[OperatorDefinition, Callable[..., Any]]] = {
    module.operator.DEFINITION.name: (module.operator.DEFINITION, module.operator.prepare)
    for module in (bidirectional, shared, chunked)
}
_DEFINITIONS = [definition for definition, _ in _OPERATORS.values()]
# From the root of the repository, transformers finds this folder when it looks for a package named
# kernels: as that it loads, and registers nothing.
if __name__ == "mmer.kernels":
    define_reference(*_DEFINITIONS, WINDOW)
    triton_backend.enter(_DEFINITIONS)


def enter_cpu(unavailable: str | None) -> None:
    """Enter the CPU kernels, once their library was loaded, or say why it could not be.

    Args:
        unavailable: None if the library is loaded, else why it is not.
    """
    cpu.enter([*_DEFINITIONS, WINDOW], unavailable)


def enter_cuda(unavailable: str | None) -> None:
    """Enter the CUDA C++ kernels, once their library was loaded, or say why it could not be.

    Args:
        unavailable: None if the library is loaded, else why it is not.
    """
    cuda.enter(_DEFINITIONS, unavailable)


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Return a table for ``torch.export.ExportedProgram.run_decompositions``.

    It replaces the operators of every backend by plain PyTorch, which any exporter knows.
    """
    return decompose(_DEFINITIONS)


def explain(op: str | Callable[..., Any], *arguments: Any, **options: Any) -> Explanation:
    """Say which backend ``backend="auto"`` takes for a call, and why each of the others is refused.

    Args:
        op: an operator of this package, or its name.
        *arguments: the call's tensors. Without any, the answer is about this machine.
        **options: the call's options.

    Returns:
        The explanation; ``print`` it, or read its ``chosen`` and ``reasons``.

    Raises:
        ValueError: ``op`` is no operator of this package.
        TypeError: as the operator raises.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _OPERATORS:
        raise ValueError(f"op must be one of {sorted(_OPERATORS)}, got {name!r}")
    definition, prepare = _OPERATORS[name]
    if not arguments and not options:
        available = available_backends()
        return Explanation(name, available[0], machine_reasons())
    options.pop("return_lse", None)
    options.pop("backend", None)
    tensors, checked = prepare(*arguments, **options)
    return explain_call(definition, tensors, checked)
