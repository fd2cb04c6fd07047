"""Runs a batch of CTAs: chooses a block and the lanes that execute it, until all have ended.

Without a seed all lanes that stand at the earliest block run together (convergence.py), which keeps
warps converged and is fast. With a seed a random subset of warps advances at each step, so that
warps overtake each other as they do on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import numerics
from tests.ptx.barriers import Barriers, ClusterBarrier
from tests.ptx.cluster_memory import ClusterMemory
from tests.ptx.copies import AsyncCopies
from tests.ptx.counters import Counters, instruction_class
from tests.ptx.dtypes import DTYPES
from tests.ptx.findings import Findings, PtxError
from tests.ptx.global_memory import (
    LOCAL_WINDOW,
    PARAMETER_WINDOW,
    SHARED_WINDOW,
    DeviceBytes,
    GlobalMemory,
)
from tests.ptx.shadow import Clocks, SharedShadow
from tests.ptx.shared_memory import SharedMemory
from tests.ptx.small_memories import GenericMemory, LocalMemory, ParameterMemory
from tests.ptx.tensor import TensorCores
from tests.ptx.threads import WARP, Lanes, Mask, Threads
from tests.ptx.translate import Program, Terminator
from tests.ptx.warps import Warps
from tests.ptx.wgmma import WARPGROUP, WarpgroupMatrix

Array = NDArray[Any]

# A register that was never written holds this NaN, to be seen in the results.
_GARBAGE = 0x7FC0DEAD
_ENDED = np.int32(2**30)


def put(register: Array, value: Array, mask: Mask) -> None:
    """Write a register in the active lanes."""
    if mask is None:
        register[:] = value
    else:
        np.copyto(register, value, where=mask)


def both(mask: Mask, predicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The active lanes whose predicate is true."""
    return predicate if mask is None else mask & predicate


def bits(values: Array, dtype: Any) -> Array:
    """The same bits as another type of the same width."""
    return values.view(dtype)


@dataclass
class Launch:
    """What all CTAs of a launch have in common.

    Attributes:
        program: The translated kernel.
        device: Global memory.
        parameters: The bytes of the kernel's parameters.
        symbols: Addresses of variables and parameters, each in its space.
        shared_size, local_size: Bytes of shared memory of a CTA, of local memory of a thread.
        granule: Bytes of shared memory that are watched as one.
        findings: Where broken rules are entered.
        counters: Where what is executed is counted.
        random: Draws the schedule, or None for lockstep.
        ulps: Error of approximating instructions, in units of the last place.
    """

    program: Program
    device: DeviceBytes
    parameters: bytes
    symbols: dict[str, int]
    shared_size: int
    local_size: int
    granule: int
    findings: Findings
    counters: Counters
    random: np.random.Generator | None
    ulps: int = 0

    def approximate(self, x: Array) -> Array:
        """What an instruction gives that only approximates ``x``."""
        if self.ulps == 0:
            return x
        return numerics.perturb(x, self.ulps, self.random or np.random.default_rng(0))


