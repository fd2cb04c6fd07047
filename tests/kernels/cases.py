"""Calls of the two cross-attention operators that tests share, and their oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mmer.kernels import (
    available_backends,
    bidirectional,
    bidirectional_cross_attention,
    chunked,
    shared,
    shared_cross_attention,
)
from mmer.kernels.pairs import pair_scores
from mmer.kernels.triton_backend import interpreted
from tests.error_rule import random_mask, random_tensor
from tests.kernels import oracle

OPERATORS = {
    "shared_cross_attention": shared_cross_attention,
    "bidirectional_cross_attention": bidirectional_cross_attention,
}


def backends_of_cpu_tensors() -> list[str]:
    """The backends that the tests' tensors can run on; Triton among them when it interprets."""
    names = {"cpu", "reference", *(("triton",) if interpreted() else ())}
    return [name for name in available_backends() if name in names]


@contextmanager
def references_in_own_dtype() -> Iterator[None]:
    """Let the references round every step to the dtype of their inputs, as plain PyTorch does.

    Otherwise they compute float16 and bfloat16 in float32 and round once. This is the *plain* of
    the error rule for all options.
    """

    def rounded_scores(x_a: Tensor, x_b: Tensor, *rest: Any) -> Tensor:
        return pair_scores(x_a, x_b, *rest).to(x_a.dtype)

    with ExitStack() as stack:
        for module in (shared.reference, bidirectional.reference, chunked.reference):
            stack.enter_context(mock.patch.object(module, "compute_dtype", lambda dtype: dtype))
        for module in (shared.reference, bidirectional.reference):
            stack.enter_context(mock.patch.object(module, "pair_scores", rounded_scores))
        yield


@dataclass
class PairCase:
    """Inputs of one call."""

    operator: str
    tensors: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, **changes: Any) -> tuple[Tensor, ...]:
        return OPERATORS[self.operator](*self.tensors, **{**self.options, **changes})

    def to(self, dtype: torch.dtype) -> PairCase:
        tensors = tuple(x.detach().to(dtype).requires_grad_() for x in self.tensors)
        return PairCase(self.operator, tensors, self.options)

    @property
    def sides(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(query, key, value) of the direction that updates A, and of the one that updates B."""
        if self.operator == "shared_cross_attention":
            qk_a, qk_b, v_a, v_b = self.tensors
            return (qk_a, qk_b, v_b), (qk_b, qk_a, v_a)
        q_a, k_a, v_a, q_b, k_b, v_b = self.tensors
        return (q_a, k_b, v_b), (q_b, k_a, v_a)

    def naive(self) -> tuple[Tensor, ...]:
        """out_a, out_b, lse_a, lse_b by the oracle's plain PyTorch in the dtype of the tensors."""
        (query_a, key_b, value_b), (query_b, key_a, value_a) = self.sides
        options, mask_a, mask_b = (
            self.options,
            self.options.get("mask_a"),
            self.options.get("mask_b"),
        )
        gap = None
        if "times_a" in options:
            gap = (
                options["times_a"][:, None, :, None] - options["times_b"][:, None, None, :]
            ).abs()
        batch = max(query_a.shape[0], query_b.shape[0])
        visible = oracle.pair_mask(
            batch, mask_a, mask_b, query_a.shape[2], query_b.shape[2], gap, options.get("max_gap")
        )
        scale = options.get("scale", query_a.shape[3] ** -0.5)
        decay = options.get("decay")
        out_a, lse_a = oracle.cross_attention(
            query_a, key_b, value_b, visible=visible, scale=scale, gap=gap, decay=decay
        )
        out_b, lse_b = oracle.cross_attention(
            query_b,
            key_a,
            value_a,
            visible=visible.transpose(-1, -2),
            scale=scale,
            gap=None if gap is None else gap.transpose(-1, -2),
            decay=decay,
        )
        return out_a, out_b, lse_a, lse_b


def make_pair(
    operator: str,
    *,
    batch: int | tuple[int, int] = 2,
    heads: int = 2,
    time_a: int = 17,
    time_b: int = 33,
    head_dim: int = 8,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float64,
    masks: bool = False,
    times: bool = False,
    seed: int = 0,
    **options: Any,
) -> PairCase:
    batch_a, batch_b = batch if isinstance(batch, tuple) else (batch, batch)
    value_dim = head_dim if value_dim is None else value_dim
    similar = 1 if operator == "shared_cross_attention" else 2

    def make(rows: int, time: int, dim: int, number: int) -> Tensor:
        return random_tensor(rows, heads, time, dim, dtype=dtype, seed=seed + number)

    side_a = [make(batch_a, time_a, head_dim, n) for n in range(similar)]
    side_b = [make(batch_b, time_b, head_dim, 2 + n) for n in range(similar)]
    v_a, v_b = make(batch_a, time_a, value_dim, 4), make(batch_b, time_b, value_dim, 5)
    tensors = (*side_a, *side_b, v_a, v_b) if similar == 1 else (*side_a, v_a, *side_b, v_b)
    rows = max(batch_a, batch_b)
    if masks:
        options["mask_a"] = random_mask(rows, time_a, seed=seed + 6)
        options["mask_b"] = random_mask(rows, time_b, seed=seed + 7)
    if times:
        generator = torch.Generator().manual_seed(seed + 8)
        options["times_a"] = torch.rand(rows, time_a, generator=generator) * 4
        options["times_b"] = torch.rand(rows, time_b, generator=generator) * 4
        options["decay"] = torch.linspace(0.1, 1.0, heads)
        options["max_gap"] = 1.5
    return PairCase(operator, tuple(x.requires_grad_() for x in tensors), options)
