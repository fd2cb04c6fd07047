"""The operators a second time, as naively as possible: dense masks, one softmax, loops over chunks.

Shares no code with the package, so that both would have to be wrong in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_attention(scores: Tensor, visible: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Plain softmax attention; rows without a visible key give 0 and -inf."""
    scores = scores.masked_fill(~visible, -math.inf)
    empty = ~visible.expand_as(scores).any(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores.detach().double(), dim=-1)
    return weights.to(value.dtype) @ value, lse


def pair_mask(
    batch: int,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    time_a: int,
    time_b: int,
    gap: Tensor | None,
    max_gap: float | None,
) -> Tensor:
    """Visibility of each pair, (batch, 1, time_a, time_b)."""
    visible = torch.ones(batch, 1, time_a, time_b, dtype=torch.bool)
    if mask_a is not None:
        visible &= mask_a[:, None, :, None]
    if mask_b is not None:
        visible &= mask_b[:, None, None, :]
    if gap is not None and max_gap is not None:
        visible &= gap <= max_gap
    return visible


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visible: Tensor,
    scale: float,
    gap: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One direction of either cross-attention."""
    scores = (query @ key.transpose(-1, -2)) * scale
    if decay is not None and gap is not None:
        scores = scores - (decay[:, None, None] * gap).to(scores.dtype)
    return softmax_attention(scores, visible, value)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    lookback: int,
    lookahead: int,
    causal: bool,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    summaries: tuple[Tensor, Tensor] | None = None,
    max_summaries: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunked attention with a dense (time, time + chunks) score matrix."""
    batch, _, time, head_dim = q.shape
    real = torch.ones(batch, time, dtype=torch.bool) if mask is None else mask
    chunks = -(-time // chunk_size)
    visible = torch.zeros(batch, 1, time, time + chunks, dtype=torch.bool)
    bias = torch.zeros(batch, 1, 1, time + chunks, dtype=q.dtype)
    for i in range(time):
        for j in range(time):
            near = -lookback <= j // chunk_size - i // chunk_size <= lookahead
            if (j <= i and i // chunk_size - j // chunk_size <= lookback) if causal else near:
                visible[:, 0, i, j] = real[:, i] & real[:, j]
        for c in range(chunks):
            age = i // chunk_size - lookback - c
            newest = math.inf if max_summaries is None else max_summaries
            if summaries is not None and 1 <= age <= newest:
                count = real[:, c * chunk_size : (c + 1) * chunk_size].sum(dim=1)
                visible[:, 0, i, time + c] = real[:, i] & (count > 0)
                bias[:, 0, 0, time + c] = count.clamp(min=1).double().log().to(q.dtype)
    k_s, v_s = (
        (
            k.new_zeros(*k.shape[:2], chunks, k.shape[3]),
            v.new_zeros(*v.shape[:2], chunks, v.shape[3]),
        )
        if summaries is None
        else summaries
    )
    key, value = torch.cat((k, k_s), dim=2), torch.cat((v, v_s), dim=2)
    factor = head_dim**-0.5 if scale is None else scale
    scores = (q @ key.transpose(-1, -2)) * factor + bias
    return softmax_attention(scores, visible, value)
