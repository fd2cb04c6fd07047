"""What the lanes of a warp do together: shuffles, votes, reductions, matches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.findings import Findings, PtxError
from tests.ptx.numerics import leading_zeros
from tests.ptx.parser import Instruction
from tests.ptx.shadow import Clocks
from tests.ptx.threads import WARP, Mask, Threads

Array = NDArray[Any]

_LANES = np.arange(WARP)
_REDUCTIONS = {
    "add": (np.add, 0),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
    "and": (np.bitwise_and, 0xFFFFFFFF),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}


class Warps:
    """Operations over rows of 32 lanes."""

    def __init__(self, threads: Threads, clocks: Clocks, findings: Findings) -> None:
        self.threads, self.clocks, self.findings = threads, clocks, findings

    def _members(self, mask_operand: Array, m: Mask, here: Instruction) -> NDArray[np.bool_]:
        """(warps, lane, member): who takes part with each active lane."""
        named = (mask_operand.reshape(-1, WARP, 1) >> _LANES.astype(np.uint32)) & np.uint32(1) == 1
        active = np.ones((len(named), WARP), np.bool_) if m is None else m.reshape(-1, WARP)
        alive = active | ~self._missing()
        absent = active[:, :, None] & named & ~active[:, None, :] & alive[:, None, :]
        unnamed = active & ~named[:, _LANES, _LANES]
        for wrong, text in ((absent.any(axis=2), "names a lane that is not here"),
                            (unnamed, "is not in its own mask")):  # fmt: skip
            if wrong.any():
                lane = int(np.flatnonzero(wrong.reshape(-1))[0])
                self.findings.report("absent lane", here, f"{self.threads.name(lane)} {text}")
        return named & active[:, None, :]

    def _missing(self) -> NDArray[np.bool_]:
        return self.threads.missing.reshape(-1, WARP)

    def _check_mask(self, mask_operand: Array, m: Mask, here: Instruction) -> None:
        if m is None and (mask_operand == np.uint32(0xFFFFFFFF)).all():
            return
        self._members(mask_operand, m, here)

    def shuffle(
        self, mode: str, x: Array, b: Array, c: Array, mask: Array, m: Mask, here: Instruction
    ) -> Array:
        """shfl.sync: each lane reads another's ``x``, or its own where that is out of range."""
        self._check_mask(mask, m, here)
        source, in_range = self._source_lane(mode, b, c)
        source = np.where(in_range, source, _LANES)
        if m is not None:
            active = m.reshape(-1, WARP)
            inactive = active & ~np.take_along_axis(active, source, axis=1)
            if inactive.any():
                lane = int(np.flatnonzero(inactive.reshape(-1))[0])
                detail = f"{self.threads.name(lane)} reads a lane that is not here"
                self.findings.report("absent lane", here, detail)
        return np.take_along_axis(x.reshape(-1, WARP), source, axis=1).reshape(-1)

    def shuffle_in_range(self, mode: str, b: Array, c: Array) -> NDArray[np.bool_]:
        """The second destination of shfl.sync."""
        return self._source_lane(mode, b, c)[1].reshape(-1)

    @staticmethod
    def _source_lane(mode: str, b: Array, c: Array) -> tuple[Array, NDArray[np.bool_]]:
        lane = _LANES[None]
        b = b.astype(np.int64).reshape(-1, WARP) & 31
        c = c.astype(np.int64).reshape(-1, WARP)
        segment, clamp = (c >> 8) & 31, c & 31
        last = (lane & segment) | (clamp & ~segment)
        if mode == "up":
            source = lane - b
            return source & 31, source >= last
        source = {
            "bfly": lane ^ b,
            "down": lane + b,
            "idx": (lane & segment) | (b & ~segment),
        }[mode]
        return source & 31, source <= last

    def ballot(self, predicate: Array, mask: Array, m: Mask, here: Instruction) -> Array:
        """vote.sync.ballot: bit i is lane i's predicate."""
        members = self._members(mask, m, here)
        votes = members & predicate.reshape(-1, 1, WARP)
        return (votes * (np.uint64(1) << _LANES.astype(np.uint64))).sum(axis=2).astype(
            np.uint32
        ).reshape(-1)  # fmt: skip

    def is_uniform(self, predicate: Array, mask: Array, m: Mask, here: Instruction) -> Array:
        """vote.sync.uni: all predicates are equal."""
        some = self.ballot(predicate, mask, m, here) != 0
        others = self.ballot(~predicate, mask, m, here) != 0
        return ~(some & others)

    def match(self, x: Array, mask: Array, m: Mask, here: Instruction) -> Array:
        """match.any.sync: the lanes that hold the same value."""
        rows = x.reshape(-1, WARP)
        equal = (rows[:, :, None] == rows[:, None, :]) & self._members(mask, m, here)
        return (equal * (np.uint64(1) << _LANES.astype(np.uint64))).sum(axis=2).astype(
            np.uint32
        ).reshape(-1)  # fmt: skip

    def reduce(self, operation: str, x: Array, mask: Array, m: Mask, here: Instruction) -> Array:
        """redux.sync: the reduction over the members."""
        function, neutral = _REDUCTIONS[operation]
        if neutral is None:
            limits = np.iinfo(x.dtype)
            neutral = limits.max if operation == "min" else limits.min
        members = self._members(mask, m, here)
        wide = np.where(members, x.reshape(-1, 1, WARP), x.dtype.type(neutral))
        return function.reduce(wide, axis=2).astype(x.dtype).reshape(-1)

    def active_mask(self, m: Mask) -> Array:
        """activemask: the lanes that run together now."""
        active = np.ones(self.threads.count, np.bool_) if m is None else m
        bits = active.reshape(-1, WARP) * (np.uint64(1) << _LANES.astype(np.uint64))
        return np.repeat(bits.sum(axis=1).astype(np.uint32), WARP)

    def sync(self, mask: Array, m: Mask, here: Instruction) -> None:
        """bar.warp.sync: what the warp's lanes wrote before is visible to its lanes after."""
        self._check_mask(mask, m, here)
        self.clocks.advance(np.unique(self.threads.active(m) // WARP))

    def elect(self, mask: Array, m: Mask, here: Instruction) -> Array:
        """elect.sync: the lowest lane of the mask."""
        self._check_mask(mask, m, here)
        lowest = mask & (~mask + np.uint32(1))
        if (mask == 0).any() and m is None:
            raise PtxError(f"line {here.line}: an empty mask: {here.text}")
        return np.uint32(31) - leading_zeros(lowest)

    def is_elected(self, mask: Array) -> NDArray[np.bool_]:
        """The second destination of elect.sync."""
        lowest = mask & (~mask + np.uint32(1))
        return (lowest >> self.threads.lane.astype(np.uint32)) & np.uint32(1) == 1
