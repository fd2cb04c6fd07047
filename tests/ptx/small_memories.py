"""Local memory, kernel parameters, and generic addresses, which stand for any of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.cluster_memory import ClusterMemory
from tests.ptx.findings import Findings, PtxError
from tests.ptx.global_memory import (
    GLOBAL_BASE,
    LOCAL_WINDOW,
    PARAMETER_WINDOW,
    SHARED_WINDOW,
    GlobalMemory,
)
from tests.ptx.parser import Instruction
from tests.ptx.threads import Mask, Threads

Array = NDArray[Any]


class LocalMemory:
    """``size`` bytes for each thread."""

    def __init__(self, threads: Threads, size: int, findings: Findings) -> None:
        self.threads, self.size, self.findings = threads, size, findings
        self.stride = -(-size // 16) * 16
        self.bytes = np.full(self.stride * threads.count, 0xFF, np.uint8)

    def load(self, addresses: Array, dtype: Any, count: int, m: Mask, here: Instruction) -> Array:
        """``count`` neighbouring elements for each lane."""
        size = np.dtype(dtype).itemsize * count
        result = np.zeros((count, self.threads.count), dtype)
        lanes, offsets = self._locate(addresses, size, m, here)
        result[:, lanes] = self.bytes.view(dtype).reshape(-1, count)[offsets // size].T
        return result

    def store(
        self, addresses: Array, values: list[Array], dtype: Any, m: Mask, here: Instruction
    ) -> None:
        """Store neighbouring elements, one array of ``values`` for each."""
        size = np.dtype(dtype).itemsize * len(values)
        lanes, offsets = self._locate(addresses, size, m, here)
        rows = np.stack([value[lanes] for value in values], axis=1).view(dtype)
        self.bytes.view(dtype).reshape(-1, len(values))[offsets // size] = rows

    def _locate(
        self, addresses: Array, size: int, m: Mask, here: Instruction
    ) -> tuple[Array, Array]:
        lanes = self.threads.active(m)
        offsets = addresses[lanes].astype(np.int64)
        outside = (offsets < 0) | (offsets + size > self.size)
        crooked = offsets % size != 0
        for wrong, check in ((outside, "out of bounds local"), (crooked, "misaligned")):
            if wrong.any():
                detail = f"{self.threads.name(lanes[wrong][0])} at local {offsets[wrong][0]}"
                self.findings.report(check, here, detail)
        good = ~(outside | crooked)
        lanes = lanes[good]
        return lanes, offsets[good] + lanes * self.stride


class ParameterMemory:
    """The kernel's parameters, one copy for all threads."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.bytes = np.frombuffer(data.ljust(-(-len(data) // 16) * 16 + 16, b"\0"), np.uint8)

    def load(self, addresses: Array, dtype: Any, count: int, m: Mask, here: Instruction) -> Array:
        """``count`` neighbouring elements for each lane."""
        size = np.dtype(dtype).itemsize * count
        offsets = addresses.astype(np.int64)
        if m is not None:
            offsets = np.where(m, offsets, 0)
        if (offsets + size > self.size).any() or (offsets < 0).any() or (offsets % size).any():
            raise PtxError(f"line {here.line}: outside the kernel's parameters: {here.text}")
        return self.bytes.view(dtype).reshape(-1, count)[offsets // size].T


class GenericMemory:
    """Chooses the memory of each lane by its address."""

    def __init__(
        self,
        glob: GlobalMemory,
        shared: ClusterMemory,
        local: LocalMemory,
        param: ParameterMemory,
    ) -> None:
        self.threads = glob.threads
        self.windows = (
            (GLOBAL_BASE, glob),
            (SHARED_WINDOW, shared),
            (LOCAL_WINDOW, local),
            (PARAMETER_WINDOW, param),
        )

    def load(self, addresses: Array, dtype: Any, count: int, m: Mask, here: Instruction) -> Array:
        """``count`` neighbouring elements for each lane."""
        result = np.zeros((count, self.threads.count), dtype)
        for memory, base, mask in self._parts(addresses, m):
            result[:, mask] = memory.load(addresses - np.uint64(base), dtype, count, mask, here)[
                :, mask
            ]
        return result

    def store(
        self, addresses: Array, values: list[Array], dtype: Any, m: Mask, here: Instruction
    ) -> None:
        """Store neighbouring elements, one array of ``values`` for each."""
        for memory, base, mask in self._parts(addresses, m):
            if isinstance(memory, ParameterMemory):
                raise PtxError(f"line {here.line}: parameters cannot be written: {here.text}")
            memory.store(addresses - np.uint64(base), values, dtype, mask, here)

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
        result = np.zeros(self.threads.count, values[0].dtype)
        for memory, base, mask in self._parts(addresses, m):
            if not isinstance(memory, (GlobalMemory, ClusterMemory)):
                raise PtxError(f"line {here.line}: no atomics on this memory: {here.text}")
            found = memory.update(
                operation, type_name, addresses - np.uint64(base), values, mask, here
            )
            result[mask] = found[mask]
        return result

    def _parts(self, addresses: Array, m: Mask) -> list[tuple[Any, int, NDArray[np.bool_]]]:
        rest = np.ones(self.threads.count, np.bool_) if m is None else m.copy()
        parts = []
        for base, memory in self.windows:
            mask = rest & (addresses >= np.uint64(base))
            rest &= ~mask
            if base == GLOBAL_BASE:
                # What lies in no window is reported there.
                mask |= rest & (addresses < np.uint64(PARAMETER_WINDOW))
                rest &= ~mask
                base = 0
            if mask.any():
                parts.append((memory, base, mask))
        return parts
