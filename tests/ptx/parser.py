"""Reads PTX text: entries with their parameters, registers, symbols, labels and instructions.

Nothing is interpreted here: what an instruction means, and whether it is known at all, is for
`forms` to say.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from tests.ptx.dtypes import PtxType, type_named
from tests.ptx.findings import PtxError

_LINE_DIRECTIVES = re.compile(r"^[ \t]*\.(loc|file|version|target|address_size)\b[^\n]*", re.M)
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_SECTION = re.compile(r"\.section[^{]*\{[^}]*\}", re.S)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_FUNCTION = re.compile(r"\.func\b")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)(?:\s+\.(?:ptr|const|global|shared|align\s+\d+))*"
    r"\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?\s*$"
)
_VARIABLE = re.compile(
    r"\.(?P<space>shared|local|global|const)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?P<name>[\w$%.]+)(?:\[(?P<count>\d*)\])?(?:\s*=\s*(?P<values>.*))?$",
    re.S,
)
_LABEL = re.compile(r"([\w$]+):(?!:)\s*")
_INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)(?P<guard>%?[\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)(?P<rest>.*)", re.S
)
_NAME = re.compile(r"[%\w$][\w$]*(?:\.[xyz]\b)?")


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@guard opcode operands;``."""

    index: int
    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    text: str
    line: int


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: ``size`` bytes at ``offset`` of the parameter space."""

    name: str
    type: PtxType
    offset: int
    size: int
    is_array: bool


@dataclass(frozen=True)
class Variable:
    """A variable outside registers: its space, alignment, and its bytes or only their number."""

    name: str
    space: str
    align: int
    size: int
    initial: bytes | None = None
    is_extern: bool = False


@dataclass
class Entry:
    """A kernel as written, for blocks of ``required_threads`` (0: any) up to ``most_threads``."""

    name: str
    parameters: list[Parameter]
    required_threads: int = 0
    most_threads: int = 1024
    cluster: tuple[int, int, int] = (1, 1, 1)
    variables: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, PtxType] = field(default_factory=dict)
    register_banks: dict[str, PtxType] = field(default_factory=dict)

    def register_type(self, name: str) -> PtxType:
        """The declared type of register ``name``."""
        if name in self.registers:
            return self.registers[name]
        bank = self.register_banks.get(re.sub(r"\d+$", "", name))
        if bank is None:
            raise PtxError(f"register {name} is not declared")
        return bank


@dataclass
class Module:
    """A PTX file: its target, its module-wide variables, and its entries, parsed when asked for."""

    target: str
    variables: list[Variable]
    _sources: dict[str, tuple[str, str, int]]

    @property
    def names(self) -> list[str]:
        """The names of the entries."""
        return list(self._sources)

    def entry(self, name: str) -> Entry:
        """Parse the entry called ``name``."""
        header, body, line = self._sources[name]
        bounds = {"reqntid": 0, "maxntid": 1024}
        for match in re.finditer(r"\.(reqntid|maxntid)\s+([\d, ]+)", header):
            bounds[match[1]] = math.prod(int(size) for size in match[2].split(","))
        entry = Entry(name, _parse_parameters(header), bounds["reqntid"], bounds["maxntid"])
        cluster = re.search(r"\.reqnctapercluster\s+([\d, ]+)", header)
        if cluster is not None:
            x, y, z = [*(int(size) for size in cluster[1].split(",")), 1, 1][:3]
            entry.cluster = (x, y, z)
        _BodyParser(entry, line).parse(body)
        return entry


def parse_module(text: str) -> Module:
    """Split PTX text into its entries.

    Raises:
        PtxError: For device functions (``.func``) and whatever stands outside entries that is not a
            variable.
    """
    target = re.search(r"^\s*\.target\s+([\w.]+)", text, re.M)
    if target is None:
        raise PtxError("no .target: this is not PTX")

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    for pattern in (_COMMENTS, _LINE_DIRECTIVES, _SECTION):
        text = pattern.sub(blank, text)
    if _FUNCTION.search(text):
        raise PtxError(
            "device functions (.func and call) are not known to the emulator: inline them"
        )
    sources: dict[str, tuple[str, str, int]] = {}
    outside, position = "", 0
    for match in _ENTRY.finditer(text):
        opening = text.index("{", match.end())
        closing = _closing_brace(text, opening)
        outside += text[position : match.start()]
        position = closing + 1
        line = text.count("\n", 0, opening) + 1
        sources[match[1]] = (text[match.end() : opening], text[opening + 1 : closing], line)
    outside += text[position:]
    variables = []
    for statement in outside.replace(".visible", " ").replace(".weak", " ").split(";"):
        statement = statement.strip()
        if statement:
            variables.append(_parse_variable(statement))
    return Module(target[1], variables, sources)


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    for match in re.finditer(r"[{}]", text[opening:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return opening + match.start()
    raise PtxError("unbalanced braces")


def _parse_parameters(header: str) -> list[Parameter]:
    inside = re.search(r"\((.*?)\)", header, re.S)
    parameters: list[Parameter] = []
    offset = 0
    for text in inside[1].split(",") if inside else []:
        if not text.strip():
            continue
        match = _PARAMETER.match(text.strip())
        if match is None:
            raise PtxError(f"cannot read parameter: {text.strip()}")
        type_ = type_named(match["type"])
        size = type_.bits // 8 * int(match["count"] or 1)
        align = int(match["align"] or type_.bits // 8)
        offset = -(-offset // align) * align
        parameters.append(Parameter(match["name"], type_, offset, size, match["count"] is not None))
        offset += size
    return parameters


def _parse_variable(statement: str) -> Variable:
    is_extern = statement.startswith(".extern")
    match = _VARIABLE.match(statement.removeprefix(".extern").strip())
    if match is None:
        raise PtxError(f"cannot read declaration: {statement}")
    type_ = type_named(match["type"])
    item = type_.bits // 8
    initial = None
    if match["values"]:
        values = [int(value, 0) for value in match["values"].strip("{} \n").split(",")]
        mask = (1 << type_.bits) - 1
        initial = b"".join((value & mask).to_bytes(item, "little") for value in values)
    size = item * int(match["count"] or 1) if match["count"] != "" else 0
    if initial is not None:
        initial = initial.ljust(size, b"\0")
    elif match["space"] in ("global", "const") and not is_extern:
        initial = bytes(size)
    align = int(match["align"] or item)
    return Variable(match["name"], match["space"], align, size, initial, is_extern)


class _BodyParser:
    """Walks a body by statements; nested scopes get register and label names of their own."""

    def __init__(self, entry: Entry, line: int) -> None:
        self.entry = entry
        self.line = line
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0

    def parse(self, body: str) -> None:
        """Enter all of ``body`` into the entry."""
        self._declare_labels(body)
        start = 0
        for match in re.finditer(r"[;{}]", body):
            if match.start() < start:
                continue
            pending = body[start : match.start()]
            rest = self._take_labels(pending)
            line = self.line + body.count("\n", 0, start + len(pending) - len(pending.lstrip()))
            if match[0] == ";":
                self._statement(rest, line)
            elif rest:
                # A brace inside a statement encloses a vector of operands.
                end = body.index(";", match.start())
                line = self.line + body.count("\n", 0, start + len(pending) - len(rest.lstrip()))
                self._statement(self._take_labels(body[start:end], again=True), line)
                start = end + 1
                continue
            elif match[0] == "{":
                self.opened += 1
                self.scopes.append({})
                self._declare_labels(body[match.end() : _closing_brace(body, match.start())])
            else:
                self.scopes.pop()
            start = match.end()

    def _declare_labels(self, text: str) -> None:
        # Labels may be used before they stand, so a scope knows its own from the start.
        outer = re.sub(r"\{[^{}]*\}", "", text) if self.opened else ""
        for match in re.finditer(r"^\s*([\w$]+):(?!:)", outer, re.M):
            self.scopes[-1][match[1]] = f"{match[1]}@{self.opened}"

    def _resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def _take_labels(self, text: str, again: bool = False) -> str:
        text = text.strip()
        while match := _LABEL.match(text):
            if not again:
                self.entry.labels[self._resolve(match[1])] = len(self.entry.instructions)
            text = text[match.end() :]
        return text.strip()

    def _statement(self, text: str, line: int) -> None:
        if not text:
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".shared", ".local", ".global", ".const")):
            self.entry.variables.append(_parse_variable(text))
        elif text.startswith(".pragma"):
            pass
        elif text.startswith("."):
            raise PtxError(f"line {line}: directive is not known: {text}")
        else:
            self._instruction(text, line)

    def _registers(self, text: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if match is None:
            raise PtxError(f"cannot read declaration: {text}")
        type_ = type_named(match[1])
        for name in match[2].split(","):
            name = name.strip()
            bank = re.match(r"(%?[\w$]+)<\d+>$", name)
            if bank is not None:
                self.entry.register_banks[bank[1]] = type_
            elif len(self.scopes) > 1:
                unique = f"{name}@{self.opened}"
                self.scopes[-1][name] = unique
                self.entry.registers[unique] = type_
            else:
                self.entry.registers[name] = type_

    def _instruction(self, text: str, line: int) -> None:
        match = _INSTRUCTION.match(text)
        if match is None:
            raise PtxError(f"line {line}: cannot read: {text}")
        rest = match["rest"].strip()
        if len(self.scopes) > 1:
            rest = _NAME.sub(lambda name: self._resolve(name[0]), rest)
        guard = match["guard"] and self._resolve(match["guard"])
        self.entry.instructions.append(
            Instruction(
                index=len(self.entry.instructions),
                opcode=match["opcode"],
                operands=tuple(split_operands(rest)),
                guard=guard,
                negated=match["negated"] == "!",
                text=" ".join(text.split()),
                line=line,
            )
        )


def split_operands(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and braces."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return parts
