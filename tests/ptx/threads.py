"""The threads of a batch of CTAs, laid out one after the other in every array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_] | None
Lanes = NDArray[np.int64]
WARP = 32


class Threads:
    """Who runs: ``count`` lanes, of which those of a last, partial warp may be ``missing``.

    Attributes:
        ctas: Linear indices in the grid of the CTAs of this batch.
        size: Lanes of a CTA, a multiple of 32.
        real_size: Threads of a CTA as launched.
        warps: Warps of a CTA.
        cta: For each lane, its CTA's place in the batch.
        warp: For each lane, its warp, counted over the batch.
        cluster_size: CTAs of a cluster; they stand one after the other, by their rank.
    """

    def __init__(
        self,
        ctas: NDArray[np.int64],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        cluster: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        self.ctas = ctas
        self.cluster = cluster
        self.cluster_size = int(np.prod(cluster))
        self.grid, self.block = grid, block
        self.real_size = int(np.prod(block))
        self.warps = -(-self.real_size // WARP)
        self.size = self.warps * WARP
        self.count = len(ctas) * self.size
        self.every = np.arange(self.count)
        self.thread = self.every % self.size
        self.cta = self.every // self.size
        self.warp = self.every // WARP
        self.lane = self.every % WARP
        self.missing = self.thread >= self.real_size

    def active(self, mask: Mask) -> Lanes:
        """The indices of the lanes in ``mask``; None stands for all."""
        return self.every if mask is None else np.flatnonzero(mask)

    def active_warps(self, mask: Mask) -> int:
        """The number of warps with a lane in ``mask``."""
        if mask is None:
            return self.count // WARP
        return int(np.count_nonzero(mask.reshape(-1, WARP).any(axis=1)))

    def name(self, lane: Any) -> str:
        """Which thread of which CTA a lane is, for messages."""
        cta, thread = self.ctas[self.cta[lane]], self.thread[lane]
        x, y, _ = self.grid
        return f"thread {thread} of CTA ({cta % x}, {cta // x % y}, {cta // (x * y)})"

    def special_registers(self) -> dict[str, NDArray[Any]]:
        """The special registers, by the names that translated code gives them."""
        values: dict[str, Any] = {}
        number = self.ctas[self.cta]
        thread = np.minimum(self.thread, self.real_size - 1)
        for axis, size, extent in zip("xyz", self.block, self.grid, strict=True):
            values[f"tid_{axis}"], thread = thread % size, thread // size
            values[f"ctaid_{axis}"], number = number % extent, number // extent
            values[f"ntid_{axis}"] = np.full(self.count, size)
            values[f"nctaid_{axis}"] = np.full(self.count, extent)
        for axis, size, extent in zip("xyz", self.cluster, self.grid, strict=True):
            values[f"cluster_ctaid_{axis}"] = values[f"ctaid_{axis}"] % size
            values[f"clusterid_{axis}"] = values[f"ctaid_{axis}"] // size
            values[f"cluster_nctaid_{axis}"] = np.full(self.count, size)
            values[f"nclusterid_{axis}"] = np.full(self.count, extent // size)
        values["cluster_ctarank"] = self.cta % self.cluster_size
        values["cluster_nctarank"] = np.full(self.count, self.cluster_size)
        values["laneid"] = self.lane
        values["warpid"] = self.thread // WARP
        values["nwarpid"] = np.full(self.count, self.warps)
        bit = np.uint64(1) << self.lane.astype(np.uint64)
        full = np.uint64(0xFFFFFFFF)
        one = np.uint64(1)
        values["lanemask_eq"], values["lanemask_lt"] = bit, bit - one
        values["lanemask_le"] = bit * np.uint64(2) - one
        values["lanemask_gt"] = full - values["lanemask_le"]
        values["lanemask_ge"] = full - values["lanemask_lt"]
        return {name: value.astype(np.uint32) for name, value in values.items()}


def clusters_of(grid: tuple[int, int, int], cluster: tuple[int, int, int]) -> NDArray[np.int64]:
    """The grid's CTAs by their linear indices: (clusters, CTAs of a cluster by rank)."""
    index = np.arange(int(np.prod(grid))).reshape(grid[::-1])
    split = []
    for extent, size in zip(grid[::-1], cluster[::-1], strict=True):
        split += [extent // size, size]
    return index.reshape(split).transpose(0, 2, 4, 1, 3, 5).reshape(-1, int(np.prod(cluster)))
