"""Clusters: distributed shared memory and the cluster's barrier."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Finding, Output, PtxError, compile_cuda
from tests.ptx.compilers import has_nvcc
from tests.ptx.forms import Form, all_forms
from tests.ptx.snippets import kernel

_FAMILIES = ("mapa", "getctarank")
SEEDS = (None, 0, 1)

# Each of two CTAs writes its threads' numbers and reads what the other one wrote, backwards.
EXCHANGE = """
    mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mov.b32 %r4, smem;
    shl.b32 %r5, %r0, 2; add.u32 %r5, %r5, %r4; mad.lo.u32 %r6, %r1, 1000, %r0;
    st.shared.b32 [%r5], %r6;
    barrier.cluster.arrive.release.aligned; // written
    barrier.cluster.wait.acquire.aligned; // written
    mapa.shared::cluster.u32 %r7, %r4, %r3;
    sub.u32 %r8, 63, %r0; shl.b32 %r8, %r8, 2; add.u32 %r8, %r8, %r7;
    ld.shared::cluster.b32 %r9, [%r8];
    barrier.cluster.arrive.aligned; // read
    barrier.cluster.wait.aligned; // read
    st.shared.b32 [%r5], %r9;
    getctarank.shared::cluster.u32 %r10, %r8;
    getctarank.shared::cluster.u32 %r11, %r5;
    shl.b32 %r10, %r10, 4; add.u32 %r10, %r10, %r11; shl.b32 %r10, %r10, 16; add.u32 %r9, %r9, %r10;
    mad.lo.u32 %r12, %r1, 64, %r0; mul.wide.u32 %d2, %r12, 4; add.s64 %d3, %d0, %d2;
    st.global.b32 [%d3], %r9;
