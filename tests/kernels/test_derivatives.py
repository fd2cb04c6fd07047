"""First and second derivatives in float64, every differentiable argument, every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mmer.kernels import chunk_summaries, chunked_attention
from tests.error_rule import random_mask, random_tensor
from tests.kernels.cases import OPERATORS, make_pair

SMALL = {"heads": 2, "time_a": 3, "time_b": 4, "head_dim": 2, "value_dim": 3}
PAIRS: dict[str, dict[str, Any]] = {
    "plain": {"batch": 1},
    "masks": {"batch": 2, "masks": True},
    "times": {"batch": 1, "times": True},
    "dropout": {"batch": 1, "dropout_p": 0.4, "dropout_seed": 7},
    "broadcast": {"batch": (1, 2), "masks": True, "times": True},
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("variant", PAIRS)
def test_cross_attention(operator: str, variant: str) -> None:
    case = make_pair(operator, **SMALL, **PAIRS[variant])
    tensors = case.tensors
    if "decay" in case.options:
        tensors = (*tensors, case.options["decay"].double().requires_grad_())

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        options = dict(case.options)
        if "decay" in options:
            *inputs, options["decay"] = inputs
        # A row without keys has log-sum-exp -inf, of which no finite difference can be taken.
        with_lse = "mask_a" not in options and "max_gap" not in options
        return OPERATORS[operator](*inputs, **options, return_lse=with_lse)

    assert gradcheck(outputs, tensors)
    assert gradgradcheck(outputs, tensors)


CHUNKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "masks": {"masked": True, "lookahead": 1},
    "summaries": {"summarised": True, "masked": True},
    "newest summary": {"summarised": True, "max_summaries": 1, "lookback": 0},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 3, "summarised": True},
}


@pytest.mark.parametrize("variant", CHUNKS)
def test_chunked_attention(variant: str) -> None:
    options = dict(CHUNKS[variant])
    summarised = options.pop("summarised", False)
    mask = random_mask(2, 7, seed=1) if options.pop("masked", False) else None
    q, k, v = (
        random_tensor(2, 1, 7, dim, dtype=torch.float64, seed=dim).requires_grad_()
        for dim in (2, 2, 3)
    )
    inputs: tuple[Tensor, ...] = (q, k, v)
    if summarised:
        summaries = chunk_summaries(k, v, 2, mask=mask)
        inputs = (*inputs, *(x.detach().requires_grad_() for x in summaries))

    def outputs(q: Tensor, k: Tensor, v: Tensor, *summaries: Tensor) -> Any:
        return chunked_attention(
            q, k, v, 2, mask=mask, summaries=summaries or None, return_lse=mask is None, **options
        )

    assert gradcheck(outputs, inputs)
    assert gradgradcheck(outputs, inputs)


def test_gradient_reaches_keys_through_their_summaries() -> None:
    q, k, v = (
        random_tensor(1, 1, 8, 2, dtype=torch.float64, seed=n).requires_grad_() for n in range(3)
    )

    def outputs(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return chunked_attention(q, k, v, 2, 0, summaries=chunk_summaries(k, v, 2))

    assert gradcheck(outputs, (q, k, v))


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_tensor_in_several_places(operator: str) -> None:
    case = make_pair(operator, batch=1, heads=1, time_a=3, time_b=3, head_dim=2)
    x = case.tensors[0]

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        return OPERATORS[operator](*[x] * len(case.tensors))

    assert gradcheck(outputs, (x,))
    assert gradgradcheck(outputs, (x,))


def test_third_derivative() -> None:
    case = make_pair("shared_cross_attention", batch=1, heads=1, time_a=2, time_b=2, head_dim=1)
    inputs = case.tensors

    def slope(*inputs: Tensor) -> tuple[Tensor, ...]:
        out_a, out_b = OPERATORS["shared_cross_attention"](*inputs)
        loss = (out_a**3).sum() + out_b.sum()
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradgradcheck(slope, inputs)
