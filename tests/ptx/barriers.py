"""The sixteen barriers of each CTA, with their counts, and the barrier of each cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.ptx.findings import Findings
from tests.ptx.parser import Instruction
from tests.ptx.shadow import Clocks
from tests.ptx.threads import WARP, Lanes, Threads

_BARRIERS = 16


class Barriers:
    """Who waits where.

    Attributes:
        waiting: For each lane, the barrier it waits at, or -1.
    """

    def __init__(self, threads: Threads, clocks: Clocks, findings: Findings) -> None:
        self.threads, self.clocks, self.findings = threads, clocks, findings
        ctas = len(threads.ctas)
        self.waiting = np.full(threads.count, -1, np.int8)
        self.arrived = np.zeros((ctas, _BARRIERS), np.int64)
        self.expected = np.zeros((ctas, _BARRIERS), np.int64)
        # What the warps that have arrived know, for those that leave.
        self.known = np.zeros((ctas, _BARRIERS, clocks.width), np.int32)
        self.proxied = np.zeros_like(self.known)

    def everybody(self) -> None:
        """All threads of all CTAs meet at one barrier: nobody has to wait."""
        self.clocks.join_all()

    def arrive(
        self,
        lanes: Lanes,
        barrier: NDArray[np.uint32],
        count: NDArray[np.uint32] | None,
        waits: bool,
        here: Instruction,
    ) -> list[Lanes]:
        """``lanes`` reach their barriers; complete barriers let go of those that wait.

        Returns:
            The lanes that each complete barrier let go.
        """
        released = []
        wanted = np.full(len(lanes), self.threads.real_size) if count is None else count[lanes]
        ids = barrier[lanes].astype(np.int64)
        if (ids >= _BARRIERS).any() or ((wanted % WARP != 0).any() and count is not None):
            detail = f"{self.threads.name(lanes[0])} at barrier {ids[0]} of {wanted[0]} threads"
            self.findings.report("barrier", here, detail)
            ids = ids % _BARRIERS
        cells = self.threads.cta[lanes] * _BARRIERS + ids
        for cell in np.unique(cells):
            cta, number = divmod(int(cell), _BARRIERS)
            mine = lanes[cells == cell]
            expected = int(wanted[cells == cell][0])
            if (wanted[cells == cell] != expected).any() or (
                self.arrived[cta, number] and self.expected[cta, number] != expected
            ):
                detail = f"{self.threads.name(mine[0])}: two counts at barrier {number}"
                self.findings.report("barrier", here, detail)
            self.expected[cta, number] = expected
            self.arrived[cta, number] += len(mine)
            warps = np.unique(mine // WARP)
            for table, mail in (
                (self.clocks.known, self.known), (self.clocks.proxied, self.proxied),
            ):  # fmt: skip
                mail[cta, number] = np.maximum(mail[cta, number], table[warps].max(axis=0))
            self.clocks.advance(warps)
            if waits:
                self.waiting[mine] = number
            if self.arrived[cta, number] > expected:
                detail = (
                    f"{self.arrived[cta, number]} threads at barrier {number}, which counts "
                    f"{expected}"
                )
                self.findings.report("barrier", here, detail)
            if self.arrived[cta, number] >= expected:
                released.append(self._release(cta, number))
        return released

    def release_stuck(self, alive: NDArray[np.bool_], here: Instruction) -> None:
        """Nobody can go on: report the barriers that somebody waits at, and open them."""
        for cta in range(len(self.threads.ctas)):
            lanes = np.flatnonzero((self.waiting >= 0) & (self.threads.cta == cta))
            for number in np.unique(self.waiting[lanes]):
                waiting = int((self.waiting[lanes] == number).sum())
                live = int((alive & (self.threads.cta == cta)).sum())
                detail = (
                    f"{waiting} threads of CTA {self.threads.ctas[cta]} wait at barrier {number}, "
                    f"which counts {self.expected[cta, number]}; {live} threads still run"
                )
                self.findings.report("barrier", here, detail)
                self._release(cta, int(number))

    def _release(self, cta: int, number: int) -> Lanes:
        leaving = np.flatnonzero((self.waiting == number) & (self.threads.cta == cta))
        warps = np.unique(leaving // WARP)
        for table, mail in (
            (self.clocks.known, self.known), (self.clocks.proxied, self.proxied),
        ):  # fmt: skip
            table[warps] = np.maximum(table[warps], mail[cta, number])
            mail[cta, number] = 0
        self.waiting[leaving] = -1
        self.arrived[cta, number] = 0
        return leaving


class ClusterBarrier:
    """barrier.cluster: all threads of a cluster arrive, and may do other things before they wait.

    Attributes:
        waiting: The lanes that wait.
    """

    def __init__(self, threads: Threads, clocks: Clocks, findings: Findings) -> None:
        self.threads, self.clocks, self.findings = threads, clocks, findings
        clusters = len(threads.ctas) // threads.cluster_size
        self.cluster = threads.cta // threads.cluster_size
        self.size = threads.real_size * threads.cluster_size
        self.waiting = np.zeros(threads.count, np.bool_)
        self.phase = np.zeros(clusters, np.int64)
        # The phase that each thread arrived for, or -1.
        self.arrived_for = np.full(threads.count, -1, np.int64)
        self.arrived = np.zeros(clusters, np.int64)
        self.collected = np.zeros((2, clusters, clocks.width), np.int32)
        self.passed_on = np.zeros_like(self.collected)

    def arrive(self, lanes: Lanes, ordered: bool, here: Instruction) -> None:
        """``lanes`` arrive; ``ordered`` unless the arrival is relaxed."""
        again = self.arrived_for[lanes] >= 0
        if again.any():
            detail = f"{self.threads.name(lanes[again][0])} arrives twice without a wait"
            self.findings.report("barrier", here, detail)
        self.arrived_for[lanes] = self.phase[self.cluster[lanes]]
        for cluster in np.unique(self.cluster[lanes]):
            mine = lanes[self.cluster[lanes] == cluster]
            warps = np.unique(mine // WARP)
            if ordered:
                for kept, table in zip(self.collected, self._tables(), strict=True):
                    kept[cluster] = np.maximum(kept[cluster], table[warps].max(axis=0))
            self.clocks.advance(warps)
            self.arrived[cluster] += len(mine)
            if self.arrived[cluster] >= self.size:
                self._complete(int(cluster))

    def wait(self, lanes: Lanes, here: Instruction) -> None:
        """``lanes`` wait for the phase that they arrived for."""
        idle = self.arrived_for[lanes] < 0
        if idle.any():
            detail = f"{self.threads.name(lanes[idle][0])} waits without having arrived"
            self.findings.report("barrier", here, detail)
        done = self.arrived_for[lanes] < self.phase[self.cluster[lanes]]
        self._pass(lanes[done])
        self.waiting[lanes[~done]] = True

    def release_stuck(self, here: Instruction) -> None:
        """Nobody can go on: report the clusters that wait, and let them go."""
        for cluster in np.unique(self.cluster[self.waiting]):
            detail = f"{self.arrived[cluster]} of {self.size} threads of a cluster arrived"
            self.findings.report("barrier", here, detail)
            self._complete(int(cluster))

    def _complete(self, cluster: int) -> None:
        self.phase[cluster] += 1
        self.arrived[cluster] = 0
        self.passed_on[:, cluster] = self.collected[:, cluster]
        self.collected[:, cluster] = 0
        self._pass(np.flatnonzero(self.waiting & (self.cluster == cluster)))

    def _pass(self, lanes: Lanes) -> None:
        self.arrived_for[lanes] = -1
        self.waiting[lanes] = False
        warps = np.unique(lanes // WARP)
        clusters = self.cluster[warps * WARP]
        for passed, table in zip(self.passed_on, self._tables(), strict=True):
            table[warps] = np.maximum(table[warps], passed[clusters])

    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.clocks.known, self.clocks.proxied
