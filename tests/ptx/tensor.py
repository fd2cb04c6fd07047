"""mma.sync and movmatrix: fragments of warps multiplied in float64 and rounded once."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.counters import Counters
from tests.ptx.findings import Findings
from tests.ptx.numerics import from_bfloat16
from tests.ptx.parser import Instruction
from tests.ptx.shared_memory import whole_warps
from tests.ptx.threads import WARP, Mask, Threads

Array = NDArray[Any]


def decode(words: Array, type_name: str) -> NDArray[np.float64]:
    """Fragments as numbers: 16-bit types give two for each 32-bit word, tf32 drops 13 bits.

    Args:
        words: uint32, or uint16 for the 16-bit types; the last axis is contiguous.
        type_name: "bf16", "f16" or "tf32".
    """
    if type_name == "tf32":
        kept = np.ascontiguousarray(words).view(np.uint32) & np.uint32(0xFFFFE000)
        return kept.view(np.float32).astype(np.float64)
    halves = np.ascontiguousarray(words).view(np.uint16)
    if type_name == "bf16":
        return from_bfloat16(halves).astype(np.float64)
    return halves.view(np.float16).astype(np.float64)


class TensorCores:
    """Tensor-core instructions of warps."""

    def __init__(self, threads: Threads, findings: Findings, counters: Counters) -> None:
        self.threads, self.findings, self.counters = threads, findings, counters

    def mma(
        self,
        shape: str,
        type_name: str,
        a: list[Array],
        b: list[Array],
        c: list[Array],
        m: Mask,
        here: Instruction,
    ) -> Array:
        """D = A B + C of one 16 x 8 tile a warp: (4, lanes).

        Lane 4 g + t holds rows g and g + 8 of A, column g of B, and columns 2 t and 2 t + 1 of rows
        g and g + 8 of C and D; along k, pair t (for tf32: element t) of each block.
        """
        whole_warps(self.threads, m, here, self.findings)
        rows, columns, depth = (int(x) for x in re.findall(r"\d+", shape))
        executions = self.threads.active_warps(m)
        self.counters.count_mma(f"{shape} {type_name}", executions, 2 * rows * columns * depth)
        warps = self.threads.count // WARP
        elements = 1 if type_name == "tf32" else 2
        blocks = len(b)
        a_rmem = decode(np.stack(a), type_name).reshape(blocks, 2, warps, 8, 4, elements)
        b_rmem = decode(np.stack(b), type_name).reshape(blocks, warps, 8, 4, elements)
        # (warp, row half, row, k block, t, element) and (warp, k block, t, element, column)
        a_tile = a_rmem.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, depth)
        b_tile = b_rmem.transpose(1, 0, 3, 4, 2).reshape(warps, depth, 8)
        # (row half, column parity, warp, row, t) -> (warp, row half, row, t, column parity)
        c_tile = np.stack(c).reshape(2, 2, warps, 8, 4).transpose(2, 0, 3, 4, 1)
        d_tile = (c_tile.reshape(warps, 16, 8) + a_tile @ b_tile).astype(np.float32)
        d_rmem = d_tile.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
        return d_rmem.reshape(4, self.threads.count)

    def transpose(self, x: Array, m: Mask, here: Instruction) -> Array:
        """movmatrix: the 8 x 8 matrix of 16-bit elements that a warp holds, transposed."""
        whole_warps(self.threads, m, here, self.findings)
        tiles = np.ascontiguousarray(x).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
        return np.ascontiguousarray(tiles).view(np.uint32).reshape(-1)
