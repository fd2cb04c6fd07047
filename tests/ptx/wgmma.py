"""wgmma: asynchronous matrix products of a warpgroup, and the rules for their operands.

The product is computed where the instruction stands. That it is asynchronous shows only in what is
forbidden: registers written since the last wgmma.fence may not be used, and until wait_group
returns the accumulator may not be touched and no operand overwritten.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.counters import Counters
from tests.ptx.findings import Findings, PtxError
from tests.ptx.parser import Instruction
from tests.ptx.shared_memory import SharedMemory, whole_warps
from tests.ptx.tensor import decode
from tests.ptx.threads import WARP, Mask, Threads

Array = NDArray[Any]

WARPGROUP = 128
# Swizzle field of a descriptor: bytes of a swizzled row, and the bits of the row that are mixed in.
_SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}


@dataclass
class _Flight:
    """One wgmma of one warpgroup that was not waited for."""

    batch: int
    accumulators: tuple[str, ...]
    fragments: tuple[str, ...]
    granules: list[Array]


class WarpgroupMatrix:
    """The wgmma instructions of all warpgroups of the batch."""

    def __init__(
        self, threads: Threads, shared: SharedMemory, findings: Findings, counters: Counters
    ) -> None:
        self.threads, self.shared = threads, shared
        self.findings, self.counters = findings, counters
        self.groups = threads.count // WARPGROUP
        self.batch = np.zeros(self.groups, np.int64)
        self.flights: dict[int, list[_Flight]] = defaultdict(list)
        self.unfenced: dict[str, NDArray[np.bool_]] = {}
        self._registers: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def use_registers(
        self, accumulators: tuple[str, ...], fragments: tuple[str, ...], m: Mask, here: Instruction
    ) -> None:
        """Announce the registers of the wgmma that follows, and check that they were fenced."""
        self._registers = (accumulators, fragments)
        for name in (*accumulators, *fragments):
            dirty = self.unfenced.get(name)
            if dirty is not None and dirty[self._active(m)].any():
                detail = f"{name} was written and no wgmma.fence followed"
                self.findings.report("wgmma fence", here, detail)
                return

    def mark_written(self, names: tuple[str, ...], m: Mask) -> None:
        """Registers of some wgmma are written by another instruction."""
        groups = np.unique(self.threads.active(m) // WARPGROUP)
        for name in names:
            self.unfenced.setdefault(name, np.zeros(self.groups, np.bool_))[groups] = True

    def touch(self, names: tuple[str, ...], m: Mask, here: Instruction) -> None:
        """Another instruction uses registers of some wgmma: none of them may be in flight."""
        if not self.flights:
            return
        for group in np.unique(self.threads.active(m) // WARPGROUP):
            for flight in self.flights.get(int(group), ()):
                for name in names:
                    if name in flight.accumulators or name in flight.fragments:
                        detail = f"{name} belongs to a wgmma that was not waited for"
                        self.findings.report("wgmma in flight", here, detail)
                        return

    def fence(self, m: Mask, here: Instruction) -> None:
        """wgmma.fence: register writes so far come before the next wgmma."""
        for dirty in self.unfenced.values():
            dirty[self._active(m)] = False

    def commit(self, m: Mask, here: Instruction) -> None:
        """wgmma.commit_group: close the current group."""
        self.batch[self._active(m)] += 1

    def wait(self, groups: int, m: Mask, here: Instruction) -> None:
        """wgmma.wait_group: all but the last ``groups`` committed groups are complete."""
        for group in self._active(m):
            kept = []
            for flight in self.flights.pop(int(group), []):
                if flight.batch < self.batch[group] - groups:
                    for granules in flight.granules:
                        self.shared.shadow.end_async_read(granules)
                else:
                    kept.append(flight)
            if kept:
                self.flights[int(group)] = kept

    def finish(self, instruction: Instruction | None) -> None:
        """Report what nobody waited for."""
        if self.flights and instruction is not None:
            detail = "the kernel ends with a wgmma that was not waited for"
            self.findings.report("wgmma in flight", instruction, detail)

    def start(
        self,
        type_name: str,
        columns: int,
        accumulator: list[Array],
        a: list[Array] | Array,
        b: Array,
        accumulate: Array,
        scales: tuple[int, int],
        transposed: tuple[int, int],
        m: Mask,
        here: Instruction,
    ) -> Array:
        """D = A B (+ D) of a 64 x ``columns`` tile for each warpgroup: (columns / 2, lanes).

        Args:
            type_name: "bf16", "f16" or "tf32"; the depth is 32 bytes.
            columns: Columns of B and D.
            accumulator: What the destinations hold.
            a: Fragments of A, or the descriptor of A in shared memory.
            b: The descriptor of B.
            accumulate: Whether D is added, per lane.
            scales: +1 or -1 for A and for B.
            transposed: Whether A and B are stored with M and N contiguous, instead of K.
            m: Active lanes.
            here: The instruction.
        """
        whole_warps(self.threads, m, here, self.findings, WARPGROUP)
        active = self._active(m)
        elements = 16 if type_name != "tf32" else 8
        self.counters.count_mma(
            f"m64n{columns}k{elements} {type_name}", len(active), 2 * 64 * columns * elements
        )
        if set(scales) - {1, -1}:
            raise PtxError(f"line {here.line}: scales are 1 or -1: {here.text}")
        if len(active) == 0:
            return np.zeros((columns // 2, self.threads.count), np.float32)
        granules: list[list[Array]] = [[] for _ in range(self.groups)]
        b_tile = self._tile(b, columns, type_name, transposed[1], active, granules, here)
        if isinstance(a, list):
            words = np.stack(a)
            kind = np.uint32 if type_name == "tf32" else np.uint16
            # register = 2 k half + row half -> (k half, row half, group, warp, row, t, element)
            a_rmem = (
                np.ascontiguousarray(words)
                .view(kind)
                .reshape(2, 2, self.groups, 4, 8, 4, elements // 8)
            )
            a_tile = decode(a_rmem, type_name).transpose(2, 3, 1, 4, 0, 5, 6)
            a_tile = a_tile.reshape(self.groups, 64, elements)
        else:
            a_tile = self._tile(a, 64, type_name, transposed[0], active, granules, here)
        bytes_read = columns * 32 + (0 if isinstance(a, list) else 64 * 32)
        self.counters.wgmma_shared_bytes += len(active) * bytes_read
        product = (a_tile * scales[0]) @ (b_tile * scales[1]).swapaxes(1, 2)
        # (group, warp, row half, row, column block, t, element) -> (block, half, element, lanes)
        product = product.reshape(self.groups, 4, 2, 8, columns // 8, 4, 2)
        product = product.transpose(4, 2, 6, 0, 1, 3, 5).reshape(columns // 2, -1)
        total = np.where(accumulate, np.stack(accumulator).astype(np.float64), 0) + product
        for group in active:
            flight = _Flight(int(self.batch[group]), *self._registers, granules[group])
            self.flights[int(group)].append(flight)
            for row in flight.granules:
                self.shared.shadow.begin_async_read(row)
        return total.astype(np.float32)

    def _active(self, m: Mask) -> Array:
        if m is None:
            return np.arange(self.groups)
        return np.flatnonzero(m.reshape(-1, WARPGROUP).any(axis=1))

    def _tile(
        self,
        descriptor: Array,
        rows: int,
        type_name: str,
        transposed: int,
        active: Array,
        granules: list[list[Array]],
        here: Instruction,
    ) -> NDArray[np.float64]:
        """The operand that a descriptor stands for: (groups, rows, elements of 32 bytes)."""
        fields = descriptor.reshape(-1, WARPGROUP)
        if (fields != fields[:, :1])[active].any():
            detail = "the descriptor differs within the warpgroup"
            self.findings.report("wgmma descriptor", here, detail)
        value = fields[:, 0].astype(np.int64)
        # Warpgroups that are not here may hold anything: they get the operand of one that is.
        value[np.setdiff1d(np.arange(self.groups), active)] = value[active[0]]
        swizzle = (value >> 62) & 3
        if (swizzle != swizzle[0]).any():
            raise PtxError(f"line {here.line}: descriptors with different swizzles: {here.text}")
        if ((value >> 49) & 7).any():
            raise PtxError(f"line {here.line}: descriptors with a base offset: {here.text}")
        size = 4 if type_name == "tf32" else 2
        start, leading, stride = (((value >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
        offsets = _operand_offsets(rows, size, transposed, int(swizzle[0]), leading, stride)
        mixed = _SWIZZLES[int(swizzle[0])][1]
        offsets = offsets + start[:, None, None]
        offsets = offsets ^ (((offsets >> 7) & mixed) << 4)
        outside = (offsets + size > self.shared.size)[active]
        if outside.any():
            detail = f"an operand reaches byte {int(offsets[active].max())} of {self.shared.size}"
            self.findings.report("out of bounds shared", here, detail)
        offsets = np.where(offsets + size > self.shared.size, 0, offsets)
        ctas = self.threads.cta.reshape(-1, WARPGROUP)[:, 0]
        offsets = offsets + (ctas * self.shared.stride)[:, None, None]
        # Eight or four elements that lie together make a chunk of 16 bytes.
        per_chunk = 16 // size
        chunks = offsets[:, ::per_chunk] if transposed else offsets[:, :, ::per_chunk]
        self._check_reads(chunks[active].reshape(len(active), -1), active, granules, here)
        kind = np.uint32 if size == 4 else np.uint16
        return decode(self.shared.bytes.view(kind)[offsets // size], type_name)

    def _check_reads(
        self,
        chunks: Array,
        active: Array,
        granules: list[list[Array]],
        here: Instruction,
    ) -> None:
        """Check and record that warpgroups read 16-byte ``chunks``: (active groups, chunks)."""
        shadow = self.shared.shadow
        rows = [shadow.granules(chunks[place], 16) for place in range(len(active))]
        # The whole warpgroup reads: each of its four warps must be ordered after the writers.
        first_lanes = WARPGROUP * active[:, None] + WARP * np.arange(4)
        lanes = np.repeat(first_lanes, chunks.shape[1], axis=1).reshape(-1)
        touched = np.concatenate([np.concatenate([row] * 4) for row in rows])
        shadow.read(touched, lanes, here, whole_warp=True)
        shadow.check_proxy(touched, lanes, here)
        for group, row in zip(active, rows, strict=True):
            granules[group].append(row)


def _operand_offsets(
    rows: int, size: int, transposed: int, swizzle: int, leading: Array, stride: Array
) -> Array:
    """Byte offsets, before swizzling, of the elements of an operand: (groups, rows, depth)."""
    depth = 32 // size
    row, k = np.arange(rows)[:, None], np.arange(depth)[None]
    leading, stride = leading[:, None, None], stride[:, None, None]
    width = _SWIZZLES[swizzle][0]
    if not transposed:
        if swizzle == 0:
            # Core matrices of 8 rows x 16 bytes, ``leading`` apart along k, ``stride`` along rows.
            core = 16 // size
            return (row // 8) * stride + (row % 8) * 16 + (k // core) * leading + (k % core) * size
        return (row // 8) * stride + (row % 8) * width + k * size
    if swizzle == 0:
        core = 16 // size
        return (k // 8) * leading + (k % 8) * 16 + (row // core) * stride + (row % core) * size
    columns = width // size
    return (k // 8) * stride + (k % 8) * width + (row // columns) * leading + (row % columns) * size
