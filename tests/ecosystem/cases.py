"""Modules that everything of PyTorch's is tried on: layers of ours, and a library's, replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.layers import BidirectionalCrossAttention, ChunkedTemporalAttention, SharedCrossAttention


def replaced_cross_block() -> nn.Module:
    lightglue = pytest.importorskip("kornia.feature.lightglue")
    block = lightglue.CrossBlock(16, 2)
    replace_attention(block)
    return block


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "bidirectional": lambda: BidirectionalCrossAttention(16, 2),
    "shared": lambda: SharedCrossAttention(16, 2),
    "chunked": lambda: ChunkedTemporalAttention(16, 2, chunk_size=4),
    "kornia": replaced_cross_block,
}


def make(name: str) -> nn.Module:
    """One of the modules, always with the same weights."""
    torch.manual_seed(0)
    return MAKERS[name]()


def inputs(name: str, batch: int = 4) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments and keywords; there is padding, except for kornia's block."""
    torch.manual_seed(1)
    x, y = torch.randn(batch, 9, 16), torch.randn(batch, 11, 16)
    mask = torch.arange(11) < torch.tensor([11, 5, 8, 11] * batch)[:batch, None]
    if name == "chunked":
        return (y,), {"mask": mask}
    return (x, y), {} if name == "kornia" else {"mask_b": mask}


def total(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    """A loss that every output matters to, summed over the batch."""
    outputs = module(*arguments, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(out.square().sum() for out in outputs)


def loss_of(module: nn.Module, name: str, batch: slice = slice(None)) -> Tensor:
    """The loss of some of the batch."""
    arguments, options = inputs(name)
    return total(
        module, tuple(x[batch] for x in arguments), {k: v[batch] for k, v in options.items()}
    )
