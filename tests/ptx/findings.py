"""What a launch found wrong, and the errors that end one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# Every check by its name; tests compare with these.
CHECKS = {
    "race": "two threads touch the same shared bytes, one writes, and nothing orders them",
    "global race": "two threads touch the same global bytes, one writes, and nothing orders them",
    "uninitialised shared": "shared memory is read before anything was written there",
    "uninitialised global": "an output or scratch argument is read before it was written",
    "out of bounds shared": "an access leaves the CTA's shared memory",
    "out of bounds global": "an access leaves the arguments (or falls between their rows)",
    "out of bounds local": "an access leaves the thread's local memory",
    "misaligned": "an address is not a multiple of the access's size",
    "copy in flight": "shared bytes are touched while a cp.async to them is not awaited",
    "copy never awaited": "a thread ends with a cp.async it never waited for",
    "barrier": "a barrier's count is wrong, or some of its threads never arrive",
    "early exit": "a CTA ends while others of its cluster may still use its shared memory",
    "divergent warp": "a warp-wide instruction runs with some of the warp's lanes absent",
    "absent lane": "a mask names a lane that does not take part",
    "conflicting store": "lanes of one instruction store different values to one address",
    "write to input": "an argument that is read-only is written",
    "unwritten output": "an element of an output was never written",
    "wgmma fence": "registers of a wgmma were written since the last wgmma.fence",
    "wgmma in flight": "registers or shared operands of an unfinished wgmma are touched",
    "wgmma descriptor": "a wgmma descriptor is not one value over the warpgroup, or is malformed",
    "proxy fence": "the async proxy reads shared bytes written without a fence.proxy.async",
}


class PtxError(ValueError):
    """PTX that this emulator does not know, or a launch that does not fit its kernel."""


@dataclass(frozen=True)
class Finding:
    """One violated rule: the check, the instruction, and the first thread that broke it."""

    check: str
    instruction: str
    line: int
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}\n    line {self.line}: {self.instruction}"


class KernelFault(AssertionError):
    """A launch broke a rule of the machine; ``findings`` lists all that it broke."""

    def __init__(self, kernel: str, findings: list[Finding]) -> None:
        self.findings = findings
        shown = "\n".join(str(finding) for finding in findings[:8])
        more = f"\n... and {len(findings) - 8} more" if len(findings) > 8 else ""
        super().__init__(f"{kernel}:\n{shown}{more}")


@dataclass
class Findings:
    """Collects findings, one for each check and instruction."""

    entries: dict[tuple[str, int], Finding] = field(default_factory=dict)

    def report(self, check: str, instruction: object, detail: str) -> None:
        """Enter a finding; only the first of an instruction and a check is kept.

        Args:
            check: A key of `CHECKS`.
            instruction: Anything with ``text``, ``line`` and ``index``.
            detail: Which thread, which address, what was expected.
        """
        if check not in CHECKS:
            raise KeyError(check)
        key = (check, instruction.index)  # type: ignore[attr-defined]
        if key not in self.entries:
            self.entries[key] = Finding(check, instruction.text, instruction.line, detail)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)
