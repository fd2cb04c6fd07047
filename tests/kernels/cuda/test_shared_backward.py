"""Shared cross-attention backward with S computed once: tiles of rows, groups, and its choice."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import PairCase, make_pair
from tests.kernels.cuda.emulation import Machine, emulated_backend
from tests.kernels.cuda.test_kernels import with_gradients
from tests.kernels.test_cross_attention import check_error_rule
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")
A100, AD102 = 163 * 1024, 99 * 1024  # shared memory of a block


def case_of(
    dtype: torch.dtype,
    lengths: tuple[int, int],
    head_dim: int,
    batch: int | tuple[int, int] = 2,
) -> PairCase:
    time_a, time_b = lengths
    return make_pair(
        "shared_cross_attention",
        dtype=dtype,
        batch=batch,
        heads=1,
        time_a=time_a,
        time_b=time_b,
        head_dim=head_dim,
        masks=min(lengths) > 1,
    )


def backward_kernels(machine: Machine) -> list[tuple[str, int]]:
    """What ran backward beside row_state, and its blocks."""
    return [
        (launch.plan.kernel.removeprefix("mmer_"), launch.plan.blocks)
        for launch in machine.launches
        if "backward" in launch.plan.kernel or "merge_gradients" in launch.plan.kernel
    ]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("dtype", "lengths", "head_dim", "machine", "kernels"),
    [
        # One tile of rows: the shorter side, whichever it is.
        (
            torch.bfloat16,
            (100, 70),
            64,
            (1, A100),
            [("once_backward_bfloat16_64_rows128", 2)],
        ),
        (torch.float16, (150, 1), 24, (1, A100), [("once_backward_float16_32_rows64", 2)]),
        pytest.param(
            *(torch.bfloat16, (1, 150), 24, (1, A100)),
            [("once_backward_bfloat16_32_rows64", 2)],
            marks=SLOW,
        ),
        pytest.param(
            *(torch.bfloat16, (50, 97), 16, (1, A100)),
            [("once_backward_bfloat16_16_rows64", 2)],
            marks=SLOW,
        ),
        # Tiles of rows of the longer side, in one group and in several.
        (torch.bfloat16, (140, 170), 16, (1, A100), [("once_backward_bfloat16_16_rows128", 2)]),
        pytest.param(
            *(torch.float16, (140, 170), 32, (1, A100)),
            [("once_backward_float16_32_rows128", 2)],
            marks=SLOW,
        ),
        (
            torch.bfloat16,
            (140, 170),
            64,
            (4, A100),
            [("once_backward_bfloat16_64_rows128", 4), ("merge_gradients_bfloat16_64_rows128", 12)],
        ),
        # Where 128 rows do not fit, 64 do.
        pytest.param(
            *(torch.float16, (170, 140), 40, (4, AD102)),
            [("once_backward_float16_64_rows64", 4), ("merge_gradients_float16_64_rows64", 10)],
            marks=SLOW,
        ),
        # 128 columns: one tile of rows, whose fragments do not stay in registers.
        (torch.float16, (70, 40), 100, (1, A100), [("once_backward_float16_128_rows64", 2)]),
        pytest.param(
            *(torch.bfloat16, (64, 520), 128, (6, A100)),
            [("once_backward_bfloat16_128_rows64", 4), ("merge_gradients_bfloat16_128_rows64", 4)],
            marks=SLOW,
        ),
        # Groups of columns of one tile of rows, and of several.
        (
            torch.bfloat16,
            (60, 520),
            12,
            (6, A100),
            [("once_backward_bfloat16_16_rows64", 4), ("merge_gradients_bfloat16_16_rows64", 4)],
        ),
        pytest.param(
            *(torch.bfloat16, (290, 270), 64, (4, A100)),
            [("once_backward_bfloat16_64_rows128", 4), ("merge_gradients_bfloat16_64_rows128", 24)],
            marks=SLOW,
        ),
        # Groups of rows and of columns, of different sizes.
        pytest.param(
            *(torch.float16, (200, 290), 16, (12, A100)),
            [("once_backward_float16_16_rows128", 12), ("merge_gradients_float16_16_rows128", 40)],
            marks=SLOW,
        ),
    ],
)
def test_error_rule(
    dtype: torch.dtype,
    lengths: tuple[int, int],
    head_dim: int,
    machine: tuple[int, int],
    kernels: list[tuple[str, int]],
) -> None:
    multiprocessors, shared_bytes = machine
    limits = {"multiprocessors": multiprocessors, "shared_bytes": shared_bytes}
    case = case_of(dtype, lengths, head_dim)
    with emulated_backend(**limits) as emulated:
        check_error_rule(case, "cuda")
    assert backward_kernels(emulated)[: len(kernels)] == kernels


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(1, 2), (2, 1)])
def test_groups_with_a_broadcast_side(batch: tuple[int, int]) -> None:
    case = case_of(torch.bfloat16, (200, 290), 16, batch)
    with emulated_backend(multiprocessors=12) as emulated:
        check_error_rule(case, "cuda")
    assert backward_kernels(emulated)[0] == ("once_backward_bfloat16_16_rows128", 12)


def test_order_of_warps_does_not_change_a_bit() -> None:
    case = case_of(torch.bfloat16, (150, 140), 16)
    results = []
    for seed in (None, 1, 2):
        with emulated_backend(multiprocessors=4, seed=seed) as machine:
            results.append(with_gradients(case, "cuda"))
        names = [name for name, _ in backward_kernels(machine)]
        assert names == ["once_backward_bfloat16_16_rows128", "merge_gradients_bfloat16_16_rows128"]
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("lengths", "head_dim", "limits"),
    [
        ((20, 30), 16, {"shared_bytes": 1024}),
        ((4000, 4100), 16, {"multiprocessors": 108}),
        ((70, 80), 128, {}),
    ],
)
def test_owners_of_tiles_take_what_a_block_cannot(
    lengths: tuple[int, int], head_dim: int, limits: dict[str, int]
) -> None:
    case = case_of(torch.bfloat16, lengths, head_dim)
    with emulated_backend(**limits, execute=False) as machine:
        with_gradients(case, "cuda")
    (name,) = [name for name, _ in backward_kernels(machine)]
    assert name == f"shared_backward_bfloat16_{head_dim}_plain"


def test_few_heads_are_divided_into_groups() -> None:
    case = case_of(torch.bfloat16, (512, 500), 64)
    with emulated_backend(multiprocessors=108, execute=False) as machine:
        with_gradients(case, "cuda")
    assert backward_kernels(machine) == [
        ("once_backward_bfloat16_64_rows128", 16),
        ("merge_gradients_bfloat16_64_rows128", 64),
    ]
