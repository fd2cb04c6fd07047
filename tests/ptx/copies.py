"""cp.async: copies from global to shared memory that land only when they are awaited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.findings import Findings, PtxError
from tests.ptx.global_memory import GlobalMemory
from tests.ptx.parser import Instruction
from tests.ptx.shared_memory import SharedMemory
from tests.ptx.threads import Lanes, Mask, Threads

Array = NDArray[Any]


@dataclass
class _Flight:
    """Copies of one instruction on their way."""

    lanes: Lanes
    offsets: Array
    data: NDArray[np.uint8]
    groups: Array
    here: Instruction

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Forget the copies that are not in ``which``."""
        self.lanes, self.offsets = self.lanes[which], self.offsets[which]
        self.data, self.groups = self.data[which], self.groups[which]


class AsyncCopies:
    """All copies in flight. A thread sees its own when it has waited, others after a barrier."""

    def __init__(
        self, threads: Threads, glob: GlobalMemory, shared: SharedMemory, findings: Findings
    ) -> None:
        self.threads, self.glob, self.shared, self.findings = threads, glob, shared, findings
        self.group = np.zeros(threads.count, np.int64)
        self.flights: list[_Flight] = []

    def start(
        self,
        destination: Array,
        source: Array,
        size: int,
        source_size: Array | None,
        sizes: tuple[int, ...],
        m: Mask,
        here: Instruction,
    ) -> None:
        """Begin copies of ``size`` bytes: ``source_size`` are read, the rest become 0."""
        if size not in sizes:
            raise PtxError(f"line {here.line}: copies of {size} bytes are not allowed: {here.text}")
        lanes, offsets = self.shared.locate(
            destination, size, self.threads.active(m), here, "writes"
        )
        if len(lanes) == 0:
            return
        read = np.full(len(lanes), size) if source_size is None else source_size[lanes]
        if (read > size).any():
            raise PtxError(f"line {here.line}: more bytes read than copied: {here.text}")
        data = np.zeros((len(lanes), size), np.uint8)
        wanted = read > 0
        found, places = self.glob.locate(
            source, size, lanes[wanted], here, "copies", extent=read[wanted].astype(np.int64)
        )
        if len(found):
            device = self.glob.device
            self.glob.counters.count_global("cp.async", places, size, found)
            self.glob.note_read(places, int(read[wanted].min()), found, here)
            reach = np.minimum(places[:, None] + np.arange(size), len(device.bytes) - 1)
            data[np.searchsorted(lanes, found)] = device.bytes[reach]
        data[np.arange(size) >= read[:, None]] = 0
        shadow = self.shared.shadow
        granules = shadow.granules(offsets, size)
        shadow.check_write(granules, lanes, here)
        shadow.begin_copy(granules, lanes, here)
        self.shared.count("cp.async", offsets, size, lanes)
        self.flights.append(_Flight(lanes, offsets, data, self.group[lanes], here))

    def commit(self, m: Mask) -> None:
        """Close the current group of each active lane."""
        self.group[self.threads.active(m)] += 1

    def wait(self, groups: int, m: Mask) -> None:
        """Land all but the last ``groups`` committed groups of each active lane."""
        self._land(m, lambda flight: flight.groups < self.group[flight.lanes] - groups)

    def wait_all(self, m: Mask) -> None:
        """Land all that the active lanes started, committed or not."""
        self._land(m, lambda flight: np.ones(len(flight.lanes), np.bool_))

    def finish(self) -> None:
        """Report what nobody waited for."""
        for flight in self.flights:
            detail = f"{self.threads.name(flight.lanes[0])} ends first"
            self.findings.report("copy never awaited", flight.here, detail)

    def _land(self, m: Mask, is_due: Callable[[_Flight], NDArray[np.bool_]]) -> None:
        for flight in self.flights:
            due = is_due(flight)
            if m is not None:
                due &= m[flight.lanes]
            if due.any():
                lanes, offsets, data = flight.lanes[due], flight.offsets[due], flight.data[due]
                size = data.shape[1]
                self.shared.bytes[offsets[:, None] + np.arange(size)] = data
                granules = self.shared.shadow.granules(offsets, size)
                self.shared.shadow.end_copy(granules)
                self.shared.shadow.record_write(granules, lanes)
                flight.keep(~due)
        self.flights = [flight for flight in self.flights if len(flight.lanes)]
