"""Loads PTX and launches its kernels on NumPy arrays and torch tensors.

    kernel = load(ptx_text)["my_kernel"]
    result = Output(torch.empty(300, 64))
    counters = kernel.launch((5,), (128,), [x, result, 300, 0.125], shared_bytes=16384, seed=1)

An array or tensor argument is an input: a kernel that writes it is wrong. What it may write is
wrapped in `Output`, `Scratch` or `InOut`. Torch tensors are the natural arguments (bfloat16 among
them); in NumPy, bfloat16 is uint16 bits. Views with any strides work: only their own elements may
be touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.arguments import DeviceMemory, arrays_of, pack_argument
from tests.ptx.counters import Counters
from tests.ptx.dtypes import type_named
from tests.ptx.findings import Finding, Findings, KernelFault, PtxError
from tests.ptx.parser import Entry, Module, Parameter, parse_module
from tests.ptx.scheduler import Batch, Launch
from tests.ptx.threads import Threads, clusters_of
from tests.ptx.translate import Program, translate

_LANES_PER_BATCH = 2048
# Shared memory of a CTA, from the CUDA programming guide's table of compute capabilities.
_SHARED_LIMITS = {
    "80": 163 * 1024,
    "86": 99 * 1024,
    "89": 99 * 1024,
    "90": 227 * 1024,
    "100": 227 * 1024,
    "120": 99 * 1024,
}


class Kernel:
    """A kernel ready to be launched, any number of times.

    Attributes:
        name: As in the PTX.
        shared_bytes: Static shared memory; dynamic comes on top.
        source: The Python translation, for reading.
    """

    def __init__(self, module: Module, name: str) -> None:
        self.name = name
        self.module = module
        self.entry: Entry = module.entry(name)
        self.program: Program = translate(self.entry, module.variables)
        self.source = self.program.source
        self.granule = _granule(self.entry)
        self.symbols, self.shared_bytes, self.local_bytes = _layout(self.entry, module)

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters, in order."""
        return self.entry.parameters

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
        *,
        cluster: Sequence[int] | None = None,
        seed: int | None = None,
        check: bool = True,
        ctas: Sequence[int] | None = None,
        batch: int | None = None,
        findings: list[Finding] | None = None,
        ulps: int = 0,
        limit: int = 5_000_000,
    ) -> Counters:
        """Run the kernel over a grid.

        Args:
            grid: CTAs along x, y, z; missing ones are 1.
            block: Threads along x, y, z.
            arguments: One for each parameter: tensors and arrays (inputs), `Output`, `Scratch`,
                `InOut`, numbers, None for a null pointer, and for a struct `Struct`, `Packed` or
                its bytes.
            shared_bytes: Dynamic shared memory.
            cluster: CTAs of a cluster along x, y, z; by default what the kernel was compiled for.
            seed: Warps overtake each other, CTAs come and atomics act in an order drawn from this
                seed. None: CTAs in order, warps in step.
            check: Raise when a rule of the machine was broken.
            ctas: Run only the clusters of these, by linear index; outputs may then stay unwritten.
            batch: CTAs that run at a time; by default as many as make 2048 threads.
            findings: Filled with what was found, if given.
            ulps: Move what ex2, lg2 and other approximating instructions give by up to so many
                units in the last place, drawn from ``seed``.
            limit: Basic blocks that a batch may execute before it counts as endless.

        Returns:
            What was executed.

        Raises:
            KernelFault: A rule was broken, and ``check`` is true.
            PtxError: The arguments or the block do not fit the kernel.
        """
        extent, size = (_three(shape) for shape in (grid, block))
        self._check_limits(math.prod(size), shared_bytes)
        memory = DeviceMemory(arrays_of(arguments), self.module.variables)
        group = self.entry.cluster if cluster is None else _three(cluster)
        order = self._order(extent, group, ctas)
        random = None if seed is None else np.random.default_rng(seed)
        if random is not None:
            random.shuffle(order)
        found, counters = Findings(), Counters(ctas=order.size)
        state = Launch(
            program=self.program,
            device=memory.device,
            parameters=self._pack(arguments, memory),
            symbols={**memory.symbols, **self.symbols},
            shared_size=self.shared_bytes + shared_bytes,
            local_size=self.local_bytes,
            granule=self.granule,
            findings=found,
            counters=counters,
            random=random,
            ulps=ulps,
        )
        per_batch = max(1, (batch or _LANES_PER_BATCH // math.prod(size)) // math.prod(group))
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch].reshape(-1)
            Batch(state, Threads(chosen, extent, size, group)).run(limit)
        memory.collect()
        for message in memory.unwritten() if ctas is None else ():
            found.report("unwritten output", self.entry.instructions[-1], message)
        if findings is not None:
            findings.extend(found)
        if check and len(found):
            raise KernelFault(self.name, list(found))
        return counters

    def _order(
        self,
        grid: tuple[int, int, int],
        cluster: tuple[int, int, int],
        ctas: Sequence[int] | None,
    ) -> NDArray[np.int64]:
        """The CTAs to run: (clusters, CTAs of a cluster)."""
        if any(extent % size for extent, size in zip(grid, cluster, strict=True)):
            raise PtxError(f"a grid of {grid} has no whole clusters of {cluster}")
        clusters = clusters_of(grid, cluster)
        if ctas is not None:
            clusters = clusters[np.isin(clusters, ctas).any(axis=1)]
        return clusters

    def _check_limits(self, threads: int, dynamic: int) -> None:
        required, most = self.entry.required_threads, self.entry.most_threads
        if not 0 < threads <= most or (required and threads != required):
            wanted = f"{required} threads" if required else f"1 to {most} threads"
            raise PtxError(f"{self.name} takes blocks of {wanted}, not {threads}")
        digits = re.match(r"sm_(\d+)", self.module.target)
        limit = _SHARED_LIMITS.get(digits[1] if digits else "", max(_SHARED_LIMITS.values()))
        if self.shared_bytes + dynamic > limit:
            raise PtxError(
                f"{self.name} wants {self.shared_bytes + dynamic} bytes of shared memory; "
                f"{self.module.target} has {limit}"
            )

    def _pack(self, arguments: Sequence[Any], memory: DeviceMemory) -> bytes:
        if len(arguments) != len(self.parameters):
            raise PtxError(
                f"{self.name} has {len(self.parameters)} parameters, {len(arguments)} were given"
            )
        data = b""
        for parameter, argument in zip(self.parameters, arguments, strict=True):
            data = data.ljust(parameter.offset, b"\0")
            data += pack_argument(parameter, argument, memory)
        return data


class LoadedModule:
    """The kernels of a PTX text, by name; any part of a name that is unique will do."""

    def __init__(self, text: str) -> None:
        self.module = parse_module(text)
        self._kernels: dict[str, Kernel] = {}

    @property
    def names(self) -> list[str]:
        """The kernels' names, as mangled."""
        return self.module.names

    def __getitem__(self, part: str) -> Kernel:
        matches = [name for name in self.names if name == part] or [
            name for name in self.names if part in name
        ]
        if len(matches) != 1:
            raise KeyError(f"{part!r} matches {matches or 'none'} of {self.names}")
        if matches[0] not in self._kernels:
            self._kernels[matches[0]] = Kernel(self.module, matches[0])
        return self._kernels[matches[0]]


def load(text: str) -> LoadedModule:
    """Read PTX text; its kernels are translated when they are asked for."""
    return LoadedModule(text)


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = [*shape, 1, 1][:3]
    return x, y, z


def _granule(entry: Entry) -> int:
    """The largest unit that every shared-memory access covers wholly: 1, 2 or 4 bytes."""
    granule = 4
    for instruction in entry.instructions:
        name, *modifiers = instruction.opcode.split(".")
        if (name in ("ld", "st") and not {"global", "param", "local"} & set(modifiers)) or (
            name in ("atom", "red") and "shared" in instruction.opcode
        ):
            granule = min(granule, type_named(modifiers[-1]).bits // 8)
        elif name == "wgmma" and modifiers[-1] in ("bf16", "f16"):
            granule = min(granule, 2)
    return granule


def _layout(entry: Entry, module: Module) -> tuple[dict[str, int], int, int]:
    """Addresses of variables and parameters; bytes of shared and of local memory."""
    symbols = {parameter.name: parameter.offset for parameter in entry.parameters}
    sizes = {"shared": 0, "local": 0}
    dynamic: list[str] = []
    dynamic_align = 16
    text = " ".join(op for instruction in entry.instructions for op in instruction.operands)
    for entry_variable in [*entry.variables, *module.variables]:
        if entry_variable.space not in sizes:
            continue
        if entry_variable.space == "shared" and entry_variable.is_extern:
            dynamic.append(entry_variable.name)
            dynamic_align = max(dynamic_align, entry_variable.align)
        elif entry_variable in entry.variables or entry_variable.name in text:
            size = sizes[entry_variable.space]
            offset = -(-size // entry_variable.align) * entry_variable.align
            symbols[entry_variable.name] = offset
            sizes[entry_variable.space] = offset + entry_variable.size
    if dynamic and sizes["shared"]:
        sizes["shared"] = -(-sizes["shared"] // dynamic_align) * dynamic_align
    for name in dynamic:
        symbols[name] = sizes["shared"]
    return symbols, sizes["shared"], sizes["local"]
