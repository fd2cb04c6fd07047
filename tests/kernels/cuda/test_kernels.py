"""The CUDA kernels' results, executed under emulation: never on a GPU here, and exactly its code.

Every launch is also checked for races, for reads of memory that nothing wrote and for accesses
outside of the tensors; a finding fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mmer.kernels import chunk_summaries, chunked_attention
from tests.error_rule import random_mask, random_tensor
from tests.kernels.cases import OPERATORS, PairCase, make_pair
from tests.kernels.cuda.emulation import Machine, emulated_backend
from tests.kernels.test_chunked_attention import check_error_rule as check_chunked_error_rule
from tests.kernels.test_chunked_attention import make_options
from tests.kernels.test_cross_attention import VARIANTS, check_error_rule, gradients
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")
operators = pytest.mark.parametrize("operator", OPERATORS)
one_of_each_size = pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
elements = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])


@pytest.fixture
def machine() -> Iterator[Machine]:
    with emulated_backend() as emulated:
        yield emulated


def assert_near(ours: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """Within a few roundings of the inputs' type, relative to each result's largest entry."""
    roundings = 4 if dtype == torch.float16 else 40
    for number, (x, y) in enumerate(zip(ours, wanted, strict=True)):
        finite = y.isfinite()
        assert torch.equal(x.isfinite(), finite), f"result {number}"
        if not x.numel():
            continue
        difference = torch.where(finite, x.double() - y.double(), 0.0).abs().max().item()
        largest = torch.where(finite, y.double(), 0.0).abs().max().item()
        assert difference <= roundings * torch.finfo(dtype).eps * max(1.0, largest), (
            f"result {number}: {difference:.3g}"
        )


def with_gradients(case: PairCase, backend: str, **options: Any) -> list[Tensor]:
    """Outputs, log-sum-exps and gradients, those through the log-sum-exps included."""
    tensors = list(case.tensors)
    if "decay" in case.options:
        case.options["decay"] = case.options["decay"].detach().requires_grad_()
        tensors.append(case.options["decay"])
    outputs = case.run(backend=backend, return_lse=True, **options)
    finite = [torch.where(x.isfinite(), x, 0.0) for x in outputs]
    return [*outputs, *gradients(tuple(finite), tuple(tensors))]


@operators
@one_of_each_size
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("machine")
def test_error_rule(operator: str, dtype: torch.dtype, variant: str) -> None:
    check_error_rule(make_pair(operator, dtype=dtype, **VARIANTS[variant]), "cuda")


@operators
@pytest.mark.parametrize("scale", [-8.0, -0.0])
@pytest.mark.parametrize("multiprocessors", [1, 100])
def test_scales_that_are_not_positive(operator: str, scale: float, multiprocessors: int) -> None:
    case = make_pair(
        operator, dtype=torch.float16, batch=1, time_a=70, time_b=130, head_dim=16, scale=scale
    )
    with emulated_backend(multiprocessors=multiprocessors):
        check_error_rule(case, "cuda")


@operators
@elements
@pytest.mark.parametrize(
    ("lengths", "head_dim"),
    [((97, 70), 32), ((1, 17), 16), ((63, 1), 16)]
    + [pytest.param((97, 70), 64, marks=pytest.mark.slow)]
    + [
        pytest.param(lengths, head_dim, marks=pytest.mark.slow)
        for head_dim in (16, 40, 128, 256)
        for lengths in ((17, 63), (97, 300))
    ],
)
@pytest.mark.usefixtures("machine")
def test_error_rule_for_lengths(
    operator: str, dtype: torch.dtype, lengths: tuple[int, int], head_dim: int
) -> None:
    case = make_pair(
        operator,
        dtype=dtype,
        heads=1,
        time_a=lengths[0],
        time_b=lengths[1],
        masks=True,
        head_dim=head_dim,
    )
    check_error_rule(case, "cuda")


@operators
@elements
@pytest.mark.parametrize(
    "head_dim", [40, *(pytest.param(dim, marks=pytest.mark.slow) for dim in (16, 128, 256))]
)
def test_error_rule_without_masks(operator: str, dtype: torch.dtype, head_dim: int) -> None:
    case = make_pair(
        operator, dtype=dtype, batch=1, heads=1, time_a=70, time_b=150, head_dim=head_dim
    )
    # So little shared memory leaves no room for S once.
    with emulated_backend(shared_bytes=1024):
        check_error_rule(case, "cuda")


@operators
@pytest.mark.usefixtures("machine")
def test_nothing_in_the_padding_is_seen(operator: str) -> None:
    case = make_pair(operator, dtype=torch.bfloat16, time_a=40, time_b=70, masks=True)
    calm = with_gradients(case, "cuda")
    with torch.no_grad():
        for x in case.tensors:
            mask = case.options["mask_a" if x.shape[2] == 40 else "mask_b"]
            x.masked_fill_(~mask[:, None, :, None], float("nan"))
    assert all(torch.equal(x, y) for x, y in zip(calm, with_gradients(case, "cuda"), strict=True))


@operators
@pytest.mark.usefixtures("machine")
def test_any_strides(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float16, time_a=20, time_b=30, head_dim=8)
    expected = case.run(backend="cuda")
    strided = tuple(
        torch.nn.functional.pad(x.detach(), (1, 2)).transpose(1, 2).contiguous().transpose(1, 2)
        for x in case.tensors
    )
    case.tensors = tuple(x[..., 1:-2] for x in strided)
    assert all(torch.equal(x, y) for x, y in zip(case.run(backend="cuda"), expected, strict=True))


@operators
@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.usefixtures("machine")
def test_empty_sequences(operator: str, lengths: tuple[int, int]) -> None:
    case = make_pair(operator, dtype=torch.float16, time_a=lengths[0], time_b=lengths[1])
    results = (with_gradients(case, name) for name in ("cuda", "reference"))
    assert_near(*results, torch.float16)


@operators
@one_of_each_size
@pytest.mark.parametrize("times", [False, True])
@pytest.mark.usefixtures("machine")
def test_dropout_and_log_sum_exp(operator: str, dtype: torch.dtype, times: bool) -> None:
    case = make_pair(operator, dtype=dtype, batch=1, time_a=70, time_b=50, times=times, value_dim=5)
    options = {"dropout_p": 0.3, "dropout_seed": 5}
    ours, wanted = (with_gradients(case, name, **options) for name in ("cuda", "reference"))
    assert_near(ours, wanted, dtype)


@operators
def test_tiles_beyond_the_largest_gap_are_left_out(machine: Machine, operator: str) -> None:
    case = make_pair(operator, dtype=torch.float16, batch=1, heads=1, time_a=300, time_b=260)
    case.options["times_a"] = torch.linspace(0, 60, 300)[None]
    case.options["times_b"] = torch.linspace(10, 70, 260)[None]
    products = []
    for gap in (2.0, 1e6):
        machine.launches.clear()
        case.options["max_gap"] = gap
        ours, wanted = (with_gradients(case, name) for name in ("cuda", "reference"))
        assert_near(ours, wanted, torch.float16)
        products.append(sum(launch.counters.mma_flops for launch in machine.launches))
    assert products[0] < 0.5 * products[1]


def run_chunked(
    inputs: tuple[Tensor, ...], backend: str, summarised: bool, **options: Any
) -> list[Tensor]:
    q, k, v = inputs
    if summarised:
        options["summaries"] = chunk_summaries(
            k, v, options["chunk_size"], mask=options.get("mask")
        )
    out, lse = chunked_attention(q, k, v, **options, return_lse=True, backend=backend)
    finite = torch.where(lse.isfinite(), lse, 0.0)
    return [out, lse, *gradients((out, finite), inputs)]


@one_of_each_size
@pytest.mark.parametrize("summarised", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 64, "lookback": 1, "lookahead": 1},
        {"chunk_size": 100, "lookback": 2, "causal": True, "scale": -0.5},
        {"chunk_size": 7, "lookback": 3, "max_summaries": 5, "dropout_p": 0.2, "dropout_seed": 1},
        pytest.param({"chunk_size": 1, "lookback": 50}, marks=pytest.mark.slow),
        pytest.param({"chunk_size": 5000, "causal": True}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("machine")
def test_chunked(options: dict[str, Any], summarised: bool, dtype: torch.dtype) -> None:
    inputs = tuple(
        random_tensor(1, 2, 200, dim, dtype=dtype, seed=n).requires_grad_()
        for n, dim in enumerate((8, 8, 5))
    )
    if not summarised:
        options = {key: value for key, value in options.items() if key != "max_summaries"}
    options = {**options, "mask": random_mask(1, 200, seed=4)}
    ours, wanted = (
        run_chunked(inputs, name, summarised, **options) for name in ("cuda", "reference")
    )
    assert_near(ours, wanted, dtype)


@pytest.mark.parametrize("summarised", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 64, "lookahead": 1},
        {"chunk_size": 7, "lookback": 9, "causal": True},
        {"chunk_size": 5000},
    ],
)
@pytest.mark.usefixtures("machine")
def test_chunked_without_mask(options: dict[str, Any], summarised: bool) -> None:
    inputs = tuple(
        random_tensor(1, 2, 200, 8, dtype=torch.float16, seed=n).requires_grad_() for n in range(3)
    )
    ours, wanted = (
        run_chunked(inputs, name, summarised, **options) for name in ("cuda", "reference")
    )
    assert_near(ours, wanted, torch.float16)


@elements
@pytest.mark.parametrize("summarised", [False, True])
@pytest.mark.usefixtures("machine")
def test_chunked_error_rule(dtype: torch.dtype, summarised: bool) -> None:
    inputs = tuple(
        random_tensor(2, 1, 150, 32, dtype=dtype, seed=n).requires_grad_() for n in range(3)
    )
    options = make_options(150, chunk_size=32, masked=True, summarised=summarised)
    check_chunked_error_rule(inputs, options, "cuda")


@operators
def test_order_of_warps_does_not_change_a_bit(operator: str) -> None:
    case = make_pair(operator, dtype=torch.bfloat16, batch=1, time_a=70, time_b=90, head_dim=16)
    results = []
    for seed in (None, 1, 2):
        with emulated_backend(seed=seed):
            results.append(with_gradients(case, "cuda"))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.slow
@operators
def test_later_architectures(operator: str) -> None:
    case = make_pair(operator, dtype=torch.bfloat16, batch=1, time_a=50, time_b=70, head_dim=64)
    results = []
    for arch in ("sm_80", "sm_90", "sm_120"):
        with emulated_backend(arch=arch):
            results.append(with_gradients(case, "cuda"))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
