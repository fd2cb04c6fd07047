"""Chunked temporal attention in plain PyTorch. The definition.

A query at time i lies in chunk c = i // chunk_size and sees the real keys of chunks c - lookback ..
c + lookahead (only j <= i if causal) and, where summaries are given, one mean key and value for
each of the newest ``max_summaries`` chunks older than its lookback, each with ``log(number of real
tokens in that chunk)`` added to its logit, in one softmax.

Every chunk's window is laid out on an axis of its own, so the largest tensor has
time * chunk_size * (lookback + 1 + lookahead) scores: no time x time matrix is formed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..attend import (
    Dropout,
    attend,
    attend_backward,
    compute_dtype,
    draw_dropout,
    in_full_precision,
    zero_padding,
)


class ChunkOptions(NamedTuple):
    """Options of chunked attention, validated, in the order of the registered operator's schema."""

    summary_k: Tensor | None
    summary_v: Tensor | None
    mask: Tensor | None
    dropout_seed: Tensor | None
    chunk_size: int
    lookback: int
    lookahead: int
    causal: bool
    max_summaries: int
    scale: float
    dropout_p: float
    deterministic: bool


class _Windows:
    """Lays out side by side, for each chunk, ``count`` chunks from its ``first`` neighbour on."""

    def __init__(self, first: int, count: int, chunks: int) -> None:
        # Neighbours that no chunk has are left out, so a huge lookback costs no more than the
        # sequence's length.
        self.first = max(first, 1 - chunks)
        self.count = max(min(first + count, chunks) - self.first, 0)
        self.chunks = chunks
        self.before = max(-self.first, 0)
        self.after = max(self.first + self.count - 1, 0)

    def gather(self, x: Tensor) -> Tensor:
        """(batch, heads, chunks, steps, dim) -> (batch, heads, chunks, count * steps, dim)."""
        padded = pad(x, (0, 0, 0, 0, self.before, self.after))
        slices = [padded[:, :, n : n + self.chunks] for n in range(self.count)]
        return torch.cat(slices, dim=3) if slices else x[:, :, :, :0]

    def scatter(self, windows: Tensor, steps: int) -> Tensor:
        """Transpose of :meth:`gather`: add up what the windows hold of each chunk, in order."""
        batch, heads, chunks, _, dim = windows.shape
        padded_chunks = self.before + chunks + self.after
        total = windows.new_zeros(batch, heads, padded_chunks, steps, dim)
        for n, part in enumerate(windows.split(steps, dim=3) if self.count else ()):
            total = total + pad(part, (0, 0, 0, 0, n, padded_chunks - chunks - n))
        return total[:, :, self.before : self.before + chunks]

    def positions(self, steps: int, device: torch.device) -> Tensor:
        """Time index of each window's keys, (chunks, count * steps); may lie outside the time."""
        chunk = torch.arange(self.chunks, device=device)[:, None]
        offset = torch.arange(self.count * steps, device=device)
        return (chunk + self.first) * steps + offset


class _Layout(NamedTuple):
    """One sequence in chunks, with the windows that its queries see."""

    query: Tensor  # (batch, heads, chunks, chunk_size, head_dim)
    key: Tensor  # (batch, heads, chunks, window, head_dim), the summaries behind the tokens
    value: Tensor  # (batch, heads, chunks, window, value_dim)
    bias: Tensor | None  # (batch, 1, chunks, 1, window) logits of the summaries' token counts
    visible: Tensor  # (batch or 1, 1, chunks, chunk_size, window)
    dropout: Dropout | None
    tokens: _Windows
    summaries: _Windows
    token_keys: int

    def scores(self, scale: float) -> Tensor:
        scores = scale * (self.query @ self.key.transpose(-1, -2))
        return scores if self.bias is None else scores + self.bias


