"""Small PTX kernels for tests, written as their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.ptx import Counters, Finding, Kernel, load

HEADER = ".version 8.8\n.target {target}\n.address_size 64\n"
REGISTERS = """
.reg .pred %p<32>; .reg .b16 %h<64>; .reg .b32 %r<256>; .reg .f32 %f<256>; .reg .b64 %d<64>;
"""


SEEDS = (None, 0, 1, 2)


@dataclass(frozen=True)
class Bug:
    """Replace ``old`` by ``new``: ``check`` must find it, ``also`` may follow from it."""

    name: str
    old: str
    new: str
    check: str
    also: frozenset[str] = frozenset()

    def apply(self, text: str) -> str:
        assert self.old in text, self.name
        return text.replace(self.old, self.new)


def bugs(*entries: Bug) -> Any:
    """Parametrise over bugs."""
    return pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.name) for bug in entries])


def kernel(
    body: str, parameters: Sequence[str] = ("u64",), *, shared: int = 0, target: str = "sm_90a"
) -> Kernel:
    """A kernel with parameters ``p0``, ``p1`` ... and some registers of each kind.

    %r0 holds the thread, %r1 the CTA; pointers are already loaded into %d0, %d1 ...; ``smem`` is
    static shared memory of ``shared`` bytes.
    """
    listed = ", ".join(f".param .{kind} p{i}" for i, kind in enumerate(parameters))
    lines = [HEADER.format(target=target), f".visible .entry test({listed}) {{", REGISTERS]
    if shared:
        lines.append(f".shared .align 128 .b8 smem[{shared}];")
    lines.append("mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;")
    for number, kind in enumerate(parameters):
        register = {"u64": "%d", "u32": "%r2", "f32": "%f"}[kind]
        lines.append(f"ld.param.{kind} {register}{number}, [p{number}];")
    return load("\n".join([*lines, body, "ret; }"]))["test"]


def launch(
    body: str,
    arguments: Sequence[Any],
    *,
    threads: int = 32,
    ctas: int = 1,
    shared: int = 0,
    **options: Any,
) -> Counters:
    """Run a body over ``ctas`` x ``threads``; all arguments are pointers."""
    made = kernel(body, ["u64"] * len(arguments), shared=shared)
    return made.launch((ctas,), (threads,), arguments, **options)


def findings_of(body: str, arguments: Sequence[Any], **options: Any) -> list[Finding]:
    """What a body does wrong."""
    found: list[Finding] = []
    launch(body, arguments, findings=found, check=False, **options)
    return found


def checks_of(body: str, arguments: Sequence[Any], **options: Any) -> set[str]:
    """The names of the checks that a body fails."""
    return {finding.check for finding in findings_of(body, arguments, **options)}
