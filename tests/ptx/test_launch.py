"""Arguments, addresses and results of launches."""

from __future__ import annotations

import pytest
import torch

from tests.ptx import Output, load

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
