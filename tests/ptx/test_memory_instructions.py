"""Every load, store, copy and atomic of the whitelist."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.ptx import InOut, Output, load
from tests.ptx.forms import Form, all_forms
from tests.ptx.snippets import HEADER, launch

_FAMILIES = ("ld", "st", "cp", "atom", "red", "fence", "membar")


def is_covered(form: Form) -> bool:
    """Whether the tests of this file execute ``form``."""
    return form.opcode.split(".")[0] in _FAMILIES


def forms(name: str, space: str = "") -> list[Form]:
    """The forms of one opcode, and of one space where it has an address."""
    return [
        form
        for form in all_forms()
        if form.opcode.split(".")[0] == name
        and (not space or any(operand.space == space for operand in form.operands))
    ]


def _vector(
    form: Form, operand: Any, prefix: str, at_least: int = 16
) -> tuple[list[str], str, int]:
    """Declarations, the operand's text, and the register width."""
    width = max(operand.type.bits, at_least)
    names = [f"%{prefix}{i}" for i in range(operand.count)]
    lines = [f".reg .b{width} {name};" for name in names]
    text = names[0] if operand.count == 1 else f"{{{', '.join(names)}}}"
    return lines, text, width


def _signed_bits(value: int, bits: int, width: int) -> int:
    extended = value - (1 << bits) if value >> (bits - 1) else value
    return extended & ((1 << width) - 1)


PROLOGUE = """
.reg .b32 %t, %s; .reg .b64 %in, %out, %off, %gen, %mine;
ld.param.u64 %in, [source]; ld.param.u64 %out, [result];
mov.u32 %t, %tid.x; mul.wide.u32 %off, %t, 16; add.s64 %in, %in, %off; add.s64 %out, %out, %off;
shl.b32 %s, %t, 4;
"""
ENTRY = """
.visible .entry run(.param .u64 source, .param .u64 result, .param .align 16 .b8 block[512]) {
"""


