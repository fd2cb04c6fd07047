"""Who may touch which shared bytes when: races, order between warps, and the async proxy.

Each warp has a clock, and knows of every other warp of its cluster how far that one's clock had
come when a barrier last joined them (a vector clock). For each granule of shared memory we keep
its last writer and, for each warp, its last read and its last atomic operation. An access is
ordered after another if the accessing warp knows of the other warp's clock at that time; two
accesses that are not ordered, one of them a write, are a race, in whatever order this run happened
to execute them. Atomic operations are writes that do not race with each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.findings import Findings
from tests.ptx.parser import Instruction
from tests.ptx.threads import WARP, Lanes, Mask, Threads

# A granule was read by several lanes of one warp, or by a warp-wide instruction.
_SEVERAL = -2
_WHOLE_WARP = -1


class Clocks:
    """The vector clocks of all warps of a batch.

    Attributes:
        width: Warps of a cluster (of a CTA, where there are no clusters).
        known: (warps of the batch, width): how far each warp knows its cluster's clocks.
        proxied: The same for what is visible to the async proxy.
    """

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        total = threads.count // WARP
        self.width = threads.warps * threads.cluster_size
        self.place = np.arange(total) % self.width
        self.known = np.zeros((total, self.width), np.int32)
        self.known[np.arange(total), self.place] = 1
        self.proxied = np.zeros_like(self.known)

    def own(self, warps: NDArray[Any]) -> NDArray[np.int32]:
        """The clocks of ``warps``."""
        return self.known[warps, self.place[warps]]

    def advance(self, warps: NDArray[Any]) -> None:
        """Start a new interval of ``warps``: what they do next is not known to others yet."""
        self.known[warps, self.place[warps]] += 1

    def join_all(self) -> None:
        """A barrier of whole CTAs, all CTAs of the batch at once."""
        shape = (-1, self.threads.warps, self.width)
        for table in (self.known, self.proxied):
            view = table.reshape(shape)
            view[:] = view.max(axis=1, keepdims=True)
        self.advance(np.arange(len(self.known)))

    def proxy_fence(self, warps: NDArray[Any]) -> None:
        """Make all that ``warps`` know of visible to the async proxy."""
        self.proxied[warps] = np.maximum(self.proxied[warps], self.known[warps])
        self.advance(warps)


class SharedShadow:
    """The history of each granule of the batch's shared memory."""

    def __init__(
        self, threads: Threads, clocks: Clocks, size: int, granule: int, findings: Findings
    ) -> None:
        self.threads, self.clocks, self.findings = threads, clocks, findings
        self.size, self.granule = size, granule
        count = size * len(threads.ctas) // granule
        self.writer = np.full(count, -1, np.int32)
        self.write_clock = np.zeros(count, np.int32)
        self.by_generic_proxy = np.zeros(count, np.bool_)
        self.read_clock = np.zeros((count, clocks.width), np.int32)
        self.reader = np.full(count, _WHOLE_WARP, np.int32)
        self.copier = np.zeros(count, np.int32)
        self.update_clock = np.zeros((count, clocks.width), np.int32)
        self.updater = np.full(count, _SEVERAL, np.int32)
        self.any_updates = False
        self.pending = np.zeros(count, np.int16)
        self.busy = np.zeros(count, np.int16)
        self.any_pending = self.any_busy = 0

    def granules(self, offsets: NDArray[Any], size: int) -> NDArray[np.int64]:
        """The granules of accesses of ``size`` bytes at ``offsets`` of the batch's memory."""
        return offsets[:, None] // self.granule + np.arange(max(size // self.granule, 1))

    def read(
        self, granules: NDArray[Any], lanes: Lanes, here: Instruction, whole_warp: bool = False
    ) -> None:
        """Check and record a read of a row of granules by each lane."""
        warps = lanes // WARP
        own = self.clocks.own(warps)
        self._check_pending(granules, lanes, here, "reads")
        self._check_writer(granules, lanes, warps, own, here, "reads", None)
        self._check_updates(granules, lanes, warps, own, here, "reads")
        unwritten = self.writer[granules] < 0
        if unwritten.any():
            self._report("uninitialised shared", granules, lanes, unwritten, here, "reads")
        places = self.clocks.place[warps]
        repeated = self.read_clock[granules, places[:, None]] == own[:, None]
        if whole_warp:
            # Its lanes read together, but a lane that read alone before is not forgotten.
            self.reader[granules] = np.where(repeated, self.reader[granules], _WHOLE_WARP)
        else:
            others = repeated & (self.reader[granules] != lanes[:, None])
            self.reader[granules] = lanes[:, None]
            others |= self.reader[granules] != lanes[:, None]
            if others.any():
                self.reader[granules[others]] = _SEVERAL
        self.read_clock[granules, places[:, None]] = own[:, None]

    def write(
        self,
        granules: NDArray[Any],
        lanes: Lanes,
        here: Instruction,
        unchanged: NDArray[np.bool_] | None = None,
    ) -> None:
        """Check and record a write; granules that keep their value do not race with writes."""
        self.check_write(granules, lanes, here, unchanged)
        self.record_write(granules, lanes)

    def check_write(
        self,
        granules: NDArray[Any],
        lanes: Lanes,
        here: Instruction,
        unchanged: NDArray[np.bool_] | None = None,
    ) -> None:
        """Check a write against what was read and written before."""
        warps = lanes // WARP
        own = self.clocks.own(warps)
        self._check_pending(granules, lanes, here, "writes")
        self._check_writer(granules, lanes, warps, own, here, "writes", unchanged)
        self._check_updates(granules, lanes, warps, own, here, "writes")
        self._check_readers(granules, lanes, warps, own, here, "writes", unchanged)

    def update(self, granules: NDArray[Any], lanes: Lanes, here: Instruction) -> None:
        """Check and record an atomic operation by each lane."""
        warps = lanes // WARP
        own = self.clocks.own(warps)
        self._check_pending(granules, lanes, here, "writes")
        self._check_writer(granules, lanes, warps, own, here, "updates", None)
        self._check_readers(granules, lanes, warps, own, here, "updates", None)
        places = self.clocks.place[warps]
        repeated = self.update_clock[granules, places[:, None]] == own[:, None]
        alone = ~repeated | (self.updater[granules] == lanes[:, None])
        self.updater[granules] = np.where(alone, lanes[:, None], _SEVERAL)
        # Of several lanes at one address one has entered itself.
        shared = self.updater[granules] != lanes[:, None]
        self.updater[granules[shared]] = _SEVERAL
        self.update_clock[granules, places[:, None]] = own[:, None]
        self.any_updates = True

    def record_write(
        self, granules: NDArray[Any], lanes: Lanes, generic_proxy: bool = True
    ) -> None:
        """Enter ``lanes`` as the last writers."""
        self.writer[granules] = lanes[:, None]
        self.write_clock[granules] = self.clocks.own(lanes // WARP)[:, None]
        self.by_generic_proxy[granules] = generic_proxy

    def begin_copy(self, granules: NDArray[Any], lanes: Lanes, here: Instruction) -> None:
        """An asynchronous copy by each lane will write a row of granules."""
        self.copier[granules] = lanes[:, None]
        doubled = self.copier[granules] != lanes[:, None]
        if doubled.any():
            other = "another copy of the same instruction"
            self._report("race", granules, lanes, doubled, here, "writes", other)
        self.pending[granules] += 1
        self.any_pending += granules.size

    def end_copy(self, granules: NDArray[Any]) -> None:
        """Asynchronous copies have written these."""
        self.pending[granules] -= 1
        self.any_pending -= granules.size

    def begin_async_read(self, granules: NDArray[Any]) -> None:
        """An asynchronous instruction reads these until it is awaited."""
        self.busy[granules] += 1
        self.any_busy += granules.size

    def end_async_read(self, granules: NDArray[Any]) -> None:
        """An asynchronous instruction has read these."""
        self.busy[granules] -= 1
        self.any_busy -= granules.size

    def check_proxy(self, granules: NDArray[Any], lanes: Lanes, here: Instruction) -> None:
        """Check that generic writes are visible to an async-proxy read by ``lanes``."""
        writer = self.writer[granules]
        places = self.clocks.place[np.maximum(writer, 0) // WARP]
        visible = self.clocks.proxied[(lanes // WARP)[:, None], places]
        hidden = self.by_generic_proxy[granules] & (self.write_clock[granules] > visible)
        if hidden.any():
            self._report("proxy fence", granules, lanes, hidden, here, "reads")

    def finish(self, here: Instruction) -> None:
        """Check that each CTA outlived what the others of its cluster do with its memory."""
        if self.threads.cluster_size == 1:
            return
        per_cta = self.size // self.granule
        warps = self.threads.warps
        for cta in range(len(self.threads.ctas)):
            own = slice(cta * per_cta, (cta + 1) * per_cta)
            known = self.clocks.known[cta * warps : (cta + 1) * warps].max(axis=0)
            touched = np.maximum(self.read_clock[own], self.update_clock[own])
            late = touched.max(axis=0) > known
            wrote = np.maximum(self.writer[own], 0) // WARP % self.clocks.width
            late[wrote[self.write_clock[own] > known[wrote]]] = True
            if late.any():
                cluster = cta // self.threads.cluster_size * self.clocks.width
                other = self.threads.name((cluster + int(np.argmax(late))) * WARP)
                detail = f"CTA {self.threads.ctas[cta]} does not wait for the warp of {other}"
                self.findings.report("early exit", here, detail)

    def proxy_fence(self, mask: Mask) -> None:
        """fence.proxy.async by the warps with a lane in ``mask``."""
        self.clocks.proxy_fence(np.unique(self.threads.active(mask) // WARP))

    def _check_pending(
        self, granules: NDArray[Any], lanes: Lanes, here: Instruction, verb: str
    ) -> None:
        if self.any_pending:
            pending = self.pending[granules] > 0
            if pending.any():
                self._report("copy in flight", granules, lanes, pending, here, verb)
        if self.any_busy and verb == "writes":
            busy = self.busy[granules] > 0
            if busy.any():
                self._report("wgmma in flight", granules, lanes, busy, here, verb)

    def _check_writer(
        self,
        granules: NDArray[Any],
        lanes: Lanes,
        warps: NDArray[Any],
        own: NDArray[np.int32],
        here: Instruction,
        verb: str,
        unchanged: NDArray[np.bool_] | None,
    ) -> None:
        writer, clock = self.writer[granules], self.write_clock[granules]
        writer_warp = writer >> 5
        known = self.clocks.known[warps[:, None], writer_warp % self.clocks.width]
        racing = clock > known
        racing |= (
            (writer_warp == warps[:, None]) & (writer != lanes[:, None]) & (clock == own[:, None])
        )
        if unchanged is not None:
            racing &= ~unchanged
        if racing.any():
            first = writer[racing][0]
            other = f"the write of {self.threads.name(first)}"
            self._report("race", granules, lanes, racing, here, verb, other)

    def _check_readers(
        self,
        granules: NDArray[Any],
        lanes: Lanes,
        warps: NDArray[Any],
        own: NDArray[np.int32],
        here: Instruction,
        verb: str,
        unchanged: NDArray[np.bool_] | None,
    ) -> None:
        bad = self._is_unordered(self.read_clock, self.reader, granules, lanes, warps, own)
        if unchanged is not None:
            bad &= ~unchanged
        if bad.any():
            self._report("race", granules, lanes, bad, here, verb, "another thread's read")

    def _check_updates(
        self,
        granules: NDArray[Any],
        lanes: Lanes,
        warps: NDArray[Any],
        own: NDArray[np.int32],
        here: Instruction,
        verb: str,
    ) -> None:
        if not self.any_updates:
            return
        racing = self._is_unordered(self.update_clock, self.updater, granules, lanes, warps, own)
        if racing.any():
            other = "another thread's atomic operation"
            self._report("race", granules, lanes, racing, here, verb, other)

    def _is_unordered(
        self,
        clock: NDArray[np.int32],
        last: NDArray[np.int32],
        granules: NDArray[Any],
        lanes: Lanes,
        warps: NDArray[Any],
        own: NDArray[np.int32],
    ) -> NDArray[np.bool_]:
        """Where ``lanes`` follow accesses of other warps, or of other lanes, without a barrier.

        ``clock`` holds each warp's last access to each granule, ``last`` the lane of the latest.
        """
        times = clock[granules]
        unordered: NDArray[np.bool_] = (times > self.clocks.known[warps][:, None, :]).any(axis=-1)
        own_times = times[np.arange(len(lanes))[:, None], np.arange(granules.shape[1]),
                          self.clocks.place[warps][:, None]]  # fmt: skip
        lane = last[granules]
        beside = (own_times == own[:, None]) & (lane != lanes[:, None]) & (lane != _WHOLE_WARP)
        return unordered | beside

    def _report(
        self,
        check: str,
        granules: NDArray[Any],
        lanes: Lanes,
        bad: NDArray[np.bool_],
        here: Instruction,
        verb: str,
        other: str = "",
    ) -> None:
        row, column = np.argwhere(bad)[0]
        byte = int(granules[row, column]) * self.granule % self.size
        detail = f"{self.threads.name(lanes[row])} {verb} shared byte {byte}"
        if other:
            detail += f", not ordered after {other}"
        self.findings.report(check, here, detail)