class Batch:
    """The state of the CTAs that run together."""

    def __init__(self, launch: Launch, threads: Threads) -> None:
        program, findings, counters = launch.program, launch.findings, launch.counters
        self.program, self.threads = program, threads
        self.counters, self.random = counters, launch.random
        clocks = Clocks(threads)
        stride = max(-(-launch.shared_size // 128) * 128, 128)
        self.shadow = SharedShadow(threads, clocks, stride, launch.granule, findings)
        shared = SharedMemory(
            threads, launch.shared_size, stride, self.shadow, findings, counters, self.random
        )
        glob = GlobalMemory(launch.device, threads, clocks, findings, counters, self.random)
        local = LocalMemory(threads, launch.local_size, findings)
        param = ParameterMemory(launch.parameters)
        self.copies = AsyncCopies(threads, glob, shared, findings)
        self.barriers = Barriers(threads, clocks, findings)
        self.cluster_barrier = ClusterBarrier(threads, clocks, findings)
        self.cluster_memory = ClusterMemory(shared)
        self.wgmma = (
            WarpgroupMatrix(threads, shared, findings, counters)
            if threads.size % WARPGROUP == 0
            else None
        )
        self.has_wgmma = any(
            instruction.opcode.startswith("wgmma") for instruction in program.entry.instructions
        )
        if self.has_wgmma and self.wgmma is None:
            raise PtxError(f"{program.entry.name} uses wgmma: its block must be whole warpgroups")
        self.names: dict[str, Any] = {
            **{name: getattr(numerics, name) for name in dir(numerics) if name[0] != "_"},
            **{t.__name__: t for view in DTYPES.values() for t in view.values()},
            **threads.special_registers(),
            **self._constants(launch.symbols),
            **self._registers(),
            "put": put,
            "both": both,
            "bits": bits,
            "approximate": launch.approximate,
            "I": program.entry.instructions,
            "SHARED_WINDOW": SHARED_WINDOW,
            "LOCAL_WINDOW": LOCAL_WINDOW,
            "PARAMETER_WINDOW": PARAMETER_WINDOW,
            "shadow": self.shadow,
            "global_memory": glob,
            "shared_memory": shared,
            "cluster_memory": self.cluster_memory,
            "local_memory": local,
            "param_memory": param,
            "generic_memory": GenericMemory(glob, self.cluster_memory, local, param),
            "copies": self.copies,
            "warps": Warps(threads, clocks, findings),
            "tensor": TensorCores(threads, findings, counters),
            "wgmma": self.wgmma,
        }
        assert program.code is not None
        exec(program.code, self.names)
        blocks = range(len(program.blocks))
        self.functions: list[Callable[[Mask], None]] = [self.names[f"block_{i}"] for i in blocks]
        self.sizes, self.classes = _block_counts(program)
        self.order = np.array(program.order)
        self.rank = np.argsort(self.order)

    def _constants(self, symbols: dict[str, int]) -> dict[str, Array]:
        count = self.threads.count
        values = {name: np.full(count, value) for name, value in self.program.constants.items()}
        for name, (symbol, dtype) in self.program.symbols.items():
            values[name] = np.full(count, symbols[symbol], np.uint64).astype(dtype)
        return values

    def _registers(self) -> dict[str, Array]:
        values: dict[str, Array] = {}
        for name, type_ in self.program.registers.items():
            if type_.view == "p":
                values[name] = np.zeros(self.threads.count, np.bool_)
                continue
            garbage = _GARBAGE & (2**type_.bits - 1)
            register = np.full(self.threads.count, garbage, DTYPES["u"][type_.bits])
            for view, dtypes in DTYPES.items():
                if type_.bits in dtypes:
                    values[f"{name}_{view}"] = register.view(dtypes[type_.bits])
        return values

    def run(self, limit: int) -> None:
        """Run all threads to their end, of at most ``limit`` blocks."""
        threads = self.threads
        place = np.where(threads.missing, _ENDED, 0).astype(np.int32)
        together: int | None = None if threads.missing.any() or self.random else 0
        with np.errstate(all="ignore"):
            for _ in range(limit):
                if together is not None:
                    together = self._step_together(together, place)
                    if together is not None and together >= len(self.functions):
                        break
                    continue
                if not self._step(place):
                    break
                if self.random is None and self._is_together(place):
                    together = int(place[0])
            else:
                raise PtxError(f"{self.program.entry.name}: no end after {limit} blocks")
        self.copies.finish()
        self.shadow.finish(self.program.entry.instructions[-1])
        if self.wgmma is not None:
            self.wgmma.finish(self.program.entry.instructions[-1])

    def _step_together(self, block: int, place: NDArray[np.int32]) -> int | None:
        """All lanes execute ``block``: their next block, or None once they part."""
        self.functions[block](None)
        self._count(block, self.threads.count // WARP)
        end = self.program.blocks[block].terminator
        take = self._takes(end)
        if end.kind == "fall":
            return block + 1
        everybody, nobody = take is None or bool(take.all()), take is not None and not take.any()
        if nobody:
            return block + 1
        if everybody and end.kind == "branch":
            return end.target
        if everybody and end.kind == "exit":
            return len(self.functions)
        if everybody and end.kind == "sync" and self._is_plain_barrier(end):
            self.barriers.everybody()
            return block + 1
        place[:] = block
        self._leave(block, np.ones(self.threads.count, np.bool_), place)
        return None

    def _step(self, place: NDArray[np.int32]) -> bool:
        """Some lanes execute a block; False when all have ended."""
        ready = (place < _ENDED) & (self.barriers.waiting < 0) & ~self.cluster_barrier.waiting
        if self.threads.cluster_size > 1:
            ctas = (place >= _ENDED).reshape(-1, self.threads.size)
            self.cluster_memory.ended[:] = ctas.all(axis=1)
        if not ready.any():
            alive = place < _ENDED
            if not alive.any():
                return False
            stuck = place[np.flatnonzero(alive)[0]] - 1
            instruction = self.program.blocks[stuck].terminator.instruction
            assert instruction is not None
            self.barriers.release_stuck(alive, instruction)
            self.cluster_barrier.release_stuck(instruction)
            return True
        if self.random is not None:
            ready = self._some_warps(ready)
        block = int(self.order[self.rank[place[ready]].min()])
        mask = ready & (place == block)
        self.functions[block](None if mask.all() else mask)
        self._count(block, self.threads.active_warps(mask))
        self._leave(block, mask, place)
        return True

    def _is_together(self, place: NDArray[np.int32]) -> bool:
        here = place[0]
        if here >= _ENDED or not (place == here).all():
            return False
        return not (self.barriers.waiting >= 0).any() and not self.cluster_barrier.waiting.any()

    def _some_warps(self, ready: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A random half of the ready lanes: the same warps of each CTA, so that CTAs stay together.

        Warps of a warpgroup execute wgmma together, and stay together.
        """
        assert self.random is not None
        units = (self.threads.thread // (WARPGROUP if self.has_wgmma else WARP)).astype(np.int64)
        able = np.unique(units[ready])
        chosen = able[self.random.random(len(able)) < 0.5]
        if len(chosen) == 0:
            chosen = self.random.choice(able, 1)
        return ready & np.isin(units, chosen)

    def _leave(self, block: int, mask: NDArray[np.bool_], place: NDArray[np.int32]) -> None:
        """Move the lanes that executed ``block`` to where they go next."""
        end = self.program.blocks[block].terminator
        take = self._takes(end)
        taken = mask if take is None else mask & take
        place[mask] = block + 1
        if end.kind == "branch":
            place[taken] = end.target
        elif end.kind == "exit":
            place[taken] = _ENDED
        elif end.kind in ("sync", "arrive", "reduce") and taken.any():
            assert end.instruction is not None
            barrier, count = self._barrier_operands(end)
            waits = end.kind != "arrive"
            for lanes in self.barriers.arrive(
                np.flatnonzero(taken), barrier, count, waits, end.instruction
            ):
                self._reduce(lanes, place)
        elif end.kind.startswith("cluster") and taken.any():
            assert end.instruction is not None
            if end.kind == "cluster wait":
                self.cluster_barrier.wait(np.flatnonzero(taken), end.instruction)
            else:
                ordered = end.kind == "cluster arrive"
                self.cluster_barrier.arrive(np.flatnonzero(taken), ordered, end.instruction)
        place[place == len(self.functions)] = _ENDED

    def _reduce(self, lanes: Lanes, place: NDArray[np.int32]) -> None:
        """Give lanes that leave a reducing barrier their results; each knows where it came from."""
        ends = {int(block) - 1 for block in place[lanes]}
        if not any(self.program.blocks[block].terminator.reduction for block in ends):
            return
        votes = np.zeros(self.threads.count, np.bool_)
        for block in ends:
            end = self.program.blocks[block].terminator
            predicate = self.names[end.predicate.lstrip("~")]
            mine = lanes[place[lanes] == block + 1]
            votes[mine] = ~predicate[mine] if end.predicate.startswith("~") else predicate[mine]
        functions = {"popc": np.count_nonzero, "and": np.all, "or": np.any}
        for block in ends:
            end = self.program.blocks[block].terminator
            self.names[end.result][lanes[place[lanes] == block + 1]] = functions[end.reduction](
                votes[lanes]
            )

    def _takes(self, end: Terminator) -> NDArray[np.bool_] | None:
        if not end.guard:
            return None
        guard = self.names[end.guard.lstrip("~")]
        return ~guard if end.negated else guard

    def _barrier_operands(self, end: Terminator) -> tuple[Array, Array | None]:
        return self.names[end.barrier], self.names[end.count] if end.count else None

    def _is_plain_barrier(self, end: Terminator) -> bool:
        """Whether one barrier is meant that counts whole CTAs."""
        barrier, count = self._barrier_operands(end)
        idle = not self.barriers.arrived.any()
        whole = count is None or bool((count == self.threads.real_size).all())
        return idle and whole and bool((barrier == barrier[0]).all())

    def _count(self, block: int, warps: int) -> None:
        self.counters.warp_instructions += self.sizes[block] * warps
        for name, count in self.classes[block].items():
            self.counters.instructions[name] += count * warps


def _block_counts(program: Program) -> tuple[list[int], list[dict[str, int]]]:
    sizes, classes = [], []
    for block in program.blocks:
        members = list(block.instructions)
        if block.terminator.instruction is not None:
            members.append(block.terminator.instruction)
        counts: dict[str, int] = {}
        for instruction in members:
            name = instruction_class(instruction.opcode)
            counts[name] = counts.get(name, 0) + 1
        sizes.append(len(members))
        classes.append(counts)
    return sizes, classes
