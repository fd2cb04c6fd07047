"""Tile sizes, warps and stages: what a row of a kernel's table says.

The first row that fits a call is taken; nothing is tuned at run time. ``shared_memory`` is the
budget that the row was chosen within; tests compile every row for every target, hold it to that and
let it spill nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .target import Target


@dataclass(frozen=True)
class Configuration:
    """One row of a table.

    Attributes:
        dim: largest padded dimension of a head that the row is for.
        bits: size of an element, 16 or 32.
        block: size of the resident block.
        tile: size of the streamed tiles.
        warps: warps of a program.
        stages: depth of the software pipeline.
        interior: size of the streamed tiles that need no mask, where larger than ``tile``.
        capability: smallest CUDA capability the row is for, 80 for A100.
        below: the capability that the row is no longer for; 90 alone has wgmma, whose operands lie
            in shared memory, so that rows for it may have larger tiles.
        registers: how many a thread may use; None leaves it to ptxas, which may spill a little so
            that one more program fits on a processor.
        shared_memory: largest number of bytes of shared memory a program may use.
    """

    dim: int
    bits: int
    block: int
    tile: int
    warps: int
    stages: int
    interior: int = 0
    capability: int = 80
    below: int = 1000
    registers: int | None = None
    shared_memory: int = 101_376


def pick(
    table: Sequence[Configuration], dim: int, dtype: torch.dtype, target: Target
) -> Configuration:
    """Return the first row of ``table`` that fits.

    Args:
        table: rows, the narrowest first.
        dim: padded dimension of a head.
        dtype: of the elements.
        target: the GPU.

    Raises:
        LookupError: no row fits.
    """
    bits = 32 if dtype == torch.float32 else 16
    for row in table:
        fits = dim <= row.dim and bits == row.bits
        if fits and row.capability <= target.capability < row.below:
            return row
    raise LookupError(
        f"no configuration for dimension {dim}, {dtype}, capability {target.capability}"
    )
