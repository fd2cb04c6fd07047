"""CUDA C++ through nvcc: a FlashAttention forward, right and with seeded bugs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.error_rule import assert_within_error_rule, random_tensor
from tests.ptx import Counters, Finding, InOut, Output, compile_cuda
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="nvcc is not on the PATH")

SOURCE = Path(__file__).parent / "flash.cu"
SHARED = 5 * 64 * 64 * 2
HEADS = 2


def run_flash(
    name: str, steps: int, *, arch: str = "sm_80", seed: int | None = None, shared: int = SHARED
) -> tuple[Tensor, Tensor, list[Tensor], Counters, set[str]]:
    """Output, base-2 LSE, the inputs, the counters, and the checks that failed."""
    inputs = [random_tensor(HEADS, steps, 64, dtype=torch.bfloat16, seed=i) for i in range(3)]
    out = Output(torch.empty(HEADS, steps, 64, dtype=torch.bfloat16))
    lse = Output(torch.empty(HEADS, steps))
    found: list[Finding] = []
    counters = compile_cuda(SOURCE, arch)[f"flash_{name}"].launch(
        (math.ceil(steps / 64), HEADS),
        (128,),
        [*inputs, out, lse, steps, math.log2(math.e) / 8],
        shared,
        seed=seed,
        check=False,
        findings=found,
    )
    return out.array, lse.array, inputs, counters, {finding.check for finding in found}


def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Plain attention and its base-2 LSE."""
    scores = query @ key.transpose(1, 2) / 8
    return scores.softmax(-1) @ value, torch.logsumexp(scores.double(), -1) / math.log(2)


def is_right(out: Tensor, lse: Tensor, inputs: list[Tensor]) -> bool:
    """Whether an output obeys the error rule, and the LSE is exact to float32."""
    plain = attention(*inputs)[0]
    truth, true_lse = attention(*(x.double() for x in inputs))
    try:
        assert_within_error_rule([out], [plain], [truth])
        torch.testing.assert_close(lse.double(), true_lse, rtol=1e-5, atol=1e-5)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("steps", [1, 63, 97, 300])
def test_flash(steps: int, seed: int | None) -> None:
    out, lse, inputs, counters, checks = run_flash("none", steps, seed=seed)
    assert checks == set()
    assert is_right(out, lse, inputs)
    tiles = math.ceil(steps / 64) ** 2 * HEADS
    assert counters.mma_flops == tiles * 2 * 2 * 64 * 64 * 64
    assert counters.bank_conflicts == 0


def test_flash_for_hopper() -> None:
    out, lse, inputs, _, checks = run_flash("none", 97, arch="sm_90a")
    assert checks == set()
    assert is_right(out, lse, inputs)


@pytest.mark.parametrize(
    ("bug", "check", "steps"),
    [
        ("no_barrier", "race", 300),
        ("short_wait", "copy in flight", 300),
        ("query_mask", "out of bounds global", 97),
    ],
)
def test_bugs_that_break_a_rule(bug: str, check: str, steps: int) -> None:
    assert check in run_flash(bug, steps)[-1]


def test_missing_barrier_leaves_the_numbers_right() -> None:
    """Which is why the race is looked for, and not only a wrong result."""
    out, lse, inputs, _, _ = run_flash("no_barrier", 300)
    assert is_right(out, lse, inputs)


@pytest.mark.parametrize("bug", ["key_mask", "fragment_row"])
def test_bugs_that_only_the_numbers_show(bug: str) -> None:
    out, lse, inputs, _, checks = run_flash(bug, 97)
    assert checks == set()
    assert not is_right(out, lse, inputs)


def test_missing_swizzle_costs_wavefronts_only() -> None:
    right, plain = (run_flash(name, 128) for name in ("none", "no_swizzle"))
    assert torch.equal(right[0], plain[0])
    assert plain[3].wavefronts["ldmatrix"] == 8 * right[3].wavefronts["ldmatrix"]
    assert plain[3].warp_instructions < right[3].warp_instructions


def test_shared_memory_too_small() -> None:
    assert "out of bounds shared" in run_flash("none", 97, shared=SHARED - 1024)[-1]


VOTES = """
#include <stdint.h>
extern "C" __global__ void votes(const int* x, int* y, float* total) {
  int i = threadIdx.x;
  int any = __syncthreads_or(x[i] > 5), all = __syncthreads_and(x[i] >= 0);
  int count = __syncthreads_count(x[i] > 2);
  unsigned ballot = __ballot_sync(0xffffffff, x[i] & 1);
  unsigned sum = __reduce_add_sync(0xffffffff, static_cast<unsigned>(x[i]));
  unsigned same = __match_any_sync(0xffffffff, x[i]);
  y[i] = any + 2 * all + 4 * count + __popc(ballot) * 1024 + (sum << 16) + __clz(same) * 4096;
  atomicAdd(total, static_cast<float>(x[i] / 3) + static_cast<float>(x[i] % 3) * 0.5f);
}
"""


def test_votes_reductions_and_barriers_of_cuda() -> None:
    x = np.random.default_rng(0).integers(0, 6, 64).astype(np.int32)
    y, total = Output(np.zeros(64, np.int32)), InOut(np.zeros(1, np.float32))
    compile_cuda(VOTES, "sm_80")["votes"].launch((1,), (64,), [x, y, total], seed=1)
    for i in range(64):
        warp = x[i // 32 * 32 : i // 32 * 32 + 32]
        last_alike = max(place for place in range(32) if warp[place] == x[i])
        wanted = 0 + 2 + 4 * int((x > 2).sum()) + int((warp & 1).sum()) * 1024
        wanted += (int(warp.sum()) << 16) + (31 - last_alike) * 4096
        assert y.array[i] == wanted
    assert total.array[0] == (x // 3).sum() + (x % 3).sum() * 0.5


def test_compile_errors_are_shown() -> None:
    with pytest.raises(RuntimeError, match="undefined"):
        compile_cuda('extern "C" __global__ void broken() { missing(); }', "sm_80")