@pytest.mark.parametrize("space", ["global", "shared", "local", "param", "generic"])
def test_loads(space: str) -> None:
    """Each form loads 16 bytes a lane, or as much of them as it takes, wherever they lie."""
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (32, 16), np.uint8)
    for form in forms("ld", space):
        operand = form.destinations[0]
        assert operand.type is not None
        lines, text, width = _vector(form, operand, "x", 32 if operand.type.bits == 8 else 16)
        before = {
            "shared": "mov.b32 %base, smem; add.u32 %s, %s, %base; "
            "st.shared.v4.b32 [%s], {%v0, %v1, %v2, %v3};",
            "local": "st.local.v4.b32 [pool], {%v0, %v1, %v2, %v3};",
        }.get(space, "")
        address = {
            "global": "%in",
            "shared": "%s",
            "local": "pool",
            "param": "%mine",
            "generic": "%in",
        }[space]
        body = [
            HEADER.format(target="sm_90a"),
            ENTRY,
            ".shared .align 16 .b8 smem[512]; .local .align 16 .b8 pool[16]; .reg .b32 %base;",
            PROLOGUE,
            ".reg .b32 %v<4>; ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%in];",
            "mov.b64 %mine, block; add.s64 %mine, %mine, %off;",
            before,
            *lines,
            f"{form.opcode} {text}, [{address}];",
        ]
        step = width // 8
        for i in range(operand.count):
            body.append(f"st.global.b{width} [%out+{step * i}], %x{i};")
        body.append("ret; }")
        out = Output(np.zeros((32, 16), np.uint8)[:, : step * operand.count])
        load("\n".join(body))["run"].launch((1,), (32,), [data, out, data.tobytes()])
        bits = operand.type.bits
        dtype = np.dtype(f"u{bits // 8}")
        loaded = data.view(dtype)[:, : operand.count]
        signed = operand.type.view == "s"
        wanted = [
            [_signed_bits(int(v), bits, width) if signed else int(v) for v in row] for row in loaded
        ]
        got = np.ascontiguousarray(out.array).view(f"u{step}").tolist()
        assert got == wanted, form.opcode


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic"])
def test_stores(space: str) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (32, 16), np.uint8)
    for form in forms("st", space):
        operand = form.sources[1]
        assert operand.type is not None
        lines, text, _ = _vector(form, operand, "x", 32 if operand.type.bits == 8 else 16)
        bits, size = operand.type.bits, operand.type.bits // 8 * operand.count
        address = {"global": "%out", "shared": "%s", "local": "pool", "generic": "%out"}[space]
        places = [bits // 8 * i for i in range(operand.count)]
        loads = [f"ld.global.u{bits} %x{i}, [%in+{place}];" for i, place in enumerate(places)]
        after = []
        if space in ("shared", "local"):
            # Read back by bytes of the same size, each lane its own.
            where = "%s" if space == "shared" else "pool"
            for i, place in enumerate(places):
                after.append(f"ld.{space}.u{bits} %x{i}, [{where}+{place}];")
                after.append(f"st.global.u{bits} [%out+{place}], %x{i};")
        body = [
            HEADER.format(target="sm_90a"),
            ENTRY,
            ".shared .align 16 .b8 smem[512]; .local .align 16 .b8 pool[16]; .reg .b32 %base;",
            PROLOGUE,
            "mov.b32 %base, smem; add.u32 %s, %s, %base;",
            *lines,
            *loads,
            f"{form.opcode} [{address}], {text};",
            *after,
            "ret; }",
        ]
        out = Output(np.zeros((32, 16), np.uint8)[:, :size])
        load("\n".join(body))["run"].launch((1,), (32,), [data, out, b""])
        assert (out.array == data[:, :size]).all(), form.opcode


@pytest.mark.parametrize("waiting", ["cp.async.wait_group 0", "cp.async.wait_all"])
def test_copies(waiting: str) -> None:
    """Each form, of each size, with and without a short source."""
    commits = [form for form in forms("cp") if form.opcode == "cp.async.commit_group"]
    assert len(commits) == 1
    data = np.random.default_rng(3).integers(0, 256, (32, 16), np.uint8)
    for form in (form for form in forms("cp") if len(form.operands) > 2):
        sizes = (4, 8, 16) if ".ca." in form.opcode else (16,)
        for size, read in itertools.product(sizes, (0, 2, 4)):
            short = len(form.operands) == 4
            extra = ", %r5" if short else ""
            body = f"""
                mul.wide.u32 %d2, %r0, 16; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
                shl.b32 %r3, %r0, 4; mov.b32 %r4, smem; add.u32 %r3, %r3, %r4; mov.u32 %r5, {read};
                st.shared.v4.b32 [%r3], {{%r0, %r0, %r0, %r0}};
                {form.opcode} [%r3], [%d3], {size}{extra};
                cp.async.commit_group;
                {waiting};
                ld.shared.v4.b32 {{%r6, %r7, %r8, %r9}}, [%r3];
                st.global.v4.b32 [%d4], {{%r6, %r7, %r8, %r9}};
            """
            out = Output(np.zeros((32, 16), np.uint8))
            launch(body, [data, out], shared=512)
            wanted = np.repeat(np.arange(32, dtype=np.uint32)[:, None], 4, axis=1).view(np.uint8)
            wanted[:, :size] = 0 if short else data[:, :size]
            if short:
                wanted[:, : min(read, size)] = data[:, : min(read, size)]
            assert (out.array == wanted).all(), (form.opcode, size, read)


_COMBINE = {
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
}
_CODECS: dict[str, Any] = {
    "f16": (np.float16, 1), "f32": (np.float32, 1), "f64": (np.float64, 1),
    "f16x2": (np.float16, 2), "bf16": (None, 1), "bf16x2": (None, 2),
}  # fmt: skip


def _to_numbers(raw: np.ndarray, type_name: str) -> np.ndarray:
    """Bits as float64 or as integers; pairs get an axis of their own."""
    if type_name not in _CODECS:
        kind = "i" if type_name[0] == "s" else "u"
        return raw.view(f"{kind}{raw.dtype.itemsize}").astype(object)
    dtype, count = _CODECS[type_name]
    if dtype is None:
        halves = np.ascontiguousarray(raw).view(np.uint16)
        numbers = (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        numbers = np.ascontiguousarray(raw).view(dtype).astype(np.float64)
    return numbers.reshape(*raw.shape, count) if count > 1 else numbers


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(space: str) -> None:
    """Eight cells, four lanes on each: old values are those of some order, the end is the total."""
    for form in (*forms("atom", space), *forms("red", space)):
        name = form.opcode.split(".")[0]
        parts = form.opcode.split(".")
        operation = next(part for part in parts if part in (*_COMBINE, "cas"))
        type_name = parts[-1]
        value = form.sources[1]
        assert value.type is not None
        bits, count = value.type.bits, value.count
        # Small whole numbers are exact in every type.
        rng = np.random.default_rng(4)
        if type_name in _CODECS:
            code = {"f16": 0x4000, "bf16": 0x4000, "f32": 0x40000000, "f64": 0x4000 << 48}
            element = type_name.removesuffix("x2")
            cell = code[element] * (0x10001 if type_name.endswith("x2") else 1)
            lanes = np.full((32, count), cell, f"u{bits // 8}")
        else:
            lanes = rng.integers(0, 100, (32, count)).astype(f"u{bits // 8}")
        cells = InOut(lanes[:8].copy())
        start = cells.array.copy()
        size = bits // 8 * count
        lines, text, _ = _vector(form, value, "v")
        olds, old_text, _ = _vector(form, value, "o")
        compare = ", %v0" if operation == "cas" else ""
        target = f"{old_text}, " if name == "atom" else ""
        address = "%cell" if space == "global" else "%s"
        stores = [f"st.global.b{bits} [%out+{bits // 8 * i}], %o{i};" for i in range(count)]
        body = [
            HEADER.format(target="sm_90a"),
            ".visible .entry run(.param .u64 source, .param .u64 cells, .param .u64 result) {",
            ".reg .b32 %t, %k, %s; .reg .b64 %in, %cell, %out, %off;",
            f".shared .align 16 .b8 smem[{8 * size}];",
            *lines, *olds,
            "ld.param.u64 %in, [source]; ld.param.u64 %cell, [cells]; ld.param.u64 %out, [result];",
            "mov.u32 %t, %tid.x; and.b32 %k, %t, 7;",
            f"mul.wide.u32 %off, %t, {size}; add.s64 %in, %in, %off; add.s64 %out, %out, %off;",
            f"mul.wide.u32 %off, %k, {size}; add.s64 %cell, %cell, %off;",
            f"mov.b32 %s, smem; mad.lo.u32 %s, %k, {size}, %s;",
        ]  # fmt: skip
        if space == "shared":
            body += [f"ld.global.b{bits} %o0, [%cell]; st.shared.b{bits} [%s], %o0; bar.sync 0;"]
        body += [f"ld.global.b{bits} %v{i}, [%in+{bits // 8 * i}];" for i in range(count)]
        body += [f"{form.opcode} {target}[{address}], {text}{compare};"]
        if space == "shared":
            body += [f"bar.sync 0; ld.shared.b{bits} %v0, [%s]; st.global.b{bits} [%cell], %v0;"]
        body += [*(stores if name == "atom" else []), "ret; }"]
        found = Output(np.zeros_like(lanes)) if name == "atom" else InOut(np.zeros_like(lanes))
        load("\n".join(body))["run"].launch((1,), (32,), [lanes, cells, found], seed=5)
        _check_atomics(form, operation, type_name, lanes, start, cells.array, found.array)


def _check_atomics(
    form: Form,
    operation: str,
    type_name: str,
    lanes: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    found: np.ndarray,
) -> None:
    if operation == "cas":
        return
    for element in range(lanes.shape[1]):
        columns = (_to_numbers(x[:, element], type_name) for x in (lanes, start, end, found))
        values, before, after, olds = (
            column.reshape(len(column), -1).tolist() for column in columns
        )
        for cell in range(8):
            mine = [values[lane] for lane in range(cell, 32, 8)]
            got = [olds[lane] for lane in range(cell, 32, 8)]
            runs = [_in_turn(operation, before[cell], mine, order) for order in _ORDERS]
            fitting = [seen for final, seen in runs if final == after[cell]]
            assert fitting, f"{form.opcode}: {before[cell]} became {after[cell]}"
            assert form.opcode.startswith("red") or got in fitting, form.opcode


_ORDERS = list(itertools.permutations(range(4)))


def _in_turn(
    operation: str, start: list[Any], values: list[list[Any]], order: tuple[int, ...]
) -> tuple[list[Any], list[Any]]:
    """The end, and what each lane found, when lanes take their turns in ``order``."""
    current, seen = start, [[]] * len(values)
    for turn in order:
        seen[turn] = current
        current = [_COMBINE[operation](a, b) for a, b in zip(current, values[turn], strict=True)]
    return current, seen


def test_compare_and_swap() -> None:
    cells = InOut(np.array([5, 7], np.uint32))
    found = Output(np.zeros(2, np.uint32))
    body = """
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        atom.global.cas.b32 %r3, [%d3], 5, 9;
        st.global.b32 [%d4], %r3;
    """
    launch(body, [cells, found], threads=2)
    assert cells.array.tolist() == [9, 7]
    assert found.array.tolist() == [5, 7]


@pytest.mark.parametrize(
    "opcode", [form.opcode for name in ("fence", "membar") for form in forms(name)]
)
def test_fences_leave_values_alone(opcode: str) -> None:
    out = Output(np.zeros(32, np.uint32))
    body = f"mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; {opcode}; st.global.b32 [%d3], %r0;"
    launch(body, [out])
    assert out.array.tolist() == list(range(32))