"""


def is_covered(form: Form) -> bool:
    """Whether the tests of this file execute ``form``."""
    return form.opcode.split(".")[0] in _FAMILIES


def run(
    body: str, seed: int | None, ctas: int = 4, cluster: int = 2
) -> tuple[np.ndarray, set[str]]:
    """What the exchange stored, and the checks that failed."""
    out, found = Output(np.zeros((ctas, 64), np.uint32)), list[Finding]()
    kernel(body, shared=256).launch(
        (ctas,), (64,), [out], cluster=(cluster,), seed=seed, findings=found, check=False
    )
    return out.array, {finding.check for finding in found}


@pytest.mark.parametrize("seed", SEEDS)
def test_exchange(seed: int | None) -> None:
    result, checks = run(EXCHANGE, seed)
    assert checks == set()
    for cta in range(4):
        rank = cta % 2
        wanted = (cta ^ 1) * 1000 + np.arange(64)[::-1] + (((rank ^ 1) << 4 | rank) << 16)
        assert (result[cta] == wanted).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("barrier.cluster.wait.acquire.aligned; // written", "", "race"),
        ("barrier.cluster.arrive.release", "barrier.cluster.arrive.relaxed", "race"),
        ("barrier.cluster.arrive.aligned; // read\n    barrier.cluster.wait.aligned; // read",
         "bar.sync 0;", "race"),
        ("barrier.cluster.wait.aligned; // read", "", "race"),
        ("barrier.cluster.arrive.aligned; // read", "", "barrier"),
        ("xor.b32 %r3, %r2, 1", "add.u32 %r3, %r2, 1", "out of bounds shared"),
        ("ld.shared::cluster.b32 %r9", "ld.shared.b32 %r9", "out of bounds shared"),
    ],
)  # fmt: skip
def test_bugs(old: str, new: str, check: str, seed: int | None) -> None:
    assert old in EXCHANGE
    assert check in run(EXCHANGE.replace(old, new), seed)[1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("action", ["ld.shared::cluster.b32 %r9, [%r7]",
                                    "st.shared::cluster.b32 [%r7], %r0"])  # fmt: skip
def test_neighbour_that_ends_early(action: str, seed: int | None) -> None:
    """CTA 1 uses the shared memory of CTA 0, which ends as it likes or waits for a barrier."""
    body = f"""
        mov.u32 %r2, %cluster_ctarank; mov.b32 %r4, smem; shl.b32 %r5, %r0, 2;
        add.u32 %r5, %r5, %r4; st.shared.b32 [%r5], %r0;
        barrier.cluster.arrive; barrier.cluster.wait;
        setp.eq.u32 %p1, %r2, 0; mov.b32 %r3, 0; mapa.shared::cluster.u32 %r7, %r5, %r3;
        @!%p1 {action};
        barrier.cluster.arrive; barrier.cluster.wait; // last
    """
    assert run_bare(body, seed) == set()
    last = "barrier.cluster.arrive; barrier.cluster.wait; // last"
    assert "early exit" in run_bare(body.replace(last, ""), seed)


def test_neighbour_that_has_ended() -> None:
    """CTA 0 has nothing more to do while CTA 1 is in a loop."""
    body = """
        mov.u32 %r2, %cluster_ctarank; mov.b32 %r4, smem; shl.b32 %r5, %r0, 2;
        add.u32 %r5, %r5, %r4; st.shared.b32 [%r5], %r0;
        barrier.cluster.arrive; barrier.cluster.wait;
        setp.eq.u32 %p1, %r2, 1; mov.b32 %r3, 0; mapa.shared::cluster.u32 %r7, %r5, %r3;
        @%p1 bra $far;
        ret;
        $far:
        ld.shared::cluster.b32 %r9, [%r7];
    """
    assert run_bare(body, None) == {"out of bounds shared"}


def run_bare(body: str, seed: int | None) -> set[str]:
    """The checks that fail in a cluster of two CTAs without arguments."""
    found: list[Finding] = []
    kernel(body, [], shared=256).launch(
        (2,), (64,), [], cluster=(2,), seed=seed, findings=found, check=False
    )
    return {finding.check for finding in found}


def test_every_cluster_form_is_known() -> None:
    """Addresses of 32 and of 64 bits, generic ones among them, name the same place."""
    opcodes = {form.opcode for form in all_forms() if is_covered(form)}
    assert opcodes == {
        "mapa.shared::cluster.u32", "mapa.shared::cluster.u64", "mapa.u64",
        "getctarank.shared::cluster.u32", "getctarank.u64",
    }  # fmt: skip
    body = """
        mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mov.b32 %r4, smem; mov.b64 %d2, smem;
        shl.b32 %r5, %r0, 2; add.u32 %r5, %r5, %r4; st.shared.b32 [%r5], %r1;
        barrier.cluster.arrive; barrier.cluster.wait;
        mapa.shared::cluster.u64 %d3, %d2, %r3; cvta.shared.u64 %d4, %d2; mapa.u64 %d5, %d4, %r3;
        ld.shared::cluster.b32 %r6, [%d3]; ld.b32 %r7, [%d5]; getctarank.u64 %r8, %d5;
        shl.b32 %r7, %r7, 8; shl.b32 %r8, %r8, 16; add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r8;
        mad.lo.u32 %r12, %r1, 64, %r0; mul.wide.u32 %d6, %r12, 4; add.s64 %d7, %d0, %d6;
        st.global.b32 [%d7], %r6;
        barrier.cluster.arrive; barrier.cluster.wait;
    """
    result, checks = run(body, None)
    assert checks == set()
    assert [int(row[0]) for row in result] == [
        other | other << 8 | (other % 2) << 16 for other in (1, 0, 3, 2)
    ]


def test_clusters_in_three_dimensions() -> None:
    """Rank and coordinates of each CTA of a 4 x 2 x 2 grid of 2 x 1 x 2 clusters."""
    body = """
        mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ctaid.z;
        mad.lo.u32 %r5, %r4, 2, %r3; mad.lo.u32 %r5, %r5, 4, %r2;
        mul.wide.u32 %d2, %r5, 16; add.s64 %d3, %d0, %d2;
        mov.u32 %r6, %cluster_ctarank; mov.u32 %r7, %clusterid.x; mov.u32 %r8, %cluster_ctaid.z;
        mov.u32 %r9, %cluster_nctarank;
        st.global.v4.b32 [%d3], {%r6, %r7, %r8, %r9};
    """
    out = Output(np.zeros((2, 2, 4, 4), np.uint32))
    kernel(body).launch((4, 2, 2), (1,), [out], cluster=(2, 1, 2), seed=0)
    for z in range(2):
        for x in range(4):
            assert (out.array[z, :, x] == [x % 2 + 2 * z, x // 2, z, 4]).all()


def test_grid_without_whole_clusters() -> None:
    with pytest.raises(PtxError, match="no whole clusters"):
        run(EXCHANGE, None, ctas=3)


CUDA = """
#include <cooperative_groups.h>
extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange(const float* x, float* y) {
  __shared__ float own[64];
  auto cluster = cooperative_groups::this_cluster();
  int i = blockIdx.x * 64 + threadIdx.x;
  own[threadIdx.x] = x[i];
  cluster.sync();
  float* other = cluster.map_shared_rank(own, cluster.block_rank() ^ 1);
  float value = other[63 - threadIdx.x];
  cluster.sync();
  atomicAdd(other + threadIdx.x % 2, 1.f);
  cluster.sync();
  y[i] = value + own[threadIdx.x];
}
"""


@pytest.mark.skipif(not has_nvcc(), reason="nvcc is not on the PATH")
@pytest.mark.parametrize("seed", SEEDS)
def test_cooperative_groups(seed: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    y = Output(np.zeros_like(x))
    compile_cuda(CUDA, "sm_90a")["exchange"].launch((4,), (64,), [x, y], seed=seed)
    wanted = x[[1, 0, 3, 2], ::-1] + x
    wanted[:, :2] += 32
    np.testing.assert_allclose(y.array, wanted, rtol=1e-5)
