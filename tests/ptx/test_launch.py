"""Arguments, addresses and results of launches."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from tests.ptx import Finding, InOut, Output, Packed, PtxError, Scratch, Struct, load
from tests.ptx.snippets import checks_of, kernel, launch

HEADER = ".version 8.8\n.target sm_90a\n.address_size 64\n"
SCALE = (
    HEADER
    + """
.visible .entry scale(.param .u64 source, .param .u64 result, .param .f32 factor, .param .u32 count)
{
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [source];
    ld.param.u64 %rd2, [result];
    ld.param.f32 %f1, [factor];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra $done;
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd5], %f3;
$done:
    ret;
}
"""
)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("count", [1, 63, 200, 512])
def test_scales_a_vector(count: int, seed: int | None) -> None:
    source, result = torch.randn(count), Output(torch.empty(count))
    counters = load(SCALE)["scale"].launch(
        (4,), (128,), [source, result, 3.0, count], seed=seed, batch=2
    )
    torch.testing.assert_close(result.array, source * 3, rtol=0, atol=0)
    assert counters.bytes["load"] == counters.bytes["store"] == 4 * count
    assert counters.ctas == 4


def test_bfloat16_and_strided_views() -> None:
    """A transposed, sliced bfloat16 tensor; the kernel gets its strides, and may not leave it."""
    storage = torch.randn(6, 40).bfloat16()
    view = storage[:, 4:36].t()
    assert view.stride() == (1, 40)
    out = Output(torch.empty(32, 6, dtype=torch.bfloat16))
    body = """
        mul.wide.u32 %d2, %r0, 2; add.s64 %d3, %d0, %d2; mul.wide.u32 %d2, %r0, 12;
        add.s64 %d4, %d1, %d2; mov.b32 %r3, 0;
        $loop:
        ld.global.b16 %h1, [%d3]; st.global.b16 [%d4], %h1;
        add.s64 %d3, %d3, 80; add.s64 %d4, %d4, 2; add.u32 %r3, %r3, 1;
        setp.lt.u32 %p1, %r3, 6; @%p1 bra $loop;
    """
    launch(body, [view, out])
    assert torch.equal(out.array, view)
    # Four bytes further on lie elements of the storage that are not the view's.
    assert checks_of(body, [view, out], threads=33) >= {"out of bounds global"}


def test_broadcast_input() -> None:
    row = np.arange(4, dtype=np.uint32)
    view = np.broadcast_to(row, (8, 4))
    out = Output(np.zeros(4, np.uint32))
    body = """
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        ld.global.b32 %r3, [%d3]; st.global.b32 [%d4], %r3;
    """
    launch(body, [view, out], threads=4)
    assert out.array.tolist() == [0, 1, 2, 3]
    wider = Output(np.zeros(5, np.uint32))
    assert checks_of(body, [view, wider], threads=5) == {"out of bounds global"}


def test_arguments_that_share_memory() -> None:
    """Two views of one storage: what is written through one is read through the other."""
    storage = np.zeros(64, np.uint32)
    body = """
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        st.global.b32 [%d3], %r0; bar.sync 0; ld.global.b32 %r3, [%d4+-4];
        add.u32 %r3, %r3, 100; st.global.b32 [%d4+124], %r3;
    """
    launch(body, [Output(storage[:32]), InOut(storage[1:64])])
    assert storage[:32].tolist() == list(range(32))
    assert storage[32:].tolist() == [100 + i for i in range(32)]


STRUCT = (
    HEADER
    + """
