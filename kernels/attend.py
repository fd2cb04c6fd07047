"""One direction of attention in plain PyTorch: what the reference of every operator is made of.

A *direction* takes scores, the visibility of each pair, values and a dropout mask, and returns the
output and the log-sum-exp of each query. Its derivative is written out beside it, as the fused
kernels compute it, and is itself
differentiable: second derivatives come from autograd through it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from .philox import keep_scale, keep_threshold, uniform_bits

Function = TypeVar("Function", bound=Callable[..., Any])


def in_full_precision(function: Function) -> Function:
    """Run a function of tensors outside of autocast, which would round its products."""

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Any:
        device_type = first.device.type
        if not torch.amp.is_autocast_available(device_type):
            return function(first, *rest)
        with torch.autocast(device_type, enabled=False):
            return function(first, *rest)

    return cast(Function, run)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are accumulated in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x`` (batch, heads, time, dim) with its padded steps set to 0, whatever they hold.

    Args:
        x: any values; NaN and infinity in padded steps vanish, and so do the gradients there.
        mask: (batch, time) bool, True = real, or None.
    """
    if mask is None:
        return x
    return torch.where(mask[:, None, :, None], x, 0.0)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the visible keys, and its log-sum-exp; 0 and -inf for a row that sees no key.

    Args:
        scores: (..., queries, keys).
        visible: bool, broadcasts to ``scores``, or None for all.

    Returns:
        weights (..., queries, keys) and lse (..., queries), natural logarithm.
    """
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -math.inf)
    # The result does not depend on the reference point, so no gradient has to flow through it.
    row_max = scores.detach().amax(dim=-1, keepdim=True)
    row_max = torch.where(row_max == -math.inf, 0.0, row_max)
    exponentials = torch.exp(scores - row_max)
    row_sum = exponentials.sum(dim=-1, keepdim=True)
    sees_a_key = row_sum > 0
    safe_sum = torch.where(sees_a_key, row_sum, 1.0)
    lse = torch.where(sees_a_key, row_max + torch.log(safe_sum), -math.inf)
    return exponentials / safe_sum, lse.squeeze(-1)


class Dropout(NamedTuple):
    """Which attention weights of one direction are kept, and the factor on those that are."""

    keep: Tensor
    scale: float

    def __call__(self, weights: Tensor) -> Tensor:
        """Return ``weights`` with the dropped ones set to 0 and the others scaled."""
        return torch.where(self.keep, weights * self.scale, 0.0)


def draw_dropout(
    seed: Tensor | None,
    dropout_p: float,
    batch: int,
    heads: int,
    query: Tensor,
    key: Tensor,
    stream: int,
) -> Dropout | None:
    """Draw the dropout of one direction.

    Args:
        seed: 0-dim int64 tensor, or None for no dropout.
        dropout_p: probability that a weight is dropped.
        batch: batch size.
        heads: number of heads.
        query: int64 time indices of the queries, (..., queries, 1).
        key: int64 time indices of the keys, (..., 1, keys).
        stream: number of the softmax inside the operator.

    Returns:
        keep (batch, heads, ..., queries, keys) and its scale, or None for no dropout.
    """
    if seed is None or dropout_p == 0.0:
        return None
    row = torch.arange(batch * heads, device=query.device).view(batch, heads, *[1] * query.dim())
    bits = uniform_bits(seed.to(query.device), row, query, key, stream)
    return Dropout(bits >= keep_threshold(dropout_p), keep_scale(dropout_p))


def attend(
    scores: Tensor, visible: Tensor | None, value: Tensor, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """``out = dropout(softmax(scores)) value``.

    Args:
        scores: (..., queries, keys).
        visible: bool, broadcasts to ``scores``, or None.
        value: (..., keys, value_dim).
        dropout: dropout of the weights, or None.

    Returns:
        out (..., queries, value_dim) and lse (..., queries).
    """
    weights, lse = masked_softmax(scores, visible)
    if dropout is not None:
        weights = dropout(weights)
    return weights @ value, lse


def attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    scores: Tensor,
    visible: Tensor | None,
    value: Tensor,
    dropout: Dropout | None,
) -> tuple[Tensor, Tensor]:
    """Derivative of :func:`attend`, from its inputs alone.

    With weights P and ``dP = dropout(dO V^T)``: ``dV = dropout(P)^T dO`` and
    ``dS = P (dP - rowsum(P dP) + dLSE)`` (Dao et al., FlashAttention, 2022, appendix B.2).

    Args:
        grad_out: (..., queries, value_dim).
        grad_lse: (..., queries), or None for 0.
        scores: (..., queries, keys).
        visible: bool, broadcasts to ``scores``, or None.
        value: (..., keys, value_dim).
        dropout: the forward's dropout, or None.

    Returns:
        grad_scores (..., queries, keys) and grad_value (..., keys, value_dim).
    """
    weights, lse = masked_softmax(scores, visible)
    # A gradient that arrives at a row without visible keys is dropped, also when it is NaN.
    sees_a_key = (lse > -math.inf)[..., None]
    grad_out = torch.where(sees_a_key, grad_out, 0.0)
    grad_weights = grad_out @ value.transpose(-1, -2)
    kept_weights = weights
    if dropout is not None:
        grad_weights, kept_weights = dropout(grad_weights), dropout(weights)
    correction = (weights * grad_weights).sum(dim=-1, keepdim=True)
    if grad_lse is not None:
        correction = correction - torch.where(sees_a_key, grad_lse[..., None], 0.0)
    grad_scores = weights * (grad_weights - correction)
    return grad_scores, kept_weights.transpose(-1, -2) @ grad_out


def sum_to(gradient: Tensor, like: Tensor) -> Tensor:
    """Reduce ``gradient`` over the axes ``like`` was broadcast along, and give it its dtype."""
    return gradient.sum_to_size(like.shape).to(like.dtype)
