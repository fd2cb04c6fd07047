"""Every arithmetic instruction of the whitelist against exact Python numbers."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.ptx import Scratch, load
from tests.ptx.dtypes import TYPES
from tests.ptx.forms import Form, Operand, all_forms
from tests.ptx.scalar_oracle import (
    APPROXIMATE,
    COMBINATIONS,
    compare,
    decode,
    encode,
    expected,
    round_float,
)

LANES = 32
HEADER = ".version 8.8\n.target sm_90a\n.address_size 64\n"
_NOT_ARITHMETIC = {
    "ld", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "mma", "wgmma", "movmatrix", "shfl",
    "vote", "match", "redux", "activemask", "bar", "elect", "fence", "membar", "mapa", "getctarank",
}  # fmt: skip
_EDGES = {
    "f16": [0, 0x8000, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E00, 0x0001, 0x7BFF, 0x3555],
    "bf16": [0, 0x8000, 0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0x4049, 0x7F7F, 0x3EAB],
    "f32": [0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001,
            0x807FFFFF, 0x7F7FFFFF, 0x40490FDB, 0x4F000000, 0xCF000001, 0x3F000000, 0x3FC00000],
    "f64": [0, 1 << 63, 0x3FF << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x400921FB54442D18],
}  # fmt: skip


def is_covered(form: Form) -> bool:
    """Whether the tests of this file execute ``form``."""
    return form.opcode.split(".")[0] not in _NOT_ARITHMETIC


FORMS: dict[str, list[Form]] = defaultdict(list)
for _form in all_forms():
    if is_covered(_form):
        FORMS[_form.opcode.split(".")[0]].append(_form)


def draw(rng: random.Random, operand: Operand, name: str, place: int) -> int:
    """Bits of a source that make a case worth looking at."""
    assert operand.type is not None
    type_name, bits = operand.type.name, operand.type.bits
    if bits == 1:
        return rng.getrandbits(1)
    halves = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
    if type_name in halves:
        element = Operand("scalar", TYPES[halves[type_name]])
        low, high = (draw(rng, element, name, place) for _ in range(2))
        return low | high << bits // 2
    if type_name in _EDGES:
        if name in ("min", "max") and rng.random() < 0.4:
            return rng.choice(_EDGES[type_name][:2])
        if rng.random() < 0.3:
            return rng.choice(_EDGES[type_name])
        scale = rng.choice([1e-3, 1.0, 1.0, 30.0, 1e6 if name in ("cvt", "add") else 3.0])
        value = rng.gauss(0, scale)
        if name == "cvt" and rng.random() < 0.3:
            value = float(round(value)) + 0.5
        return _nearest(value, type_name)
    if (name in ("shl", "shr") and place == 1) or (name in ("shf", "bfe", "bfi") and place >= 2):
        return rng.choice([0, 1, 5, 31, 32, 33, 63, 64, 200, rng.randrange(32)])
    if name == "bfe" and place == 1:
        return rng.choice([0, 1, 4, 31, 32, 300, rng.randrange(32)])
    edges = [0, 1, 2, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 7]
    return rng.choice(edges) if rng.random() < 0.3 else rng.getrandbits(bits)


def _nearest(value: float, type_name: str) -> int:
    return encode(round_float(Fraction(value), type_name), type_name)


def storage(operand: Operand) -> int:
    """Bits of the register that holds an operand: PTX has none of 8 bits."""
    assert operand.type is not None
    return max(operand.type.bits, 16)


def write_kernel(forms: list[Form], immediates: list[int]) -> str:
    """A kernel that runs each form on its own inputs: 8 bytes for each operand and lane."""
    lines = [
        HEADER,
        ".visible .entry run(.param .u64 inputs, .param .u64 results) {",
        ".reg .b32 %t; .reg .b64 %in, %out, %off;",
        "ld.param.u64 %in, [inputs]; ld.param.u64 %out, [results];",
        "mov.u32 %t, %tid.x; mul.wide.u32 %off, %t, 8;",
        "add.s64 %in, %in, %off; add.s64 %out, %out, %off;",
    ]
    slot = 0
    for number, form in enumerate(forms):
        lines.append("{")
        names = []
        for operand in form.operands:
            if operand.kind == "int":
                names.append(str(immediates[number]))
                continue
            is_source = len(names) >= len(form.destinations)
            elements = []
            for element in range(operand.count):
                name = f"%x{len(names)}_{element}"
                elements.append(name)
                offset = slot * LANES * 8 + 8 * LANES * element
                lines += _declare(name, operand, offset if is_source else None)
            if is_source:
                slot += operand.count
            joined = ", ".join(elements)
            if operand.kind == "vector":
                joined = f"{{{joined}}}"
            elif operand.kind == "pair":
                lines.append(".reg .pred %second;")
                joined = f"{joined}|%second"
            names.append(joined)
        lines.append(f"{form.opcode} {', '.join(names)};")
        lines += _store(form, number)
        lines.append("}")
    lines.append("ret; }")
    return "\n".join(lines)


def _declare(name: str, operand: Operand, offset: int | None) -> list[str]:
    assert operand.type is not None
    if operand.type.bits == 1:
        lines = [f".reg .pred {name};"]
        if offset is not None:
            lines += [f".reg .b32 {name}w; ld.global.b32 {name}w, [%in+{offset}];",
                      f"setp.ne.b32 {name}, {name}w, 0;"]  # fmt: skip
        return lines
    lines = [f".reg .b{storage(operand)} {name};"]
    if offset is not None:
        lines.append(f"ld.global.b{storage(operand)} {name}, [%in+{offset}];")
    return lines


def _store(form: Form, number: int) -> list[str]:
    lines = []
    base = 8 * LANES * 4 * number
    operand = form.destinations[0]
    assert operand.type is not None
    for element in range(operand.count):
        name, place = f"%x0_{element}", base + 8 * LANES * element
        if operand.type.bits == 1:
            lines += [f".reg .b32 {name}r; selp.b32 {name}r, 1, 0, {name};",
                      f"st.global.b32 [%out+{place}], {name}r;"]  # fmt: skip
        else:
            lines.append(f"st.global.b{storage(operand)} [%out+{place}], {name};")
    if operand.kind == "pair":
        place = base + 8 * LANES
        lines += [".reg .b32 %rs; selp.b32 %rs, 1, 0, %second;",
                  f"st.global.b32 [%out+{place}], %rs;"]  # fmt: skip
    return lines


def _sources(form: Form) -> list[Operand]:
    return [operand for operand in form.sources if operand.kind != "int"]


def _flush(value: Any) -> Any:
    small = isinstance(value, float) and 0 < abs(value) < 2.0**-126
    return math.copysign(0.0, value) if small else value


def _check(form: Form, got: int, sources: list[int], immediate: int) -> None:
    name = form.opcode.split(".")[0]
    operand = form.destinations[0]
    assert operand.type is not None
    types = [source.type.name for source in _sources(form) if source.type is not None]
    values = [decode(bits, kind) for bits, kind in zip(sources, types, strict=True)]
    if form.flushes:
        values = [_flush(v) if t == "f32" else v for v, t in zip(values, types, strict=True)]
    if len(values) < len(form.sources):
        values.append(immediate)
    result = expected(form, values)
    if form.flushes:
        result = _flush(result)
    kind = operand.type.name
    detail = f"{form.opcode} of {values} gave {got:#x}, wanted {result}"
    if isinstance(result, float):
        actual = decode(got, kind)
        if math.isnan(result):
            assert math.isnan(actual), detail
            return
        if name in APPROXIMATE or name == "fma":
            assert actual == pytest.approx(result, rel=4e-7, abs=2.0**-126), detail
            return
    if isinstance(result, tuple):
        for one, other in zip(decode(got, kind), result, strict=True):
            assert (math.isnan(one) and math.isnan(other)) or one == pytest.approx(
                other, rel=2e-7 if name == "fma" else 0, abs=0
            ), detail
        return
    wanted = encode(result, kind)
    if operand.wider and kind[0] == "s" and storage(operand) > operand.type.bits:
        wanted = encode(decode(wanted, kind), f"s{storage(operand)}")
    assert got == wanted, f"{detail} ({wanted:#x})"


@pytest.mark.parametrize("name", sorted(FORMS))
def test_arithmetic(name: str) -> None:
    rng = random.Random(name)
    forms = FORMS[name]
    immediates = [rng.randrange(256) for _ in forms]
    slots: list[list[int]] = []
    for form in forms:
        for place, operand in enumerate(_sources(form)):
            for _ in range(operand.count):
                slots.append([draw(rng, operand, name, place) for _ in range(LANES)])
    inputs = np.array(slots, np.uint64)
    results = Scratch(np.zeros((len(forms), 4, LANES), np.uint64))
    load(write_kernel(forms, immediates))["run"].launch((1,), (LANES,), [inputs, results])
    slot = 0
    for number, form in enumerate(forms):
        operand = form.destinations[0]
        assert operand.type is not None
        count = sum(source.count for source in _sources(form))
        mask = (1 << max(operand.type.bits, 16 if operand.type.bits > 1 else 32)) - 1
        for lane in range(LANES):
            sources = [slots[slot + place][lane] for place in range(count)]
            got = [int(results.array[number, element, lane]) & mask for element in range(4)]
            if any(x.kind == "vector" for x in form.operands):
                _check_vector(form, got, sources)
                continue
            _check(form, got[0], sources, immediates[number])
            if operand.kind == "pair":
                _check_second(form, got[1] & 1, sources)
        slot += count


def _check_vector(form: Form, got: list[int], sources: list[int]) -> None:
    """mov between a register and its parts."""
    target, source = form.destinations[0], form.sources[0]
    assert target.type is not None
    assert source.type is not None
    if source.kind == "vector":
        assert got[0] == sum(part << source.type.bits * i for i, part in enumerate(sources))
    else:
        for element in range(target.count):
            wanted = sources[0] >> target.type.bits * element & (2**target.type.bits - 1)
            assert got[element] == wanted


def _check_second(form: Form, got: int, sources: list[int]) -> None:
    """The second predicate of setp is that of the opposite comparison."""
    types = [source.type.name for source in form.sources if source.type is not None]
    values = [decode(bits, kind) for bits, kind in zip(sources, types, strict=True)]
    if form.flushes:
        values = [_flush(value) for value in values]
    _, name, combine, *_ = form.opcode.split(".")
    wanted = not compare(name, *values[:2])
    if len(values) > 2:
        wanted = COMBINATIONS[combine](wanted, values[2])
    assert got == int(wanted), f"second of {form.opcode} of {values}"