def token_counts(mask: Tensor | None, time: int, chunk_size: int, device: torch.device) -> Tensor:
    """Number of real tokens in each chunk, (batch or 1, chunks) int64."""
    if mask is None:
        mask = torch.ones(1, time, dtype=torch.bool, device=device)
    chunks = -(-time // chunk_size)
    padded = pad(mask, (0, chunks * chunk_size - time))
    return padded.view(mask.shape[0], chunks, chunk_size).sum(dim=2)


def split_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """(batch, heads, time, dim) -> (batch, heads, chunks, chunk_size, dim), zeros at the end."""
    batch, heads, time, dim = x.shape
    chunks = -(-time // chunk_size)
    padded = pad(x, (0, 0, 0, chunks * chunk_size - time))
    return padded.reshape(batch, heads, chunks, chunk_size, dim)


def _lay_out(q: Tensor, k: Tensor, v: Tensor, options: ChunkOptions) -> _Layout:
    batch, heads, time, _ = q.shape
    device, chunk_size, mask = q.device, options.chunk_size, options.mask
    dtype = compute_dtype(q.dtype)
    chunks = -(-time // chunk_size)
    lookahead = 0 if options.causal else options.lookahead
    tokens = _Windows(-options.lookback, options.lookback + 1 + lookahead, chunks)
    query, key, value = (
        split_chunks(zero_padding(x.to(dtype), mask), chunk_size) for x in (q, k, v)
    )

    query_position = torch.arange(chunks * chunk_size, device=device).view(chunks, chunk_size, 1)
    key_position = tokens.positions(chunk_size, device)[:, None, :]  # (chunks, 1, window)
    real = torch.ones(1, time, dtype=torch.bool, device=device) if mask is None else mask
    real_query = split_chunks(
        real[:, None, :, None], chunk_size
    )  # (batch, 1, chunks, chunk_size, 1)
    real_key = tokens.gather(real_query).transpose(-1, -2)  # (batch, 1, chunks, 1, window)
    visible = real_query & real_key
    if options.causal:
        visible = visible & (key_position <= query_position)
    key, value = tokens.gather(key), tokens.gather(value)
    token_keys = key.shape[3]
    seed, dropout_p = options.dropout_seed, options.dropout_p
    dropout = draw_dropout(seed, dropout_p, batch, heads, query_position, key_position, stream=0)

    bias: Tensor | None = None
    last_summary = -options.lookback - 1
    summaries = _Windows(last_summary + 1 - options.max_summaries, options.max_summaries, chunks)
    if options.summary_k is not None and options.summary_v is not None:
        count = token_counts(mask, time, chunk_size, device)[:, None, :, None, None]
        # Zeroed like padding: the mean of a chunk without real tokens may be anything.
        summary_k, summary_v = (
            summaries.gather(torch.where(count > 0, x.to(dtype)[:, :, :, None], 0.0))
            for x in (options.summary_k, options.summary_v)
        )
        seen = summaries.gather(count).transpose(-1, -2)  # (batch, 1, chunks, 1, summaries)
        key, value = torch.cat((key, summary_k), dim=3), torch.cat((value, summary_v), dim=3)
        visible = torch.cat((visible, real_query & (seen > 0)), dim=-1)
        bias = torch.cat(
            (
                seen.new_zeros(*seen.shape[:-1], token_keys, dtype=dtype),
                seen.clamp(min=1).to(dtype).log(),
            ),
            dim=-1,
        )
        summary_position = summaries.positions(1, device)[:, None, :]
        summary_dropout = draw_dropout(
            seed, dropout_p, batch, heads, query_position, summary_position, stream=1
        )
        if dropout is not None and summary_dropout is not None:
            keep = torch.cat((dropout.keep, summary_dropout.keep), dim=-1)
            dropout = Dropout(keep, dropout.scale)
    return _Layout(query, key, value, bias, visible, dropout, tokens, summaries, token_keys)


@in_full_precision
def forward(q: Tensor, k: Tensor, v: Tensor, options: ChunkOptions) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, time, value_dim) and lse (batch, heads, time)."""
    time = q.shape[2]
    layout = _lay_out(q, k, v, options)
    out, lse = attend(layout.scores(options.scale), layout.visible, layout.value, layout.dropout)
    return out.flatten(2, 3)[:, :, :time].to(q.dtype), lse.flatten(2, 3)[:, :, :time]


@in_full_precision
def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: ChunkOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of q, k, v and of the summaries' keys and values."""
    time, chunk_size = q.shape[2], options.chunk_size
    layout = _lay_out(q, k, v, options)
    grad_out = split_chunks(grad_out.to(layout.query.dtype), chunk_size)
    if grad_lse is not None:
        grad_lse = split_chunks(grad_lse[..., None], chunk_size).squeeze(-1)
    scores = layout.scores(options.scale)
    grad_scores, grad_value = attend_backward(
        grad_out, grad_lse, scores, layout.visible, layout.value, layout.dropout
    )
    grad_query = options.scale * (grad_scores @ layout.key)
    grad_key = options.scale * (grad_scores.transpose(-1, -2) @ layout.query)

    def token_gradient(windows: Tensor, like: Tensor) -> Tensor:
        chunks = layout.tokens.scatter(windows[:, :, :, : layout.token_keys], chunk_size)
        return chunks.flatten(2, 3)[:, :, :time].to(like.dtype)

    def summary_gradient(windows: Tensor, like: Tensor | None) -> Tensor | None:
        if like is None:
            return None
        chunks = layout.summaries.scatter(windows[:, :, :, layout.token_keys :], 1)
        return chunks.squeeze(3).to(like.dtype)

    return (
        grad_query.flatten(2, 3)[:, :, :time].to(q.dtype),
        token_gradient(grad_key, k),
        token_gradient(grad_value, v),
        summary_gradient(grad_key, options.summary_k),
        summary_gradient(grad_value, options.summary_v),
    )
