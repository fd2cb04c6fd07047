"""Distributed shared memory: what the CTAs of a cluster see of each other.

An address of ``shared::cluster`` is an offset plus, in the bits above, one more than the rank of
its CTA; plain ``shared`` addresses stand for the own CTA, as on the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.parser import Instruction
from tests.ptx.shared_memory import SharedMemory
from tests.ptx.threads import Lanes

Array = NDArray[Any]

_RANK_SHIFT = 24
_OFFSET = (1 << _RANK_SHIFT) - 1


class ClusterMemory(SharedMemory):
    """The shared memory of all CTAs of a cluster."""

    def __init__(self, shared: SharedMemory) -> None:
        self.__dict__.update(shared.__dict__)
        # For each CTA of the batch, whether all its threads have ended.
        self.ended = np.zeros(len(self.threads.ctas), np.bool_)

    def map_address(self, addresses: Array, rank: Array) -> Array:
        """mapa: the same place in the CTA of ``rank``; works within the generic window, too."""
        kind = addresses.dtype.type
        bits = kind(2**32 - 1)
        high = addresses & ~bits
        place = addresses & kind(_OFFSET)
        return high | place | ((rank.astype(kind) + kind(1)) << kind(_RANK_SHIFT))

    def rank_of(self, addresses: Array) -> Array:
        """getctarank: the rank of the CTA that an address belongs to."""
        ranks = ((addresses.astype(np.int64) & 0xFFFFFFFF) >> _RANK_SHIFT) - 1
        own = self.threads.cta % self.threads.cluster_size
        return np.where(ranks < 0, own, ranks).astype(np.uint32)

    def locate(
        self,
        addresses: Array,
        size: int,
        lanes: Lanes,
        here: Instruction,
        verb: str,
        keep: bool = False,
    ) -> tuple[Lanes, Array]:
        """As for the own CTA; ranks beyond the cluster and CTAs that have ended are reported."""
        ranks = self.rank_of(addresses)[lanes].astype(np.int64)
        first = self.threads.cta[lanes] // self.threads.cluster_size * self.threads.cluster_size
        outside = ranks >= self.threads.cluster_size
        ended = ~outside & self.ended[np.where(outside, 0, first + ranks)]
        for wrong, text in ((outside, "which the cluster lacks"), (ended, "which has ended")):
            if wrong.any():
                lane, rank = lanes[wrong][0], ranks[wrong][0]
                detail = f"{self.threads.name(lane)} {verb} shared memory of rank {rank}, {text}"
                self.findings.report("out of bounds shared", here, detail)
        good = ~(outside | ended)
        lanes, owners = lanes[good], (first + ranks)[good]
        plain = np.zeros(self.threads.count, np.int64)
        plain[lanes] = addresses[lanes].astype(np.int64) & _OFFSET
        kept, offsets = super().locate(plain, size, lanes, here, verb, keep)
        owners = owners[np.searchsorted(lanes, kept)]
        return kept, offsets + (owners - self.threads.cta[kept]) * self.stride
