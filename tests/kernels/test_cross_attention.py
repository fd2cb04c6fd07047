"""Both cross-attention operators against an oracle in float64, on every backend of this machine."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.error_rule import LENGTHS, assert_within_error_rule
from tests.kernels.cases import OPERATORS, PairCase, backends_of_cpu_tensors, make_pair

BACKENDS = backends_of_cpu_tensors()
operators = pytest.mark.parametrize("operator", OPERATORS)
backends = pytest.mark.parametrize("backend", BACKENDS)
# The others compute in float32; test_cpu_backend.py checks that they refuse float64.
float64_backends = pytest.mark.parametrize("backend", ["reference"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"masks": True},
    "times": {"times": True},
    "masks and times": {"masks": True, "times": True},
    "value_dim": {"value_dim": 5, "masks": True},
    "broadcast A": {"batch": (1, 3), "masks": True},
    "broadcast B": {"batch": (3, 1), "times": True},
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -0.4, "masks": True},
    "scale 0": {"scale": 0.0},
    "head_dim 1": {"head_dim": 1},
    "head_dim 6": {"head_dim": 6, "masks": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def gradients(outputs: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(99)
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs]
    loss = sum((x.double() * y).sum() for x, y in zip(outputs, directions, strict=True))
    return list(torch.autograd.grad(loss, tensors))


def check_error_rule(case: PairCase, backend: str, *, slack: float = 1.0) -> None:
    truth = case.to(torch.float64)
    wanted = truth.naive()[:2]
    plain = case.naive()[:2]
    ours = case.run(backend=backend)
    assert_within_error_rule(ours, plain, wanted, factor=2.0 * slack)
    # Plain PyTorch has NaN gradients where a softmax row is empty: the oracle's masking avoids it.
    assert_within_error_rule(
        gradients(ours, case.tensors),
        gradients(plain, case.tensors),
        gradients(wanted, truth.tensors),
        factor=3.0 * slack,
    )


@operators
@float64_backends
@variants
def test_float64_is_exact(operator: str, backend: str, variant: str) -> None:
    case = make_pair(operator, **VARIANTS[variant])
    ours = case.run(backend=backend, return_lse=True)
    for x, y in zip(ours, case.naive(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@operators
@backends
@dtypes
@variants
def test_error_rule(operator: str, backend: str, dtype: torch.dtype, variant: str) -> None:
    check_error_rule(make_pair(operator, dtype=dtype, **VARIANTS[variant]), backend)


@operators
@backends
@dtypes
@pytest.mark.parametrize("lengths", LENGTHS)
def test_error_rule_for_lengths(
    operator: str, backend: str, dtype: torch.dtype, lengths: tuple[int, int]
) -> None:
    time_a, time_b = lengths
    case = make_pair(operator, dtype=dtype, time_a=time_a, time_b=time_b, masks=True, head_dim=16)
    check_error_rule(case, backend)


@operators
@backends
@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_random_shapes_and_options(operator: str, backend: str, data: st.DataObject) -> None:
    draw = data.draw
    case = make_pair(
        operator,
        batch=draw(st.sampled_from([1, 2, (1, 2), (3, 1)])),
        heads=draw(st.integers(1, 3)),
        time_a=draw(st.integers(0, 40)),
        time_b=draw(st.integers(0, 40)),
        head_dim=draw(st.integers(1, 20)),
        value_dim=draw(st.integers(1, 20)),
        dtype=torch.float32,
        masks=draw(st.booleans()),
        times=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    if 0 in (case.sides[0][0].shape[2], case.sides[1][0].shape[2]):
        outputs = case.run(backend=backend, return_lse=True)
        assert all((x == 0).all() for x in outputs[:2])
        assert all((x == -math.inf).all() for x in outputs[2:])
        for gradient in gradients(outputs[:2], case.tensors):
            assert (gradient == 0).all()
    else:
        check_error_rule(case, backend)


@operators
@backends
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_leaks_from_padding(operator: str, backend: str, poison: float) -> None:
    case = make_pair(operator, masks=True, times=True, dtype=torch.float32)
    clean = case.run(backend=backend)
    clean_gradients = gradients(clean, case.tensors)

    options = dict(case.options)
    masks = {"a": options["mask_a"], "b": options["mask_b"]}
    for side, mask in masks.items():
        options[f"times_{side}"] = options[f"times_{side}"].masked_fill(~mask, poison)
    lengths = {17: masks["a"], 33: masks["b"]}
    tensors = tuple(
        x.detach().masked_fill(~lengths[x.shape[2]][:, None, :, None], poison).requires_grad_()
        for x in case.tensors
    )
    poisoned = PairCase(operator, tensors, options)
    dirty = poisoned.run(backend=backend)
    upstream = []
    for x in dirty:
        mask = lengths[x.shape[2]][:, None, :, None]
        assert (x.masked_select(~mask) == 0).all()
        upstream.append(torch.ones_like(x).masked_fill(~mask, poison))
    for x, y in zip(dirty, clean, strict=True):
        assert torch.equal(x, y)
    dirty_gradients = torch.autograd.grad(dirty, tensors, upstream)
    for x, gradient, y in zip(tensors, dirty_gradients, clean_gradients, strict=True):
        mask = lengths[x.shape[2]][:, None, :, None]
        assert gradient.isfinite().all()
        assert (gradient.masked_select(~mask) == 0).all()
        assert y.isfinite().all()


@operators
@backends
def test_rows_without_a_visible_key(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    case.options["mask_b"] = torch.zeros(2, 33, dtype=torch.bool)
    out_a, out_b, lse_a, lse_b = case.run(backend=backend, return_lse=True)
    assert (out_a == 0).all()
    assert (out_b == 0).all()
    assert (lse_a == -math.inf).all()
    assert (lse_b == -math.inf).all()
    for gradient in torch.autograd.grad((out_a.sum(), lse_a.sum()), case.tensors):
        assert (gradient == 0).all()


@operators
@backends
def test_scores_far_apart(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32, scale=1.0)
    with torch.no_grad():
        case.tensors[0].mul_(1e3)
    # The Triton backward starts from the saved log-sum-exp: at 1e4, float32 keeps it to 5e-4, and
    # every weight of its row is as wrong.
    check_error_rule(case, backend, slack=100.0 if backend == "triton" else 1.0)


@operators
@backends
def test_strides_are_free(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    swapped = tuple(
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for x in case.tensors
    )
    other = PairCase(operator, swapped, case.options)
    for x, y in zip(case.run(backend=backend), other.run(backend=backend), strict=True):
        torch.testing.assert_close(x, y)


@operators
@backends
def test_same_bits_every_time(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32, masks=True, times=True)
    runs = []
    for _ in range(2):
        outputs = case.run(backend=backend)
        runs.append([*outputs, *gradients(outputs, case.tensors)])
    for x, y in zip(*runs, strict=True):
        assert torch.equal(x, y)


@operators
@backends
def test_clock_readings_do_not_lose_their_differences(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32, times=True)
    shifted = dict(case.options)
    for side in ("times_a", "times_b"):
        shifted[side] = shifted[side].double() + 1.7e9
    other = PairCase(operator, case.tensors, shifted)
    for x, y in zip(case.run(backend=backend), other.run(backend=backend), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_both_operators_agree_when_queries_are_keys() -> None:
    shared = make_pair("shared_cross_attention", masks=True, times=True)
    qk_a, qk_b, v_a, v_b = shared.tensors
    separate = PairCase(
        "bidirectional_cross_attention", (qk_a, qk_a, v_a, qk_b, qk_b, v_b), shared.options
    )
    for x, y in zip(shared.run(return_lse=True), separate.run(return_lse=True), strict=True):
        torch.testing.assert_close(x, y)
