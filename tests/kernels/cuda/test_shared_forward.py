"""Shared cross-attention with S computed once: its guard, its exact pass, and when it is chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.error_rule import assert_within_error_rule
from tests.kernels.cases import PairCase, make_pair
from tests.kernels.cuda.emulation import Launch, Machine, emulated_backend
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")
elements = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def run_forward(case: PairCase, *, slack: float = 1.0, **machine: int) -> Machine:
    """Hold a forward pass to the error rule; the log-sum-exps must be near the oracle's."""
    with emulated_backend(**machine) as emulated:
        ours = case.run(backend="cuda", return_lse=True)
    oracle = case.to(torch.float64).naive()
    assert_within_error_rule(ours[:2], case.naive()[:2], oracle[:2], factor=2.0 * slack)
    for x, y in zip(ours[2:], oracle[2:], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=2e-3)
    return emulated


def computes_scores_once(launch: Launch) -> bool:
    return launch.plan.kernel.startswith(("mmer_shared_forward", "mmer_shared_short"))


def products_of(machine: Machine) -> int:
    (launch,) = machine.launches
    assert computes_scores_once(launch)
    return launch.counters.mma_flops


def one_head(dtype: torch.dtype, lengths: tuple[int, int], head_dim: int) -> PairCase:
    time_a, time_b = lengths
    return make_pair(
        "shared_cross_attention",
        dtype=dtype,
        heads=1,
        time_a=time_a,
        time_b=time_b,
        head_dim=head_dim,
        masks=True,
    )


@elements
@pytest.mark.parametrize(
    ("lengths", "head_dim"),
    [
        ((50, 97), 16),
        ((60, 130), 64),
        ((100, 70), 64),
        ((140, 170), 16),
        pytest.param((1, 300), 32, marks=pytest.mark.slow),
        pytest.param((64, 17), 64, marks=pytest.mark.slow),
        pytest.param((50, 375), 40, marks=pytest.mark.slow),
        pytest.param((300, 300), 64, marks=pytest.mark.slow),
        pytest.param((300, 17), 40, marks=pytest.mark.slow),
        pytest.param((128, 130), 128, marks=pytest.mark.slow),
    ],
)
def test_lengths(dtype: torch.dtype, lengths: tuple[int, int], head_dim: int) -> None:
    products_of(run_forward(one_head(dtype, lengths, head_dim)))


GROUPED = [
    ((150, 170), 16, 99 * 1024, 2),
    # Of 64 rows each: blocks with room for no more.
    ((150, 170), 64, 70 * 1024, 3),
    pytest.param((400, 410), 40, 163 * 1024, 2, marks=pytest.mark.slow),
    pytest.param((300, 300), 64, 99 * 1024, 3, marks=pytest.mark.slow),
    pytest.param((150, 260), 128, 163 * 1024, 2, marks=pytest.mark.slow),
]


@elements
@pytest.mark.parametrize(("lengths", "head_dim", "shared_bytes", "groups"), GROUPED)
def test_groups_of_rows(
    dtype: torch.dtype,
    lengths: tuple[int, int],
    head_dim: int,
    shared_bytes: int,
    groups: int,
) -> None:
    case = one_head(dtype, lengths, head_dim)
    machine = run_forward(case, shared_bytes=shared_bytes, multiprocessors=4)
    shared, merge = machine.launches
    assert computes_scores_once(shared)
    assert "merge_groups" in merge.plan.kernel
    assert shared.plan.blocks == case.tensors[0].shape[0] * groups


@elements
@pytest.mark.parametrize(
    ("lengths", "head_dim", "shared_bytes"),
    [
        ((150, 170), 16, 99 * 1024),
        pytest.param((390, 33), 16, 163 * 1024, marks=pytest.mark.slow),
        pytest.param((400, 410), 40, 163 * 1024, marks=pytest.mark.slow),
        # More than two turns: what one leaves must not be overwritten by the next one's guess.
        pytest.param((400, 450), 128, 163 * 1024, marks=pytest.mark.slow),
        pytest.param((400, 390), 32, 99 * 1024, marks=pytest.mark.slow),
    ],
)
def test_groups_of_rows_in_turns(
    dtype: torch.dtype, lengths: tuple[int, int], head_dim: int, shared_bytes: int
) -> None:
    case = one_head(dtype, lengths, head_dim)
    machine = run_forward(case, shared_bytes=shared_bytes)
    products_of(machine)
    (shared,) = machine.launches
    assert shared.plan.blocks == case.tensors[0].shape[0]


# Blocks of their own for the groups of rows of one head, or turns of one block.
SPREAD, IN_TURNS = 2, 1


@pytest.mark.parametrize("multiprocessors", [SPREAD, IN_TURNS])
@pytest.mark.parametrize(
    "change", ["none", "a group is padding", "the last group is padding", "one group is exact"]
)
def test_groups_are_merged_whatever_they_hold(change: str, multiprocessors: int) -> None:
    case = make_pair(
        "shared_cross_attention",
        dtype=torch.bfloat16,
        batch=1,
        heads=1,
        time_a=150,
        time_b=160,
        head_dim=16,
        masks=True,
    )
    # Rows of the first group: in turns, as many as a block takes.
    first = 128 if multiprocessors == IN_TURNS else 96
    with torch.no_grad():
        if change == "a group is padding":
            case.options["mask_a"][:, :first] = False
        if change == "the last group is padding":
            case.options["mask_a"][:, first:] = False
            case.tensors[0][:, :, :first] *= 400.0
        if change == "one group is exact":
            case.tensors[0][:, :, first:] *= 400.0
    machine = {"shared_bytes": 99 * 1024, "multiprocessors": multiprocessors}
    shared, *merges = run_forward(case, slack=10.0, **machine).launches
    assert len(merges) == (multiprocessors == SPREAD)
    if change == "the last group is padding":
        return
    # Three products of 150 rows, in warps of 32, and 160 columns; the first strip of 16 columns is
    # multiplied once more, for all rows of a block. Nothing is done twice for padding.
    calm = 2 * 16 * (160 * 3 * 160 + 2 * 128 * 16)
    assert (shared.counters.mma_flops > calm) == (change == "one group is exact")


def spread(case: PairCase) -> None:
    case.tensors[0].mul_(40.0)


def one_row_far_out(case: PairCase) -> None:
    case.tensors[0][:, :, 3] *= 400.0


def one_column_far_out(case: PairCase) -> None:
    case.tensors[1][:, :, 5] *= -400.0


@elements
@pytest.mark.parametrize("change", [spread, one_row_far_out, one_column_far_out])
def test_scores_beyond_the_guard_are_exact(
    dtype: torch.dtype, change: Callable[[PairCase], None]
) -> None:
    case = make_pair(
        "shared_cross_attention",
        dtype=dtype,
        time_a=40,
        time_b=70,
        head_dim=16,
        masks=change is spread,
    )
    calm = products_of(run_forward(case))
    with torch.no_grad():
        change(case)
    # Which of two roundings of a score of 1e2 comes closer is a matter of luck.
    assert products_of(run_forward(case, slack=10.0)) > calm


def test_few_heads_are_tiled_in_both_directions() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.bfloat16, time_a=20, time_b=30)
    for machine in ({"multiprocessors": 108}, {"shared_bytes": 1024}):
        (launch,) = run_forward(case, **machine).launches
        assert "directed_forward" in launch.plan.kernel
