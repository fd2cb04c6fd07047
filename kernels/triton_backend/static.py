"""What the compiler says of a kernel: registers, spills, shared memory, occupancy, instructions.

Static: read off the compiled program by the tools that Triton brings, no GPU needed. The CUDA
kernels are read by the same tools.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory of a processor, and warps that it holds, by capability (CUDA C++
# Programming Guide, "Technical Specifications per Compute Capability").
_PROCESSORS = {
    80: (167_936, 64),
    86: (102_400, 48),
    89: (102_400, 48),
    90: (233_472, 64),
    100: (233_472, 64),
    120: (102_400, 48),
}
_REGISTERS = 65_536
_RESERVED_SHARED = 1024
_MAX_PROGRAMS = 32
TABLE_HEAD = (
    f"{'kernel':<36}{'sm':>4}{'regs':>6}{'spilled':>9}{'shared':>8}{'warps':>7}"
    f"{'programs':>10}  instructions"
)


@dataclass(frozen=True)
class Report:
    """What one compiled kernel needs.

    Attributes:
        registers: of a thread.
        spilled: bytes of local memory and stack of a thread.
        shared_memory: bytes of a program.
        warps: of a program.
        programs: how many fit on a processor at a time.
        mix: static number of machine instructions by opcode.
    """

    registers: int
    spilled: int
    shared_memory: int
    warps: int
    programs: int
    mix: Counter[str] = field(default_factory=Counter)

    def line(self, name: str, capability: int) -> str:
        """One row of a table, under :data:`TABLE_HEAD`."""
        products = [opcode for opcode in self.mix if "MMA" in opcode]
        opcodes = dict.fromkeys([*products, *(opcode for opcode, _ in self.mix.most_common(6))])
        mix = " ".join(f"{opcode} {self.mix[opcode]}" for opcode in opcodes)
        return (
            f"{name:<36}{capability:>4}{self.registers:>6}{self.spilled:>9}"
            f"{self.shared_memory:>8}{self.warps:>7}{self.programs:>10}  {mix}"
        )

    @property
    def tensor_core_instructions(self) -> int:
        """Matrix products on tensor cores in the program's text."""
        return sum(n for opcode, n in self.mix.items() if re.search("MMA|UTCHMMA", opcode))


def examine(kernel: Any, capability: int, *, with_mix: bool = True) -> Report:
    """Read a kernel that Triton compiled.

    Args:
        kernel: result of ``triton.compile``.
        capability: CUDA capability it was compiled for.
        with_mix: also count machine instructions, which takes longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        (report,) = examine_cubin(
            path, kernel.metadata.shared, kernel.metadata.num_warps, capability, with_mix=with_mix
        ).values()
    return report


def examine_cubin(
    path: Path, shared: int, warps: int, capability: int, *, with_mix: bool = True
) -> dict[str, Report]:
    """Read every kernel of a compiled program, by its name.

    Args:
        path: the program.
        shared: bytes of dynamic shared memory of a block.
        warps: of a block.
        capability: CUDA capability it was compiled for.
        with_mix: also count machine instructions, which takes longer.
    """
    usage = _run("cuobjdump", "-res-usage", path)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump did not say what the kernels use: {usage!r}")
    text = _run("cuobjdump", "-sass", path) if with_mix else ""
    sections = re.split(r"^\s*Function : (\S+)$", text, flags=re.M)[1:]
    mixes = dict(zip(sections[::2], map(_mix, sections[1::2]), strict=True))
    reports = {}
    for name, *numbers in found:
        registers, stack, static_shared, local = map(int, numbers)
        all_shared = shared + static_shared
        programs = occupancy(registers, all_shared, warps, capability)
        mix = mixes.get(name, Counter())
        reports[name] = Report(registers, stack + local, all_shared, warps, programs, mix)
    return reports


def _mix(text: str) -> Counter[str]:
    opcode = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)"
    return Counter(re.findall(opcode, text, re.M))


def occupancy(registers: int, shared: int, warps: int, capability: int) -> int:
    """Programs that a processor holds at a time."""
    memory, most_warps = _PROCESSORS[capability]
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = _REGISTERS // per_warp // warps
    by_shared = memory // (shared + _RESERVED_SHARED)
    return min(by_registers, by_shared, most_warps // warps, _MAX_PROGRAMS)


def _run(tool: str, *arguments: Any) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
