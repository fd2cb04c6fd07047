"""From tokens at their own times to the frames that are asked for, or to one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .stem import Tokens

MIN_CELL = 1e-3
"""Seconds that a frame's cell has at least: a frame without neighbours is read at its time."""


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the entries where ``mask`` is True; the others are 0."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=dim).masked_fill(~mask, 0.0)


def to_frames(tokens: Tokens, times: Tensor, mask: Tensor | None = None) -> Tensor:
    """Bring tokens to output times, whichever of the two rates is higher.

    The tokens' values, linear between real tokens and constant beyond the first and the last, are
    averaged over the frame's cell, which reaches half-way to the real frames before and after it (a
    first or last frame reaches as far outwards as inwards). So many tokens in one frame are
    averaged, between few tokens it is interpolated. Running sums do it: time and memory grow with
    tokens + frames, not with their product.

    Args:
        tokens: tokens of one modality, in any order of time.
        times: (batch, frames) seconds, not decreasing where real.
        mask: (batch, frames) bool, True = real; None means that every frame is real.

    Returns:
        (batch, frames, embed_dim); 0 for an item without real tokens.
    """
    values = tokens.values
    knots = tokens.times.to(torch.float64).masked_fill(~tokens.mask, math.inf)
    knots, order = knots.sort(dim=1, stable=True)
    values = _take_rows(values, order)
    last = (tokens.mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    start, end = frame_cells(times, mask)
    edges = torch.cat((start, end), dim=1)
    # The first token after each edge; the one before it is its left neighbour.
    after = torch.searchsorted(knots, edges, right=True)
    left, right = (after - 1).clamp(min=0), torch.minimum(after, last)
    knots = knots.masked_fill(knots == math.inf, 0.0)

    steps = knots.diff(dim=1)[..., None]
    trapezoids = 0.5 * steps * (values[:, 1:] + values[:, :-1])
    integral = nn.functional.pad(trapezoids.cumsum(dim=1), (0, 0, 1, 0))

    reach = edges - knots.gather(1, left)
    span = knots.gather(1, right) - knots.gather(1, left)
    right_weight = torch.where(span > 0, reach.square() / (2.0 * span.clamp(min=1e-12)), 0.0)
    left_weight = reach - right_weight
    # Differences of long integrals are taken in float64; only then is precision dropped. That goes
    # for the weights too where both edges of a cell lie between the same tokens, or beyond them.
    after_start, after_end = after.chunk(2, dim=1)
    same = after_start == after_end
    partial = torch.zeros_like(values[:, :1])
    for weight, row in ((left_weight, left), (right_weight, right)):
        from_start, from_end = weight.chunk(2, dim=1)
        from_end = from_end - torch.where(same, from_start, 0.0)
        from_start = torch.where(same, 0.0, -from_start)
        weight = torch.cat((from_start, from_end), dim=1).to(values.dtype)
        partial = partial + weight[..., None] * _take_rows(values, row)
    whole_start, whole_end = _take_rows(integral, left).chunk(2, dim=1)
    part_start, part_end = partial.chunk(2, dim=1)
    total = (whole_end - whole_start).to(values.dtype) + part_start + part_end
    return total / (end - start).to(values.dtype)[..., None]


def frame_cells(times: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Start and end of each frame's cell, (batch, frames) float64 seconds."""
    times = times.to(torch.float64)
    if mask is None:
        mask = torch.ones_like(times, dtype=torch.bool)
    times = times.masked_fill(~mask, 0.0)
    none = times.new_full((times.shape[0], 1), math.inf)
    latest = times.masked_fill(~mask, -math.inf).cummax(dim=1).values
    earliest = times.masked_fill(~mask, math.inf).flip(1).cummin(dim=1).values.flip(1)
    before = 0.5 * (times - torch.cat((-none, latest), dim=1)[:, :-1])
    after = 0.5 * (torch.cat((earliest, none), dim=1)[:, 1:] - times)
    before, after = (
        torch.where(before.isfinite(), before, after),
        torch.where(after.isfinite(), after, before),
    )
    least = 0.5 * MIN_CELL
    before, after = (torch.where(x.isfinite(), x, 0.0).clamp(min=least) for x in (before, after))
    return times - before, times + after


class TimePooling(nn.Module):
    """Weighted mean over the real tokens of a sequence: learnable attention, or equal weights.

    State dict: ``score.weight`` (1, embed_dim) and ``score.bias`` with attention.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        attention: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.score = nn.Linear(embed_dim, 1, device=device, dtype=dtype) if attention else None

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (batch, 1, embed_dim); 0 for an item without real tokens."""
        if self.score is None:
            scores = torch.zeros_like(tokens.times, dtype=tokens.values.dtype)
        else:
            scores = self.score(tokens.values).squeeze(-1)
        weights = masked_softmax(scores, tokens.mask, dim=1)
        return weights[:, None] @ tokens.values


def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b, i]]`` for x (batch, time, features) and index (batch, n)."""
    offset = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    rows = x.flatten(0, 1).index_select(0, (index + offset).flatten())
    return rows.view(*index.shape, x.shape[-1])
