"""The operators as plain PyTorch, for what knows PyTorch's own operators only (ONNX, say)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import available_backends
from .registration import OperatorDefinition


def decompose(
    definitions: Sequence[OperatorDefinition],
) -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Return, for the forward operator of every backend, the reference that it can be replaced by.

    Args:
        definitions: the operators.

    Returns:
        A table for ``torch.export.ExportedProgram.run_decompositions``.
    """
    table: dict[torch._ops.OperatorBase, Callable[..., Any]] = {}
    for definition in definitions:
        for backend in available_backends():
            operator = getattr(getattr(torch.ops, f"mmer_{backend}"), definition.name, None)
            if operator is not None:
                table[operator.default] = _plain(definition)
    return table


def _plain(definition: OperatorDefinition) -> Callable[..., tuple[Tensor, ...]]:
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = definition.split(arguments)
        return definition.forward(*tensors, options)

    return run
