"""Shared cross-attention beside its peers, in one process.

    pytest benchmarks/bench_cross_attention.py

A time is taken only after the outputs and gradients agreed with float64 in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmer import shared_cross_attention
from mmer.kernels import available_backends

from .shapes import PAIR_SHAPES, PairShape

Implementation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def two_sdpa_calls(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
    """PyTorch's own fused attention, once for each direction."""
    out_a = scaled_dot_product_attention(qk_a, qk_b, v_b)
    return out_a, scaled_dot_product_attention(qk_b, qk_a, v_a)


def eager(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
    """One similarity matrix in eager PyTorch, as LightGlue computes it."""
    scores = torch.einsum("bhid,bhjd->bhij", qk_a, qk_b) * qk_a.shape[3] ** -0.5
    out_a = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=3), v_b)
    return out_a, torch.einsum("bhij,bhid->bhjd", scores.softmax(dim=2), v_a)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "two sdpa calls": two_sdpa_calls,
    "eager": eager,
    **{
        f"mmer {name}": partial(shared_cross_attention, backend=name)
        for name in available_backends()
    },
}


def make_inputs(shape: PairShape, dtype: torch.dtype) -> list[Tensor]:
    times = (shape.time_a, shape.time_b, shape.time_a, shape.time_b)
    return [
        torch.randn(shape.batch, shape.heads, time, shape.head_dim, dtype=dtype) for time in times
    ]


def gradients(implementation: Implementation, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.requires_grad_() for x in inputs]
    outputs = implementation(*leaves)
    return torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])


def check(implementation: Implementation, shape: PairShape, dtype: torch.dtype) -> None:
    """Compare with float64 on a slice of the batch; a wrong result is not worth timing."""
    small = shape._replace(batch=1, heads=1, time_a=min(shape.time_a, 512))
    inputs = make_inputs(small, dtype)
    truth = gradients(eager, [x.detach().double() for x in inputs])
    for x, y in zip(gradients(implementation, inputs), truth, strict=True):
        assert (x - y).abs().max() <= 64 * torch.finfo(dtype).eps * y.abs().max()


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", PAIR_SHAPES, ids=str)
def test_shared_cross_attention(
    benchmark: Any, shape: PairShape, name: str, direction: str
) -> None:
    implementation, dtype = IMPLEMENTATIONS[name], torch.float32
    check(implementation, shape, dtype)
    inputs = make_inputs(shape, dtype)
    benchmark.group = f"{shape} {direction}"
    benchmark.extra_info.update(shape._asdict(), dtype=str(dtype), threads=torch.get_num_threads())
    if direction == "forward":
        with torch.no_grad():
            benchmark.pedantic(implementation, inputs, rounds=5, warmup_rounds=1)
    else:
        benchmark.pedantic(gradients, (implementation, inputs), rounds=5, warmup_rounds=1)
