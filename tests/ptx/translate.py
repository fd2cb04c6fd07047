"""Translates an entry into Python source: one function per basic block, one line per instruction.

`Program.source` is meant to be read when a kernel misbehaves: every line ends with the instruction
it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import CodeType

import numpy as np

from tests.ptx import instructions as _whitelist  # noqa: F401 - fills the table of forms
from tests.ptx.convergence import convergence_order
from tests.ptx.dtypes import PtxType, parse_immediate
from tests.ptx.findings import PtxError
from tests.ptx.forms import CONTROL, Form, Operand, form_of
from tests.ptx.parser import Entry, Instruction, Variable

SPECIAL_REGISTERS = frozenset(
    [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    + ["%laneid", "%warpid", "%nwarpid", "%cluster_ctarank", "%cluster_nctarank"]
    + [
        f"%{name}.{axis}"
        for name in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid")
        for axis in "xyz"
    ]
    + [f"%lanemask_{relation}" for relation in ("eq", "lt", "le", "gt", "ge")]
)


@dataclass(frozen=True)
class Terminator:
    """How a block ends.

    Attributes:
        kind: "fall", "branch", "exit", "cluster arrive", "cluster relaxed arrive", "cluster wait",
            "sync", "arrive" or "reduce": a sync that also gives
            its threads the ``reduction`` ("popc", "and", "or") of ``predicate`` in ``result``.
        guard: Variable of the predicate that lets a lane take it, or "".
        negated: Whether the predicate must be false.
        target: Block that a branch goes to.
        barrier, count: Expressions of a barrier's operands; "" for a count that is not given.
    """

    kind: str = "fall"
    guard: str = ""
    negated: bool = False
    target: int = -1
    barrier: str = ""
    count: str = ""
    reduction: str = ""
    predicate: str = ""
    result: str = ""
    instruction: Instruction | None = None


@dataclass
class Block:
    """A basic block: its instructions and its end."""

    instructions: list[Instruction]
    terminator: Terminator = Terminator()


@dataclass
class Program:
    """A translated entry.

    Attributes:
        constants: Arrays to be made before a run: variable, NumPy type and value.
        symbols: Variables that stand for the address of a symbol: variable, name and type.
        registers: Variables of the registers, with their types.
        order: The blocks in the order in which lanes that have parted run.
    """

    entry: Entry
    blocks: list[Block]
    order: list[int] = field(default_factory=list)
    source: str = ""
    code: CodeType | None = None
    constants: dict[str, np.generic] = field(default_factory=dict)
    symbols: dict[str, tuple[str, type[np.generic]]] = field(default_factory=dict)
    registers: dict[str, PtxType] = field(default_factory=dict)


def translate(entry: Entry, variables: Iterable[Variable] = ()) -> Program:
    """Translate ``entry``, which may name the module's ``variables``.

    Raises:
        PtxError: For an instruction that the whitelist does not have.
    """
    translator = _Translator(entry, variables)
    program = translator.program
    lines = []
    for number, block in enumerate(program.blocks):
        lines.append(f"def block_{number}(m):")
        body = [
            line for instruction in block.instructions for line in translator.lines(instruction)
        ]
        lines += [f"    {line}" for line in body] or ["    pass"]
        lines.append("")
    program.order = convergence_order(_successors(program.blocks))
    program.source = "\n".join(lines)
    program.code = compile(program.source, f"<{entry.name}>", "exec")
    return program


def _successors(blocks: list[Block]) -> list[list[int]]:
    """The blocks that may follow each block."""
    following = []
    for number, block in enumerate(blocks):
        end = block.terminator
        reached = [end.target] if end.kind == "branch" else []
        if end.guard or end.kind not in ("branch", "exit"):
            reached.append(number + 1)
        following.append([x for x in reached if x < len(blocks)])
    return following


def variable(register: str) -> str:
    """The Python name of a register, special register or symbol."""
    return (
        re.sub(r"\W", "_", register.lstrip("%"))
        if register.startswith("%")
        else ("x_" + re.sub(r"\W", "_", register))
    )


class _Translator:
    def __init__(self, entry: Entry, variables: Iterable[Variable]) -> None:
        self.entry = entry
        named = (*entry.variables, *variables, *entry.parameters)
        self.symbol_names = {symbol.name for symbol in named}
        self.asynchronous = _asynchronous_registers(entry)
        self.program = Program(entry, [])
        self._split()

    def _split(self) -> None:
        instructions, labels = self.entry.instructions, self.entry.labels
        leaders = {0, *labels.values()}
        for instruction in instructions:
            if instruction.opcode in CONTROL:
                leaders.add(instruction.index + 1)
        starts = sorted(index for index in leaders if index < len(instructions))
        block_at = {start: number for number, start in enumerate(starts)}
        block_at[len(instructions)] = len(starts)
        for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
            block = Block(instructions[start:end])
            last = block.instructions[-1]
            if last.opcode in CONTROL:
                block.instructions.pop()
                block.terminator = self._terminator(last, block_at)
            self.program.blocks.append(block)

    def _terminator(self, instruction: Instruction, block_at: dict[int, int]) -> Terminator:
        operands = list(instruction.operands)
        if len(operands) not in CONTROL[instruction.opcode]:
            raise PtxError(f"line {instruction.line}: wrong operands: {instruction.text}")
        end = Terminator(
            guard=self._predicate(instruction.guard) if instruction.guard else "",
            negated=instruction.negated,
            instruction=instruction,
        )
        name = instruction.opcode.split(".")[0]
        if name == "bra":
            if operands[0] not in self.entry.labels:
                raise PtxError(f"line {instruction.line}: no such label: {instruction.text}")
            return replace(end, kind="branch", target=block_at[self.entry.labels[operands[0]]])
        if name in ("ret", "exit"):
            return replace(end, kind="exit")
        if name == "barrier" and instruction.opcode.split(".")[1] == "cluster":
            action = "wait" if ".wait" in instruction.opcode else "arrive"
            relaxed = "relaxed " if ".relaxed" in instruction.opcode else ""
            return replace(end, kind=f"cluster {relaxed}{action}")
        if ".red." in instruction.opcode:
            type_ = _PRED if instruction.opcode.endswith("pred") else _U32
            target = self._put(operands.pop(0), Operand("scalar", type_), "", "")[0]
            end = replace(
                end,
                reduction=instruction.opcode.split(".red.")[1].split(".")[0],
                predicate=self._predicate(operands.pop()),
                result=target.removeprefix("put(").split(",")[0],
            )
        kind = "arrive" if ".arrive" in instruction.opcode else "sync"
        integer = Operand("scalar", _U32)
        return replace(
            end,
            kind="reduce" if end.reduction else kind,
            barrier=self._scalar(operands[0], integer),
            count=self._scalar(operands[1], integer) if len(operands) > 1 else "",
        )

    def lines(self, instruction: Instruction) -> list[str]:
        """The Python lines of one instruction that is not control flow."""
        try:
            return self._lines(instruction, form_of(instruction))
        except PtxError as error:
            if str(error).startswith("line "):
                raise
            raise PtxError(f"line {instruction.line}: {instruction.text!r}: {error}") from None

    def _lines(self, instruction: Instruction, form: Form) -> list[str]:
        count = len(form.destinations)
        targets = instruction.operands[:count]
        sources = {
            letter: self._source(text, operand, form.flushes)
            for letter, text, operand in zip(
                "abcdefgh", instruction.operands[count:], form.sources, strict=False
            )
        }
        here = f"I[{instruction.index}]"
        names = {**sources, "here": here, "m": "m"}
        lines = []
        if instruction.guard:
            guard = self._predicate(instruction.guard)
            lines.append(f"g = both(m, {'~' if instruction.negated else ''}{guard})")
            names["m"] = "g"
        if form.destinations and "old" in form.expression:
            names["old"] = self._source(targets[0], form.destinations[0], False)
        lines += self._asynchronous_checks(instruction, form, names["m"], here)

        def fill(expression: str) -> str:
            filled = re.sub(r"\b(here|old|[a-hm])\b(?!['(])", lambda x: names[x[0]], expression)
            return f"flush({filled})" if form.flushes and _floats(form.destinations) else filled

        if not form.destinations:
            lines.append(fill(form.expression))
        else:
            lines += self._assignments(targets[0], form.destinations[0], form, fill, names["m"])
        lines[-1] += f"  # {instruction.line}: {instruction.text[:90]}"
        return lines

    def _assignments(
        self, text: str, operand: Operand, form: Form, fill: object, mask: str
    ) -> list[str]:
        assert callable(fill)
        if operand.kind == "pair":
            first, _, other = text.partition("|")
            lines = [f"t = {fill(form.expression)}"]
            if other:
                lines.append(f"t2 = {fill(form.second)}")
                lines += self._put(other.strip(), Operand("scalar", _PRED), "t2", mask)
            assert operand.type is not None
            return lines + self._put(first.strip(), Operand("scalar", operand.type), "t", mask)
        if operand.kind == "vector":
            lines = [f"t = {fill(form.expression)}"]
            for place, element in enumerate(_elements(text)):
                lines += self._put(element, operand, f"t[{place}]", mask)
            return lines
        return self._put(text, operand, fill(form.expression), mask) or [fill(form.expression)]

    def _put(self, text: str, operand: Operand, value: str, mask: str) -> list[str]:
        """Assign to a register; memory and conversions fill a wider one by its sign or by zeros."""
        if text == "_":
            return []
        assert operand.type is not None
        if not text.startswith("%") and text not in self.entry.registers:
            raise PtxError(f"{text} is not a register")
        register = self.entry.register_type(text)
        if not operand.type.accepts(register, operand.wider):
            raise PtxError(f".{operand.type.name} does not go into {text} of .{register.name}")
        name = self._register(text, register)
        view = operand.type.view
        if operand.wider and view in "usf":
            # What a load brings are plain bits; signed ones keep their sign in a wider register.
            dtype = f"{'int' if view == 's' else 'uint'}{operand.type.bits}"
            view = "s" if view == "s" else "u"
            value = f"bits({value}, {dtype})"
        target = name if view == "p" else f"{name}_{view}"
        return [f"put({target}, {value}, {mask})"]

    def _source(self, text: str, operand: Operand, flushes: bool) -> str:
        if operand.kind == "int":
            return str(int(text, 0))
        if operand.kind == "address":
            return self._address(text, operand.space)
        if operand.kind == "vector":
            elements = [self._scalar(element, operand) for element in _elements(text)]
            return f"[{', '.join(elements)}]"
        value = self._scalar(text, operand)
        floats = operand.type is not None and operand.type.name == "f32"
        return f"flush({value})" if flushes and floats else value

    def _scalar(self, text: str, operand: Operand) -> str:
        wanted = operand.type
        assert wanted is not None
        if wanted.view == "p":
            return self._predicate(text)
        if text in SPECIAL_REGISTERS:
            if wanted.bits != 32:
                raise PtxError(f"{text} has 32 bits")
            return variable(text)
        if text.startswith("%") or text in self.entry.registers:
            register = self.entry.register_type(text)
            if not wanted.accepts(register, operand.wider):
                raise PtxError(f".{wanted.name} is not what {text} of .{register.name} holds")
            name = self._register(text, register)
            if register.bits > wanted.bits:
                narrow = f"{name}_u.astype(uint{wanted.bits})"
                return f"{narrow}.view(int{wanted.bits})" if wanted.view == "s" else narrow
            return f"{name}_{wanted.view}"
        if re.match(r"[A-Za-z_$]", text):
            return self._symbol(text, wanted)
        return self._immediate(text, wanted)

    def _predicate(self, text: str) -> str:
        negated = text.startswith("!")
        text = text.lstrip("!").strip()
        if re.match(r"-?\d", text):
            return self._immediate(text, _PRED)
        register = self.entry.register_type(text)
        if register.view != "p":
            raise PtxError(f"{text} is not a predicate")
        name = self._register(text, register)
        return f"~{name}" if negated else name

    def _address(self, text: str, space: str) -> str:
        match = re.match(r"\[\s*([%\w$@]+)\s*(?:\+\s*(-?\w+)\s*)?\]$", text)
        if match is None:
            raise PtxError(f"cannot read address {text}")
        base, offset = match[1], int(match[2] or "0", 0)
        if base in self.entry.registers or base.startswith("%"):
            register = self.entry.register_type(base)
            wide = register.bits == 64
            if register.family == "float" or not (wide or space in ("shared", "cluster", "local")):
                raise PtxError(f"{base} of .{register.name} is no address of {space} memory")
            value = f"{self._register(base, register)}_u"
        else:
            wide = True
            value = self._symbol(base, _U64)
        if offset == 0:
            return value
        return f"{value} + {self._immediate(str(offset), _U64 if wide else _U32)}"

    def _register(self, text: str, type_: PtxType) -> str:
        name = variable(text)
        self.program.registers[name] = type_
        return name

    def _symbol(self, name: str, wanted: PtxType) -> str:
        if name not in self.symbol_names:
            raise PtxError(f"{name} is not declared")
        if wanted.view == "f" or wanted.bits < 32:
            raise PtxError(f"{name} is an address")
        key = f"{variable(name)}_{wanted.bits}"
        self.program.symbols[key] = (name, wanted.dtype)
        return key

    def _immediate(self, text: str, wanted: PtxType) -> str:
        value = parse_immediate(text, wanted)
        bits = value.tobytes()[::-1].hex()
        name = f"k_{value.dtype.name}_{bits}"
        self.program.constants[name] = value
        return name

    def _asynchronous_checks(
        self, instruction: Instruction, form: Form, mask: str, here: str
    ) -> list[str]:
        """Calls that watch the registers of unfinished wgmma instructions."""
        if not self.asynchronous or instruction.opcode.startswith("wgmma"):
            return self._wgmma_operands(instruction, form, mask, here)
        count = len(form.destinations)
        written = _registers_of(instruction.operands[:count]) & self.asynchronous
        read = _registers_of(instruction.operands[count:]) & self.asynchronous
        lines = []
        if read | written:
            touched = ", ".join(repr(name) for name in sorted(read | written))
            lines.append(f"wgmma.touch(({touched},), {mask}, {here})")
        if written:
            names = ", ".join(repr(name) for name in sorted(written))
            lines.append(f"wgmma.mark_written(({names},), {mask})")
        return lines

    def _wgmma_operands(
        self, instruction: Instruction, form: Form, mask: str, here: str
    ) -> list[str]:
        if not instruction.opcode.startswith("wgmma.mma_async"):
            return []
        accumulators = tuple(_elements(instruction.operands[0]))
        fragments = tuple(sorted(_registers_of(instruction.operands[1:2]) & self.asynchronous))
        return [f"wgmma.use_registers({accumulators!r}, {fragments!r}, {mask}, {here})"]


def _asynchronous_registers(entry: Entry) -> set[str]:
    """Registers that some wgmma reads as A or accumulates into."""
    found: set[str] = set()
    for instruction in entry.instructions:
        if instruction.opcode.startswith("wgmma.mma_async"):
            vectors = [text for text in instruction.operands[:2] if text.startswith("{")]
            found |= _registers_of(tuple(vectors))
    return found


def _registers_of(operands: tuple[str, ...]) -> set[str]:
    return {name for text in operands for name in re.findall(r"%[\w$@]+", text)}


def _elements(text: str) -> list[str]:
    return [element.strip() for element in text.strip("{} ").split(",")]


def _floats(operands: tuple[Operand, ...]) -> bool:
    return all(operand.type is not None and operand.type.name == "f32" for operand in operands)


_PRED = PtxType("pred", 1, "p", "pred")
_U32 = PtxType("u32", 32, "u", "integer")
_U64 = PtxType("u64", 64, "u", "integer")
