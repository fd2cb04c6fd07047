"""Seeded bugs in the order of wgmma's fences, commits and waits, each found by the check for it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Output, PtxError
from tests.ptx.snippets import SEEDS, Bug, bugs, checks_of, launch

# One warpgroup multiplies a zero tile: what matters is the order of fences, commits and waits.
_PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}"
WGMMA = f"""
    mov.b32 %r3, smem; shl.b32 %r4, %r0, 4; add.u32 %r4, %r4, %r3; mov.b32 %r5, 0;
    st.shared.v4.b32 [%r4], {{%r5, %r5, %r5, %r5}};
    st.shared.v4.b32 [%r4+2048], {{%r5, %r5, %r5, %r5}};
    mov.f32 %f1, 0f3F800000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;
    fence.proxy.async;
    bar.sync 0;
    mov.b64 %d1, 0xC000001000010000; setp.eq.b32 %p1, %r5, 0;
    wgmma.fence.sync.aligned; // first
    {_PRODUCT}, %d1, %d1, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0; // first
    mul.f32 %f1, %f1, %f1;
    wgmma.fence.sync.aligned; // second
    {_PRODUCT}, %d1, %d1, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0; // second
    bar.sync 0;
    st.shared.v4.b32 [%r4], {{%r5, %r5, %r5, %r5}};
    mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; st.global.f32 [%d3], %f1;
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_wgmma_in_order(seed: int | None) -> None:
    out = Output(np.zeros(128, np.float32))
    counters = launch(WGMMA, [out], threads=128, shared=8192, seed=seed)
    assert (out.array == 1).all()
    assert counters.mma == {"m64n8k16 bf16": 2}


@pytest.mark.parametrize("seed", SEEDS)
@bugs(
    Bug("no fence before the first", "wgmma.fence.sync.aligned; // first", "", "wgmma fence"),
    Bug("no fence after a write", "wgmma.fence.sync.aligned; // second", "", "wgmma fence"),
    Bug("accumulator used too early", "wgmma.wait_group.sync.aligned 0; // first", "",
        "wgmma in flight"),
    Bug("waits for too few", "aligned 0; // first", "aligned 1; // first", "wgmma in flight"),
    Bug("operand overwritten too early", "wgmma.wait_group.sync.aligned 0; // second", "",
        "wgmma in flight"),
    Bug("no commit", "wgmma.commit_group.sync.aligned;", "", "wgmma in flight"),
    Bug("no fence between the proxies", "fence.proxy.async;", "", "proxy fence"),
    Bug("no barrier after the writes", "fence.proxy.async;\n    bar.sync 0;",
        "fence.proxy.async;", "race"),
    Bug("descriptor of one lane", "mov.b64 %d1, 0xC000001000010000;",
        "cvt.u64.u32 %d1, %r0; and.b64 %d1, %d1, 1; or.b64 %d1, %d1, 0xC000001000010000;",
        "wgmma descriptor"),
    Bug("operand outside", "0xC000001000010000", "0xC000001000010200", "out of bounds shared"),
)  # fmt: skip
def test_bugs_of_wgmma(bug: Bug, seed: int | None) -> None:
    out = Output(np.zeros(128, np.float32))
    assert bug.check in checks_of(bug.apply(WGMMA), [out], threads=128, shared=8192, seed=seed)


def test_blocks_without_whole_warpgroups_are_refused() -> None:
    with pytest.raises(PtxError, match="whole warpgroups"):
        launch(WGMMA, [Output(np.zeros(128, np.float32))], threads=96, shared=8192)
