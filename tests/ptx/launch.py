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
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.ptx.arguments import DeviceMemory, arrays_of, pack_argument
from tests.ptx.counters import Counters
from tests.ptx.dtypes import type_named
from tests.ptx.findings import Finding, Findings, KernelFault, PtxError
from tests.ptx.parser import Entry, Module, Parameter, parse_module
from tests.ptx.scheduler import Batch
from tests.ptx.threads import Threads
from tests.ptx.translate import Program, translate

_LANES_PER_BATCH = 2048


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
        self.program: Program = translate(self.entry)
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
        seed: int | None = None,
        check: bool = True,
        batch: int | None = None,
        findings: list[Finding] | None = None,
    ) -> Counters:
        """Run the kernel over a grid.

        Args:
            grid: CTAs along x, y, z; missing ones are 1.
            block: Threads along x, y, z.
            arguments: One for each parameter: tensors and arrays (inputs), `Output`, `Scratch`,
                `InOut`, numbers, `Struct`, or None for a null pointer.
            shared_bytes: Dynamic shared memory.
            seed: Warps overtake each other, CTAs come and atomics act in an order drawn from this
                seed. None: CTAs in order, warps in step.
            check: Raise when a rule of the machine was broken.
            batch: CTAs that run at a time; by default as many as make 2048 threads.
            findings: Filled with what was found, if given.

        Returns:
            What was executed.

        Raises:
            KernelFault: A rule was broken, and ``check`` is true.
            PtxError: The arguments or the block do not fit the kernel.
        """
        sizes = [tuple([*extent, 1, 1][:3]) for extent in (grid, block)]
        memory = DeviceMemory(arrays_of(arguments), self.module.variables)
        packed = self._pack(arguments, memory)
        order = np.arange(math.prod(sizes[0]))
        random = None if seed is None else np.random.default_rng(seed)
        if random is not None:
            random.shuffle(order)
        found, counters = Findings(), Counters(ctas=len(order))
        lanes = -(-math.prod(sizes[1]) // 32) * 32
        batch = batch or max(1, _LANES_PER_BATCH // lanes)
        if not 0 < math.prod(sizes[1]) <= 1024:
            raise PtxError(f"a block has 1 to 1024 threads, not {math.prod(sizes[1])}")
        symbols = {**memory.symbols, **self.symbols}
        for start in range(0, len(order), batch):
            threads = Threads(order[start : start + batch], *sizes)
            Batch(
                self.program,
                threads,
                memory.device,
                packed,
                symbols,
                self.shared_bytes + shared_bytes,
                self.local_bytes,
                self.granule,
                found,
                counters,
                random,
            ).run()
        memory.collect()
        for message in memory.unwritten():
            found.report("unwritten output", self.entry.instructions[-1], message)
        if findings is not None:
            findings.extend(found)
        if check and len(found):
            raise KernelFault(self.name, list(found))
        return counters

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
