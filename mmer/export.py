"""Saving modules with the attention operators in formats that know none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ._extras import install_command
from .kernels import decompositions
from .training.files import replace_file


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    arguments: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> None:
    """Write a module to an ONNX file of standard operators only.

    The attention operators become what they are defined as: products, a masked softmax, products.
    So any ONNX runtime can run the file, with the (time_a, time_b) similarities in memory. Rows
    that see nothing give 0, as ever.

    Args:
        module: in evaluation mode; its ``forward`` is exported.
        path: of the file; it is replaced when the new one is whole.
        arguments: example inputs, in order.
        options: example inputs, by keyword.
        dynamic_shapes: which sizes may vary, as ``torch.export.export`` takes it; sizes that may
            vary must be at least 2 in the example, and may be 1 only if the program allows it.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: ``module`` is in training mode.
        ModuleNotFoundError: the ``onnx`` extra is not installed.

    Example:
        >>> layer = SharedCrossAttention(64, 4).eval()
        >>> batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
        >>> export_onnx(
        ...     layer,
        ...     "layer.onnx",
        ...     (torch.randn(2, 300, 64), torch.randn(2, 500, 64)),
        ...     dynamic_shapes={"x_a": {0: batch}, "x_b": {0: batch, 1: time}},
        ... )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if module.training:
        raise ValueError("module must be in evaluation mode: call module.eval() first")
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says less when it is missing
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ONNX needs {install_command('onnx')}") from error
    with torch.no_grad():
        program = torch.export.export(
            module, tuple(arguments), dict(options or {}), dynamic_shapes=dynamic_shapes
        )
    program = program.run_decompositions(decompositions())
    onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx_program is not None
    with replace_file(path) as temporary:
        onnx_program.save(temporary)
