"""Global memory: bytes, which of them are valid, initialised and writable, and who wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import atomics
from tests.ptx.counters import Counters
from tests.ptx.findings import Findings
from tests.ptx.parser import Instruction
from tests.ptx.shadow import Clocks
from tests.ptx.threads import WARP, Lanes, Mask, Threads

Array = NDArray[Any]

GLOBAL_BASE = 0x7F00_0000_0000
# Each state space has a window in the generic address space; what cvta adds and takes away.
SHARED_WINDOW = 0x7E00_0000_0000
LOCAL_WINDOW = 0x7D00_0000_0000
PARAMETER_WINDOW = 0x7C00_0000_0000
_NOBODY = -1
_SEVERAL = -2


class DeviceBytes:
    """The contents of global memory during a launch.

    Attributes:
        bytes: All of it, from `GLOBAL_BASE` on.
        valid, writable, initialised: What may be read or written, of each byte.
        tracked_from: Everything below belongs to inputs, whose history is of no interest.
    """

    def __init__(self, size: int, tracked_from: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.valid = np.zeros(size, np.bool_)
        self.writable = np.zeros(size, np.bool_)
        self.initialised = np.zeros(size, np.bool_)
        self.tracked_from = tracked_from
        tracked = size - tracked_from
        self.writer_cta = np.full(tracked, _NOBODY, np.int32)
        self.writer_thread = np.full(tracked, _NOBODY, np.int32)
        self.write_clock = np.zeros(tracked, np.int32)
        self.reader_cta = np.full(tracked, _NOBODY, np.int32)
        self.updater_cta = np.full(tracked, _NOBODY, np.int32)
        self.updater_thread = np.full(tracked, _NOBODY, np.int32)
        self.update_clock = np.zeros(tracked, np.int32)

    def seal(self) -> None:
        """Count the gaps, so that an access is checked by its two ends."""
        self.gaps = np.zeros(len(self.valid) + 1, np.int32)
        np.cumsum(~self.valid, out=self.gaps[1:])


class GlobalMemory:
    """Global memory as a batch of CTAs sees it."""

    def __init__(
        self,
        device: DeviceBytes,
        threads: Threads,
        clocks: Clocks,
        findings: Findings,
        counters: Counters,
        random: np.random.Generator | None,
    ) -> None:
        self.device, self.threads, self.clocks = device, threads, clocks
        self.findings, self.counters, self.random = findings, counters, random

    def load(self, addresses: Array, dtype: Any, count: int, m: Mask, here: Instruction) -> Array:
        """``count`` neighbouring elements for each lane: (count, lanes), zero where inactive."""
        size = np.dtype(dtype).itemsize
        lanes = self.threads.active(m)
        result = np.zeros((count, self.threads.count), dtype)
        lanes, offsets = self.locate(addresses, size * count, lanes, here, "reads")
        if len(lanes) == 0:
            return result
        self.counters.count_global("load", offsets, size * count, lanes)
        self.note_read(offsets, size * count, lanes, here)
        usable = self.device.bytes[: len(self.device.bytes) // 16 * 16]
        rows = usable.view(dtype).reshape(-1, count)[offsets // (size * count)]
        if len(lanes) == self.threads.count:
            return rows.T
        result[:, lanes] = rows.T
        return result

    def store(
        self, addresses: Array, values: list[Array], dtype: Any, m: Mask, here: Instruction
    ) -> None:
        """Store neighbouring elements, one array of ``values`` for each."""
        size = np.dtype(dtype).itemsize
        lanes = self.threads.active(m)
        lanes, offsets = self.locate(addresses, size * len(values), lanes, here, "writes")
        if len(lanes) == 0:
            return
        self.counters.count_global("store", offsets, size * len(values), lanes)
        rows = np.stack([value[lanes] for value in values], axis=1)
        rows = np.ascontiguousarray(rows).view(np.uint8)
        places = offsets[:, None] + np.arange(rows.shape[1])
        old = self.device.bytes[places]
        self._note_write(places, lanes, here, unchanged=old == rows)
        self.device.bytes[places] = rows
        if (self.device.bytes[places] != rows).any():
            row = int(np.argwhere((self.device.bytes[places] != rows).any(axis=1))[0, 0])
            detail = f"{self.threads.name(lanes[row])} and another store to the same address"
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
        lanes = self.threads.active(m)
        result = np.zeros(self.threads.count, values[0].dtype)
        lanes, offsets = self.locate(addresses, size, lanes, here, "writes")
        if len(lanes) == 0:
            return result
        self.counters.count_global("atomic", offsets, size, lanes)
        self.counters.atomics += len(lanes)
        self._note_initialised(offsets, size, lanes, here)
        self._note_update(offsets, size, lanes, here)
        order = (
            np.arange(len(lanes)) if self.random is None else self.random.permutation(len(lanes))
        )
        mine = [value[lanes] for value in values]
        result[lanes] = atomics.apply(
            self.device.bytes, offsets, operation, type_name, mine, order
        ).view(result.dtype)
        return result

    def update_vector(
        self,
        operation: str,
        type_name: str,
        addresses: Array,
        values: list[Array],
        m: Mask,
        here: Instruction,
    ) -> list[Array]:
        """Atomic operations on neighbouring elements."""
        size = values[0].dtype.itemsize
        aligned = self.locate(
            addresses, size * len(values), self.threads.active(m), here, "writes"
        )[0]
        mask = np.zeros(self.threads.count, np.bool_)
        mask[aligned] = True
        return [
            self.update(operation, type_name, addresses + np.uint64(size * i), [v], mask, here)
            for i, v in enumerate(values)
        ]

    def locate(
        self,
        addresses: Array,
        size: int,
        lanes: Lanes,
        here: Instruction,
        verb: str,
        extent: Array | int | None = None,
    ) -> tuple[Lanes, Array]:
        """Lanes whose access is allowed, and its byte offsets; the others are reported.

        Of ``size`` aligned bytes only ``extent`` are touched, where it is given.
        """
        device = self.device
        extent = size if extent is None else extent
        offsets = addresses[lanes].view(np.int64) - GLOBAL_BASE
        outside = (offsets < 0) | (offsets + extent > len(device.bytes))
        inside = np.where(outside, 0, offsets)
        outside |= device.gaps[np.where(outside, 0, inside + extent)] != device.gaps[inside]
        crooked = offsets % size != 0
        bad = outside | crooked
        for wrong, check in ((outside, "out of bounds global"), (crooked & ~outside, "misaligned")):
            if wrong.any():
                lane, offset = lanes[wrong][0], offsets[wrong][0]
                detail = f"{self.threads.name(lane)} {verb} {size} bytes at {self.describe(offset)}"
                self.findings.report(check, here, detail)
        if verb == "writes":
            forbidden = ~bad & ~device.writable[np.where(bad, 0, offsets)]
            if forbidden.any():
                lane, offset = lanes[forbidden][0], offsets[forbidden][0]
                detail = f"{self.threads.name(lane)} writes {self.describe(offset)}"
                self.findings.report("write to input", here, detail)
                bad |= forbidden
        return (lanes[~bad], offsets[~bad]) if bad.any() else (lanes, offsets)

    def describe(self, offset: int) -> str:
        """Where an offset lies, for messages."""
        return f"global address {offset + GLOBAL_BASE:#x}"

    def note_read(self, offsets: Array, size: int, lanes: Lanes, here: Instruction) -> None:
        """Check and record reads of what a kernel may write."""
        device = self.device
        tracked = offsets >= device.tracked_from
        if not tracked.any():
            return
        offsets, lanes = offsets[tracked], lanes[tracked]
        self._note_initialised(offsets, size, lanes, here)
        places = offsets[:, None] + np.arange(size) - device.tracked_from
        cta = self.threads.ctas[self.threads.cta[lanes]][:, None]
        self._check_order(places, lanes, cta, here, "reads", None)
        reader = device.reader_cta[places]
        device.reader_cta[places] = np.where((reader == _NOBODY) | (reader == cta), cta, _SEVERAL)

    def _note_initialised(self, offsets: Array, size: int, lanes: Lanes, here: Instruction) -> None:
        fresh = ~self.device.initialised[offsets[:, None] + np.arange(size)].all(axis=1)
        if fresh.any():
            lane, offset = lanes[fresh][0], offsets[fresh][0]
            detail = f"{self.threads.name(lane)} reads {self.describe(offset)}"
            self.findings.report("uninitialised global", here, detail)

    def _note_write(
        self, places: Array, lanes: Lanes, here: Instruction, unchanged: NDArray[np.bool_]
    ) -> None:
        device = self.device
        device.initialised[places] = True
        places = places - device.tracked_from
        cta = self.threads.ctas[self.threads.cta[lanes]][:, None]
        self._check_order(places, lanes, cta, here, "writes", unchanged)
        self._check_readers(places, lanes, cta, here, "writes")
        device.writer_cta[places] = cta
        device.writer_thread[places] = self.threads.thread[lanes][:, None]
        device.write_clock[places] = self.clocks.own(lanes // WARP)[:, None]
        # Two CTAs of the batch may write one address in this very step.
        collided = device.writer_cta[places] != cta
        if collided.any():
            lane = lanes[np.argwhere(collided)[0, 0]]
            detail = f"{self.threads.name(lane)} writes what another CTA writes"
            self.findings.report("global race", here, detail)

    def _note_update(self, offsets: Array, size: int, lanes: Lanes, here: Instruction) -> None:
        """Atomic operations race with plain accesses, not with each other."""
        device = self.device
        places = offsets[:, None] + np.arange(size) - device.tracked_from
        cta = self.threads.ctas[self.threads.cta[lanes]][:, None]
        self._check_order(places, lanes, cta, here, "updates", None, updated=False)
        self._check_readers(places, lanes, cta, here, "updates")
        updater = device.updater_cta[places]
        device.updater_cta[places] = np.where(
            (updater == _NOBODY) | (updater == cta), cta, _SEVERAL
        )
        # Two CTAs of the batch may have done so in this very step.
        device.updater_cta[places[device.updater_cta[places] != cta]] = _SEVERAL
        device.updater_thread[places] = self.threads.thread[lanes][:, None]
        device.update_clock[places] = self.clocks.own(lanes // WARP)[:, None]

    def _check_readers(
        self, places: Array, lanes: Lanes, cta: Array, here: Instruction, verb: str
    ) -> None:
        reader = self.device.reader_cta[places]
        foreign = (reader == _SEVERAL) | ((reader != _NOBODY) & (reader != cta))
        if foreign.any():
            lane = lanes[np.argwhere(foreign)[0, 0]]
            detail = f"{self.threads.name(lane)} {verb} what another CTA reads"
            self.findings.report("global race", here, detail)

    def _check_order(
        self,
        places: Array,
        lanes: Lanes,
        cta: Array,
        here: Instruction,
        verb: str,
        unchanged: NDArray[np.bool_] | None,
        updated: bool = True,
    ) -> None:
        """Check an access against the last plain write and, if ``updated``, atomic operation."""
        device = self.device
        histories = [("wrote", device.writer_cta, device.writer_thread, device.write_clock)]
        if updated:
            histories.append(
                ("updated", device.updater_cta, device.updater_thread, device.update_clock)
            )
        for did, ctas, threads, clocks in histories:
            other_cta, other, clock = ctas[places], threads[places], clocks[places]
            bad = (other_cta != _NOBODY) & (other_cta != cta)
            same = other_cta == cta
            if same.any():
                racing = self._is_unordered(lanes, other, clock)
                if unchanged is not None and did == "wrote":
                    racing &= ~unchanged
                bad |= same & racing
            if bad.any():
                row, column = map(int, np.argwhere(bad)[0])
                who = f"thread {other[row, column]} of CTA {other_cta[row, column]}"
                if other_cta[row, column] == _SEVERAL:
                    who = "several CTAs"
                detail = f"{self.threads.name(lanes[row])} {verb} what {who} {did}"
                self.findings.report("global race", here, detail)

    def _is_unordered(self, lanes: Lanes, other: Array, clock: Array) -> NDArray[np.bool_]:
        """Whether what ``other`` threads of the lanes' CTAs did at ``clock`` is not behind them."""
        threads = self.threads
        thread = threads.thread[lanes][:, None]
        first = threads.cta[lanes][:, None] % threads.cluster_size * threads.warps
        known = self.clocks.known[(lanes // WARP)[:, None], first + other // WARP]
        beside = other // WARP == thread // WARP
        racing: NDArray[np.bool_] = np.where(
            beside, (other != thread) & (clock == known), clock > known
        )
        return racing
