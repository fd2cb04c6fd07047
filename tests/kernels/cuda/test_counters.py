"""What the CUDA kernels execute: products, shared-memory wavefronts, sectors. Under emulation."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import make_pair
from tests.kernels.cuda.emulation import Machine, emulated_backend
from tests.kernels.test_cross_attention import gradients
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")


def run(
    operator: str,
    time_a: int,
    time_b: int,
    *,
    backward: bool,
    multiprocessors: int = 1,
    shared_bytes: int = 163 * 1024,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 64,
) -> Machine:
    case = make_pair(
        operator,
        dtype=dtype,
        batch=1,
        heads=1,
        time_a=time_a,
        time_b=time_b,
        head_dim=head_dim,
    )
    with emulated_backend(multiprocessors=multiprocessors, shared_bytes=shared_bytes) as machine:
        outputs = case.run(backend="cuda")
        if backward:
            gradients(outputs, case.tensors)
    return machine


def test_no_bank_conflicts_and_whole_sectors() -> None:
    machine = run("shared_cross_attention", 64, 128, backward=True)
    # Both of few heads; then neither computes S once.
    for limits in ({"multiprocessors": 100}, {"shared_bytes": 1024}):
        machine.launches += run("shared_cross_attention", 64, 128, backward=True, **limits).launches
    for launch in machine.launches:
        if "row_state" in launch.plan.kernel:
            continue
        counters, name = launch.counters, launch.plan.kernel
        wavefronts, phases = sum(counters.wavefronts.values()), sum(counters.phases.values())
        assert wavefronts <= 1.05 * phases, f"{name}: {wavefronts} wavefronts, {phases} phases"
        # Outputs leave 16 bytes a lane; only the log-sum-exps are single numbers.
        for kind in counters.sectors:
            if kind.startswith("st") or "store" in kind:
                assert 32 * counters.sectors[kind] <= 1.1 * counters.bytes[kind] + 4096, name


def test_float32_reads_without_bank_conflicts() -> None:
    machine = run(
        "shared_cross_attention",
        *(64, 128),
        backward=True,
        dtype=torch.float32,
        head_dim=32,
    )
    for launch in machine.launches:
        counters, name = launch.counters, launch.plan.kernel
        for kind in ("load", "ldmatrix", "cp.async"):
            assert counters.wavefronts[kind] == counters.phases[kind], f"{name}: {kind}"


@pytest.mark.parametrize(("time_a", "time_b"), [(64, 128), (128, 128)])
def test_the_similarity_is_computed_once(time_a: int, time_b: int) -> None:
    pairs = time_a * time_b
    products = {
        name: run(
            "shared_cross_attention", time_a, time_b, backward=False, multiprocessors=processors
        )
        .launches[0]
        .counters.mma_flops
        for name, processors in (("once", 1), ("twice", 100))
    }
    assert products["twice"] == 8 * pairs * 64
    # The first strip of 16 columns is multiplied once more, for the reference.
    rows = 64 if time_a == 64 else 128
    assert products["once"] == 6 * pairs * 64 + 2 * rows * 16 * 64


def test_shared_backward_multiplies_five_times_for_each_sequence() -> None:
    machine = run("shared_cross_attention", 64, 128, backward=True, shared_bytes=1024)
    (launch,) = [x for x in machine.launches if "shared_backward" in x.plan.kernel]
    assert launch.counters.mma_flops == 2 * 5 * 2 * 64 * 128 * 64


@pytest.mark.parametrize(("time_a", "time_b"), [(50, 128), (300, 310)])
def test_backward_with_s_once_multiplies_seven_times(time_a: int, time_b: int) -> None:
    machine = run("shared_cross_attention", time_a, time_b, backward=True)
    (launch,) = [x for x in machine.launches if "once_backward" in x.plan.kernel]
    # Rows in steps of 16, of the shorter side up to 128 of them; columns in tiles of 64 or strips
    # of 32.
    pairs = 64 * 128 if time_a == 50 else 320 * 320
    assert launch.counters.mma_flops == 7 * 2 * pairs * 64
