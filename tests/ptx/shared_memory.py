"""Shared memory of a batch of CTAs, with ldmatrix and stmatrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import atomics
from tests.ptx.counters import Counters
from tests.ptx.findings import Findings
from tests.ptx.parser import Instruction
from tests.ptx.shadow import SharedShadow
from tests.ptx.threads import WARP, Lanes, Mask, Threads

Array = NDArray[Any]


class SharedMemory:
    """``stride`` bytes for each CTA of the batch, of which ``size`` may be used."""

    def __init__(
        self,
        threads: Threads,
        size: int,
        stride: int,
        shadow: SharedShadow,
        findings: Findings,
        counters: Counters,
        random: np.random.Generator | None,
    ) -> None:
        self.threads, self.size, self.stride = threads, size, stride
        self.shadow, self.findings, self.counters = shadow, findings, counters
        self.random = random
        self.bytes = np.full(stride * len(threads.ctas), 0xFF, np.uint8)

    def load(self, addresses: Array, dtype: Any, count: int, m: Mask, here: Instruction) -> Array:
        """``count`` neighbouring elements for each lane: (count, lanes), zero where inactive."""
        size = np.dtype(dtype).itemsize * count
        lanes, offsets = self.locate(addresses, size, self.threads.active(m), here, "reads")
        result = np.zeros((count, self.threads.count), dtype)
        if len(lanes) == 0:
            return result
        self.shadow.read(self.shadow.granules(offsets, size), lanes, here)
        self.count("load", offsets, size, lanes)
        rows = self.bytes.view(dtype).reshape(-1, count)[offsets // size]
        if len(lanes) == self.threads.count:
            return rows.T
        result[:, lanes] = rows.T
        return result

    def store(
        self, addresses: Array, values: list[Array], dtype: Any, m: Mask, here: Instruction
    ) -> None:
        """Store neighbouring elements, one array of ``values`` for each."""
        size = np.dtype(dtype).itemsize * len(values)
        lanes, offsets = self.locate(addresses, size, self.threads.active(m), here, "writes")
        if len(lanes) == 0:
            return
        rows = np.stack([value[lanes] for value in values], axis=1).view(dtype)
        self._write_rows(rows, offsets, size, lanes, here)
        self.count("store", offsets, size, lanes)

    def _write_rows(
        self, rows: Array, offsets: Array, size: int, lanes: Lanes, here: Instruction
    ) -> None:
        memory = self.bytes.view(rows.dtype).reshape(-1, rows.shape[1])
        places = offsets // size
        granules = self.shadow.granules(offsets, size)
        same = (memory[places].view(np.uint8) == np.ascontiguousarray(rows).view(np.uint8)).reshape(
            len(lanes), granules.shape[1], -1
        )
        self.shadow.write(granules, lanes, here, unchanged=same.all(axis=-1))
        memory[places] = rows
        differ = (memory[places] != rows).any(axis=1)
        if differ.any():
            detail = f"{self.threads.name(lanes[differ][0])} and another store to the same address"
            self.findings.report("conflicting store", here, detail)

    def update(
        self,
        operation: str,
        type_name: str,
        addresses: Array,
        values: list[Array],
        m: Mask,
        here: Instruction,
    ) -> Array:
        """An atomic operation of each lane; returns what the lanes found."""
        size = values[0].dtype.itemsize
        lanes, offsets = self.locate(addresses, size, self.threads.active(m), here, "writes")
        result = np.zeros(self.threads.count, values[0].dtype)
        if len(lanes) == 0:
            return result
        granules = self.shadow.granules(offsets, size)
        if (self.shadow.writer[granules] < 0).any():
            lane = lanes[(self.shadow.writer[granules] < 0).any(axis=1)][0]
            detail = f"{self.threads.name(lane)} updates what nobody wrote"
            self.findings.report("uninitialised shared", here, detail)
        self.shadow.update(granules, lanes, here)
        self.counters.atomics += len(lanes)
        order = (
            np.arange(len(lanes)) if self.random is None else self.random.permutation(len(lanes))
        )
        mine = [value[lanes] for value in values]
        result[lanes] = atomics.apply(self.bytes, offsets, operation, type_name, mine, order).view(
            result.dtype
        )
        return result

    def load_matrix(
        self, addresses: Array, count: int, transposed: bool, m: Mask, here: Instruction
    ) -> Array:
        """ldmatrix: lane 8 i + r gives the address of row r of matrix i: (count, lanes)."""
        lanes, offsets, warps = self._matrix_rows(addresses, count, m, here, "reads")
        result = np.zeros((count, self.threads.count), np.uint32)
        if len(lanes) == 0:
            return result
        self.shadow.read(self.shadow.granules(offsets, 16), lanes, here, whole_warp=True)
        self.count("ldmatrix", offsets, 16, lanes)
        # (warp, matrix, row, column); lane 4 r + c of the warp receives row r, columns 2 c, 2 c + 1
        tiles = self.bytes.view(np.uint16).reshape(-1, 8)[offsets // 16].reshape(-1, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        words = np.ascontiguousarray(tiles).view(np.uint32).reshape(-1, count, WARP)
        result.reshape(count, -1, WARP)[:, warps] = words.swapaxes(0, 1)
        return result

    def store_matrix(
        self, addresses: Array, values: list[Array], transposed: bool, m: Mask, here: Instruction
    ) -> None:
        """stmatrix: the inverse of `load_matrix`."""
        count = len(values)
        lanes, offsets, warps = self._matrix_rows(addresses, count, m, here, "writes")
        if len(lanes) == 0:
            return
        words = np.stack([value.reshape(-1, WARP)[warps] for value in values], axis=1)
        tiles = np.ascontiguousarray(words).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        self._write_rows(np.ascontiguousarray(tiles).reshape(-1, 8), offsets, 16, lanes, here)
        self.count("stmatrix", offsets, 16, lanes)

    def _matrix_rows(
        self, addresses: Array, count: int, m: Mask, here: Instruction, verb: str
    ) -> tuple[Lanes, Array, Array]:
        lanes = whole_warps(self.threads, m, here, self.findings)
        rows = lanes[lanes % WARP < 8 * count]
        good, offsets = self.locate(addresses, 16, rows, here, verb, keep=True)
        return good, offsets, np.unique(lanes // WARP)

    def locate(
        self,
        addresses: Array,
        size: int,
        lanes: Lanes,
        here: Instruction,
        verb: str,
        keep: bool = False,
    ) -> tuple[Lanes, Array]:
        """Lanes whose access is allowed, and its offsets in the batch's memory.

        With ``keep`` the others stay, at address 0: a matrix needs all its rows.
        """
        offsets = addresses[lanes].astype(np.int64)
        outside = (offsets < 0) | (offsets + size > self.size)
        crooked = offsets % size != 0
        bad = outside | crooked
        if bad.any():
            for wrong, check in ((outside, "out of bounds shared"), (crooked, "misaligned")):
                if wrong.any():
                    detail = (
                        f"{self.threads.name(lanes[wrong][0])} {verb} {size} bytes at shared "
                        f"address {offsets[wrong][0]} of {self.size}"
                    )
                    self.findings.report(check, here, detail)
            if keep:
                offsets = np.where(bad, 0, offsets)
            else:
                lanes, offsets = lanes[~bad], offsets[~bad]
        return lanes, offsets + self.threads.cta[lanes] * self.stride

    def count(self, kind: str, offsets: Array, size: int, lanes: Lanes) -> None:
        """Count the wavefronts of an access."""
        # Strides are multiples of 128: an offset in the batch has the bank of its address.
        self.counters.count_shared(kind, offsets, size, lanes)


def whole_warps(
    threads: Threads, m: Mask, here: Instruction, findings: Findings, size: int = WARP
) -> Lanes:
    """The active lanes; warps, or groups of ``size`` lanes, that come in part are reported."""
    if m is None:
        return threads.every
    groups = m.reshape(-1, size)
    partly = groups.any(axis=1) & ~groups.all(axis=1)
    if partly.any():
        lane = int(np.flatnonzero(partly)[0]) * size
        missing = size - int(groups[partly][0].sum())
        detail = f"the group of {threads.name(lane)} comes without {missing} of its {size} lanes"
        findings.report("divergent warp", here, detail)
    return np.flatnonzero(np.repeat(groups.any(axis=1), size))
