"""The whitelist: every entry has a test, and what is not in it is refused."""

from __future__ import annotations

import pytest

from tests.ptx import PtxError, load
from tests.ptx import test_arithmetic_instructions as arithmetic
from tests.ptx import test_clusters as clusters
from tests.ptx import test_matrix_instructions as matrix
from tests.ptx import test_memory_instructions as memory
from tests.ptx import test_warp_instructions as warp
from tests.ptx.forms import all_forms
from tests.ptx.scalar_oracle import expected
from tests.ptx.snippets import HEADER


def test_every_form_has_a_case() -> None:
    """Each form is executed by exactly one file; arithmetic ones also have an oracle."""
    for form in all_forms():
        claims = [
            module.is_covered(form) for module in (arithmetic, memory, warp, matrix, clusters)
        ]
        assert sum(claims) == 1, form.opcode
        if claims[0]:
            zeros = [1.0 if x.type and x.type.view == "f" else 1 for x in form.sources]
            if not any(
                x.kind == "vector" or (x.type and "x2" in x.type.name) for x in form.operands
            ):
                expected(form, zeros)


@pytest.mark.parametrize(
    "instruction",
    [
        "add.u32.sat %r1, %r2, %r3",
        "add.sat.s32 %r1, %r2, %r3",
        "add.s32 %r1, %r2",
        "add.s32 %r1, %r2, %r3, %r4",
        "max.s32 %r1, %r2, %r3, %r4",
        "mul.f32x2 %r1, %r2, %r3",
        "mul.f32 %d1, %d2, %d3",
        "mul.wide.s32 %r1, %r2, %r3",
        "add.f32 %r1, %r2, 1",
        "add.s32 %f1, %r2, %r3",
        "add.f16 %r1, %r2, %r3",
        "setp.lt.s32 %r1, %r2, %r3",
        "selp.b32 %r1, %r2, %r3, %r4",
        "mov.b32 %r1, {%r2, %r3}",
        "mov.b64 %d1, {%r2, %r3, %r4}",
        "mov.b32 %r1, 0d0000000000000000",
        "mov.b32 %r1, nowhere",
        "mov.b32 %r1, %clock",
        "ld.global.b32 %r1, [%r2]",
        "ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%d1]",
        "ld.global.b64 %r1, [%d1]",
        "ld.const.b32 %r1, [%d1]",
        "st.global.v2.b32 [%d1], %r1",
        "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%r11, %r12, %r13, %r14}",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 "
        "{%f1, %f2, %f3, %f4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%f1, %f2, %f3, %f4}",
        "call.uni helper",
        "trap",
    ],
)
def test_unknown_instructions_are_refused(instruction: str) -> None:
    text = f"""{HEADER.format(target="sm_90a")}
    .visible .entry test(.param .u64 p0) {{
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .f32 %f<9>; .reg .b64 %d<9>;
    {instruction};
    ret; }}"""
    with pytest.raises(PtxError, match="line 7: "):
        load(text)["test"]


def test_tensor_memory_is_refused_with_the_reason() -> None:
    text = HEADER.format(target="sm_100a") + (
        ".visible .entry test() { .reg .b32 %r<9>;"
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 128; ret; }"
    )
    with pytest.raises(PtxError, match=r"tensor memory \(sm_100\) is not emulated"):
        load(text)["test"]


def test_device_functions_are_refused() -> None:
    text = (
        HEADER.format(target="sm_90a") + ".func helper() { ret; }\n.visible .entry test() { ret; }"
    )
    with pytest.raises(PtxError, match="device functions"):
        load(text)
