"""The whitelist: every instruction that the emulator knows, as opcode with all modifiers and types.

A *form* is one opcode, spelled in full, with a signature and a NumPy expression. The tables of
`instructions` write many forms as one row: braces list alternatives, ``$1`` is what the first brace
chose. ``a``, ``b``, ``c``, ... in an expression are the sources in order, ``old`` the values of the
destinations before the instruction, ``m`` the active lanes and ``here`` the instruction.

    define("add{.ftz,}.f32", "f32 = f32, f32", "a + b")

Signature: destinations, ``=``, sources. An operand is one of

    f32         a register or an immediate of this type
    ~u8         the same; the register may be wider (ld, st, cvt)
    4*b32       a vector in braces
    b32|pred    a destination with an optional second, predicate destination
    [shared]    an address
    int         an integer that is part of the instruction
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from tests.ptx.dtypes import PtxType, type_named
from tests.ptx.findings import PtxError
from tests.ptx.parser import Instruction


@dataclass(frozen=True)
class Operand:
    """What a form wants at one place.

    Attributes:
        kind: "scalar", "vector", "pair", "address" or "int".
        type: Of each element; None for addresses and integers.
        count: Elements of a vector.
        wider: Whether registers may be wider than the type.
        space: State space of an address.
    """

    kind: str
    type: PtxType | None = None
    count: int = 1
    wider: bool = False
    space: str = ""

    def fits(self, text: str) -> bool:
        """Whether ``text`` has the outer shape of this operand."""
        if self.kind == "address":
            return text.startswith("[")
        if self.kind == "vector" and (self.count > 1 or text.startswith("{")):
            return text.startswith("{") and text.count(",") == self.count - 1
        if self.kind == "int":
            return re.match(r"-?\w+$", text) is not None
        return not text.startswith(("{", "[")) and ("|" not in text or self.kind == "pair")


@dataclass(frozen=True)
class Form:
    """One known instruction."""

    opcode: str
    row: str
    destinations: tuple[Operand, ...]
    sources: tuple[Operand, ...]
    expression: str
    second: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Destinations and sources, in the order of the text."""
        return self.destinations + self.sources

    @property
    def flushes(self) -> bool:
        """Whether subnormal inputs and results become zero."""
        return ".ftz" in self.opcode


# What ends a basic block is executed by the scheduler, not by an expression: opcode, and how many
# operands it may have. The reductions have a destination first and a predicate last.
CONTROL: dict[str, tuple[int, ...]] = {"bra": (1,), "bra.uni": (1,), "ret": (0,), "exit": (0,)}
for _barrier in ("bar", "barrier", "barrier.cta", "bar.cta"):
    for _aligned in ("", ".aligned") if _barrier.startswith("barrier") else ("",):
        CONTROL[f"{_barrier}.sync{_aligned}"] = (1, 2)
        CONTROL[f"{_barrier}.arrive{_aligned}"] = (2,)
        for _reduction in ("popc", "and", "or"):
            _kind = "u32" if _reduction == "popc" else "pred"
            CONTROL[f"{_barrier}.red.{_reduction}{_aligned}.{_kind}"] = (3, 4)

for _aligned in ("", ".aligned"):
    for _order in ("", ".release", ".relaxed"):
        CONTROL[f"barrier.cluster.arrive{_order}{_aligned}"] = (0,)
    for _order in ("", ".acquire"):
        CONTROL[f"barrier.cluster.wait{_order}{_aligned}"] = (0,)

_FORMS: dict[tuple[str, int], list[Form]] = {}


def define(pattern: str, signature: str, expression: str, second: str = "") -> None:
    """Enter a row of the whitelist; the module docstring gives the language of its arguments.

    Args:
        pattern: The opcode, with alternatives in braces.
        signature: Destinations and sources.
        expression: The value of the destination, or a list of values for a vector.
        second: The value of the second destination, where the signature has an optional one.
    """
    for opcode, choices in _alternatives(pattern):
        texts = []
        for text in (signature, expression, second):
            for number, choice in enumerate(choices, start=1):
                text = text.replace(f"${number}", choice.lstrip("."))
            texts.append(text)
        left, right = texts[0].split("=")
        form = Form(opcode, pattern, _operands(left), _operands(right), *texts[1:])
        known = _FORMS.setdefault((opcode, len(form.operands)), [])
        if any(other.operands == form.operands for other in known):
            raise PtxError(f"{opcode} {signature} is defined twice")
        known.append(form)


def all_forms() -> list[Form]:
    """Every form of the whitelist."""
    return [form for forms in _FORMS.values() for form in forms]


def form_of(instruction: Instruction) -> Form:
    """The form that ``instruction`` is of.

    Raises:
        PtxError: When it is of none: the opcode with these modifiers and operands is not known.
    """
    opcode, operands = instruction.opcode, instruction.operands
    for form in _FORMS.get((opcode, len(operands)), []):
        if all(wanted.fits(text) for wanted, text in zip(form.operands, operands, strict=True)):
            return form
    known = sorted({count for name, count in _FORMS if name == opcode})
    reason = f"known with {known} operands" if known else "the opcode is not in the whitelist"
    if opcode.startswith("tcgen05"):
        reason = "tensor memory (sm_100) is not emulated"
    raise PtxError(
        f"line {instruction.line}: {instruction.text!r} is not known to the emulator: {reason}"
    )


def _alternatives(pattern: str) -> list[tuple[str, tuple[str, ...]]]:
    pieces = re.split(r"\{([^}]*)\}", pattern)
    braces = [piece.split(",") for piece in pieces[1::2]]
    expanded = []
    for choices in itertools.product(*braces):
        text = "".join(itertools.chain(*itertools.zip_longest(pieces[::2], choices, fillvalue="")))
        expanded.append((text, choices))
    return expanded


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(_operand(part.strip()) for part in text.split(",") if part.strip())


def _operand(text: str) -> Operand:
    if text == "int":
        return Operand("int")
    if text.startswith("["):
        return Operand("address", space=text.strip("[]"))
    count, star, name = text.rpartition("*")
    wider = name.startswith("~")
    name = name.removeprefix("~")
    if name.endswith("|pred"):
        return Operand("pair", type_named(name.removesuffix("|pred")))
    if star:
        return Operand("vector", type_named(name), int(count), wider)
    return Operand("scalar", type_named(name), 1, wider)
