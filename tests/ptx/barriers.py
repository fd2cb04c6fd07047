"""bar.sync and bar.arrive: the sixteen barriers of each CTA, with their counts."""

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
        self.known = np.zeros((ctas, _BARRIERS, threads.warps), np.int32)
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
    ) -> None:
        """``lanes`` reach their barriers; complete barriers let go of those that wait."""
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
                self._release(cta, number)

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

    def _release(self, cta: int, number: int) -> None:
        leaving = np.flatnonzero((self.waiting == number) & (self.threads.cta == cta))
        warps = np.unique(leaving // WARP)
        for table, mail in (
            (self.clocks.known, self.known), (self.clocks.proxied, self.proxied),
        ):  # fmt: skip
            table[warps] = np.maximum(table[warps], mail[cta, number])
            mail[cta, number] = 0
        self.waiting[leaving] = -1
        self.arrived[cta, number] = 0
