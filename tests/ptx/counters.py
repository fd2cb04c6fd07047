"""What a launch executed: deterministic counts that two kernels can be compared by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.threads import WARP, Lanes

_BY_NAME = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "mma", "shfl", "ldmatrix", "stmatrix", "bra")
_FLOAT_ARITHMETIC = ("add", "sub", "mul", "fma", "neg", "abs")


def instruction_class(opcode: str) -> str:
    """The class that an opcode is counted under."""
    name, *modifiers = opcode.split(".")
    last = modifiers[-1] if modifiers else ""
    if name in (*_BY_NAME, "setp", "selp", "cvt", "mov"):
        return name
    if name in ("bar", "barrier"):
        return "barrier" if modifiers[0] != "warp" else "warp barrier"
    if name == "wgmma":
        return f"wgmma.{modifiers[0]}"
    if name == "cp":
        return "cp.async"
    if name in ("red", "atom"):
        return "atomic"
    if name in ("ld", "st"):
        spaces = {modifier.split("::")[0] for modifier in modifiers}
        space = next((s for s in ("shared", "global", "param", "local") if s in spaces), "generic")
        return f"{name}.{space}"
    if name == "div":
        return f"div.{last}"
    if name in ("min", "max") and last == "f32":
        return "f32 min/max"
    if name in _FLOAT_ARITHMETIC and last in ("f32", "f32x2"):
        return "f32 arithmetic"
    return "integer"


@dataclass
class Counters:
    """Counts of one launch, or of several added up.

    Attributes:
        warp_instructions: PTX instructions times the warps that executed them.
        instructions: The same by class (`instruction_class`).
        mma: Tensor-core instructions by shape and type: of warps (mma.sync) or warpgroups (wgmma).
        mma_flops: Floating-point operations of those.
        bytes: Global bytes moved by active lanes, by kind of access.
        sectors: Sectors of 32 bytes that warps touched, by kind; ``requests`` are the accesses.
        wavefronts: Shared-memory wavefronts, by kind; ``phases`` is what they would be without
            bank conflicts.
        atomics: Lanes that did an atomic operation.
        ctas: CTAs launched.
    """

    warp_instructions: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    mma: Counter[str] = field(default_factory=Counter)
    mma_flops: int = 0
    bytes: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    wavefronts: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    wgmma_shared_bytes: int = 0
    atomics: int = 0
    ctas: int = 0

    @property
    def exponentials(self) -> int:
        """ex2 executed, counted for all 32 lanes of each warp."""
        return WARP * self.instructions["ex2"]

    @property
    def barriers(self) -> int:
        """Barriers executed, counted for each warp."""
        return self.instructions["barrier"]

    @property
    def global_bytes(self) -> int:
        """All bytes moved to and from global memory."""
        return sum(self.bytes.values())

    @property
    def sectors_per_request(self) -> float:
        """Mean 32-byte sectors of a warp's global access: 4 for 4 coalesced bytes a lane."""
        return sum(self.sectors.values()) / max(1, sum(self.requests.values()))

    @property
    def bank_conflicts(self) -> int:
        """Shared-memory wavefronts beyond the conflict-free minimum."""
        return sum(self.wavefronts.values()) - sum(self.phases.values())

    def __add__(self, other: Counters) -> Counters:
        names = self.__dataclass_fields__
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for a table."""
        flat: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Counter):
                flat.update({f"{name}: {key}": count for key, count in sorted(value.items())})
            else:
                flat[name] = value
        return flat

    def count_mma(self, name: str, executions: int, flops: int) -> None:
        """Enter ``executions`` of a tensor-core instruction of ``flops`` each."""
        self.mma[name] += executions
        self.mma_flops += executions * flops

    def count_global(self, kind: str, offsets: NDArray[Any], size: int, lanes: Lanes) -> None:
        """Enter one access of ``size`` bytes by each lane; ``offsets`` are aligned to it."""
        if len(lanes) == 0:
            return
        warps, places = _numbered(lanes // WARP)
        sectors = np.full((len(warps), WARP), -1, np.int64)
        sectors[places, lanes % WARP] = offsets >> 5
        sectors.sort(axis=1)
        fresh = (sectors[:, 1:] != sectors[:, :-1]).sum() + len(warps) - (sectors[:, 0] < 0).sum()
        self.bytes[kind] += size * len(lanes)
        self.sectors[kind] += int(fresh)
        self.requests[kind] += len(warps)

    def count_shared(self, kind: str, offsets: NDArray[Any], size: int, lanes: Lanes) -> None:
        """Enter one shared access of ``size`` bytes by each lane, ``offsets`` within its CTA.

        A wavefront serves 32 banks of 4 bytes: as many lanes at a time as fill 128 bytes, and one
        wavefront more for each further word that they want of one bank.
        """
        if len(lanes) == 0:
            return
        words = max(size // 4, 1)
        lanes_per_phase = WARP // words
        phases, places = _numbered(lanes // lanes_per_phase)
        wanted = np.full((len(phases), lanes_per_phase, words), -1, np.int64)
        wanted[places, lanes % lanes_per_phase] = offsets[:, None] // 4 + np.arange(words)
        wanted = wanted.reshape(len(phases), WARP)
        wanted.sort(axis=1)
        distinct = wanted >= 0
        distinct[:, 1:] &= wanted[:, 1:] != wanted[:, :-1]
        rows, columns = np.nonzero(distinct)
        banks = np.bincount(rows * WARP + wanted[rows, columns] % WARP, minlength=wanted.size)
        self.wavefronts[kind] += int(banks.reshape(-1, WARP).max(axis=1).sum())
        self.phases[kind] += len(phases)


def _numbered(groups: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distinct values of an ascending array, and the place of each element among them."""
    places = np.cumsum(np.diff(groups, prepend=groups[:1]) != 0)
    return groups[np.diff(groups, prepend=-1) != 0], places