.visible .entry by_struct(.param .align 8 .b8 plan[32]) {
    .reg .pred %p<2>; .reg .b16 %h<3>; .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %d<8>;
    mov.u32 %r1, %tid.x;
    ld.param.u64 %d1, [plan];
    ld.param.u8 %h1, [plan+12];
    ld.param.f32 %f1, [plan+8];
    mov.b64 %d2, plan;
    add.s64 %d3, %d2, 16; add.s64 %d4, %d2, 24;
    setp.lt.u32 %p1, %r1, 16;
    selp.b64 %d5, %d3, %d4, %p1;
    ld.param.u64 %d6, [%d5];
    cvt.u32.u16 %r2, %h1;
    mul.wide.u32 %d7, %r1, 4; add.s64 %d1, %d1, %d7; add.s64 %d6, %d6, %d7;
    ld.global.f32 %f2, [%d1];
    cvt.rn.f32.u32 %f3, %r2;
    fma.rn.f32 %f2, %f2, %f1, %f3;
    st.global.f32 [%d6], %f2;
    ret;
}
"""
)


@pytest.mark.parametrize("packed", ["struct", "packed"])
def test_struct_by_value(packed: str) -> None:
    """Half of the threads write to either output: the pointer is selected inside the struct."""
    source, first, second = torch.randn(32), torch.empty(32), torch.empty(32)
    arrays = [source, Output(first[:16]), Output(second)]
    if packed == "struct":
        argument = Struct([arrays[0], np.float32(2.5), np.uint8(7), *arrays[1:]])
    else:
        arrays = [source, Output(first[:16]), Scratch(second)]
        layout = "<QfBxxxQQ"
        argument = Packed(
            lambda addresses: struct.pack(layout, addresses[0], 2.5, 7, *addresses[1:]), arrays
        )
    findings: list[Finding] = []
    load(STRUCT)["by_struct"].launch((1,), (32,), [argument], findings=findings, check=False)
    wanted = source * 2.5 + 7
    torch.testing.assert_close(first[:16], wanted[:16])
    torch.testing.assert_close(second[16:], wanted[16:])
    assert {finding.check for finding in findings} == (
        {"unwritten output"} if packed == "struct" else set()
    )


def test_chosen_ctas() -> None:
    result = Output(torch.full((512,), 5.0))
    counters = load(SCALE)["scale"].launch(
        (4,), (128,), [torch.ones(512), result, 2.0, 512], ctas=[1, 3]
    )
    written = ~torch.isnan(result.array)
    assert written.reshape(4, 128).all(1).tolist() == [False, True, False, True]
    assert counters.ctas == 2


def test_blocks_of_odd_sizes() -> None:
    """A last warp that is not full, in three dimensions."""
    out = Output(np.zeros((2, 5, 7), np.uint32))
    body = """
        mov.u32 %r3, %tid.x; mov.u32 %r4, %tid.y; mov.u32 %r5, %tid.z; mov.u32 %r6, %ntid.x;
        mov.u32 %r7, %ntid.y; mad.lo.u32 %r8, %r5, %r7, %r4; mad.lo.u32 %r8, %r8, %r6, %r3;
        mul.wide.u32 %d2, %r8, 4; add.s64 %d3, %d0, %d2; bar.sync 0; st.global.b32 [%d3], %r8;
    """
    kernel(body).launch((1,), (7, 5, 2), [out])
    assert out.array.reshape(-1).tolist() == list(range(70))


@pytest.mark.parametrize(
    ("operation", "wanted"), [("popc.u32", 40), ("and.pred", 0), ("or.pred", 1)]
)
@pytest.mark.parametrize("seed", [None, 0])
def test_barriers_that_reduce(operation: str, wanted: int, seed: int | None) -> None:
    out = Output(np.zeros(64, np.uint32))
    target = "%r3" if operation.startswith("popc") else "%p2"
    convert = "" if target == "%r3" else "selp.b32 %r3, 1, 0, %p2;"
    body = f"""
        setp.lt.u32 %p1, %r0, 40; barrier.cta.red.{operation.replace(".", ".aligned.")}
        {target}, 0, %p1; {convert}
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; st.global.b32 [%d3], %r3;
    """
    launch(body, [out], threads=64, seed=seed)
    assert (out.array == wanted).all()


def test_module_variables_and_generic_addresses() -> None:
    text = (
        HEADER
        + """
    .global .align 4 .b8 table[16] = {1, 0, 0, 0, 20, 0, 0, 0, 44, 1};
    .extern .shared .align 16 .b8 pool[];
    .visible .entry run(.param .u64 out) {
        .reg .b32 %r<8>; .reg .b64 %d<12>;
        .shared .align 4 .b8 fixed[12];
        mov.u32 %r1, %tid.x; ld.param.u64 %d1, [out];
        mul.wide.u32 %d2, %r1, 4;
        mov.b64 %d3, table; add.s64 %d3, %d3, %d2; ld.u32 %r2, [%d3];
        mov.b64 %d4, pool; cvta.shared.u64 %d5, %d4; add.s64 %d5, %d5, %d2;
        st.u32 [%d5], %r2;
        cvta.to.shared.u64 %d6, %d5; ld.shared.u32 %r3, [%d6];
        mov.b32 %r4, pool; add.u32 %r3, %r3, %r4;
        add.s64 %d7, %d1, %d2; st.u32 [%d7], %r3;
        ret; }
    """
    )
    out = Output(np.zeros(4, np.uint32))
    load(text)["run"].launch((1,), (4,), [out], 16)
    assert out.array.tolist() == [16 + value for value in (1, 20, 300, 0)]


def test_scopes_have_names_of_their_own() -> None:
    """Inline assembly declares the same register and label again and again."""
    part = """{ .reg .pred p; .reg .b32 x; mov.b32 x, {n}; setp.lt.u32 p, %r0, x;
        @p bra done; add.u32 %r3, %r3, {n}; done: }"""
    body = (
        "mov.b32 %r3, 0;" + "".join(part.replace("{n}", str(n)) for n in (8, 16)) +
        "mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; st.global.b32 [%d3], %r3;"
    )  # fmt: skip
    out = Output(np.zeros(32, np.uint32))
    launch(body, [out])
    assert out.array.tolist() == [0] * 8 + [8] * 8 + [24] * 16


def test_wrong_launches_are_refused() -> None:
    made = load(SCALE)["scale"]
    x, y = torch.ones(8), Output(torch.empty(8))
    with pytest.raises(PtxError, match="4 parameters, 3 were given"):
        made.launch((1,), (32,), [x, y, 2.0])
    with pytest.raises(PtxError, match=r"count of \.u32 was given 8\.5"):
        made.launch((1,), (32,), [x, y, 2.0, 8.5])
    with pytest.raises(PtxError, match="1 to 1024 threads, not 2048"):
        made.launch((1,), (2048,), [x, y, 2.0, 8])
    with pytest.raises(PtxError, match="bytes of shared memory; sm_90a has 232448"):
        made.launch((1,), (32,), [x, y, 2.0, 8], 300_000)
    with pytest.raises(KeyError, match="matches none"):
        load(SCALE)["other"]
    with pytest.raises(PtxError, match="this is not PTX"):
        load("int main() {}")
    bounded = load(SCALE.replace(")\n{", ")\n.reqntid 64\n{"))["scale"]
    with pytest.raises(PtxError, match="blocks of 64 threads, not 32"):
        bounded.launch((1,), (32,), [x, y, 2.0, 8])
