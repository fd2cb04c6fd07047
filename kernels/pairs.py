"""Two sequences that attend to each other: masks, times and dropout of each pair of steps.

Shared by the references of both cross-attention operators.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .attend import Dropout, draw_dropout, zero_padding


class PairOptions(NamedTuple):
    """Validated options of both cross-attention operators, in the order of their schema."""

    decay: Tensor | None
    mask_a: Tensor | None
    mask_b: Tensor | None
    times_a: Tensor | None
    times_b: Tensor | None
    dropout_seed: Tensor | None
    scale: float
    max_gap: float
    dropout_p: float
    deterministic: bool


# ``max_gap`` where there are no times, and nothing reads it. With times and without a limit it is
# infinity; here not, as AOTInductor keeps the options of an operator as JSON, which has none.
NO_TIMES = 0.0


def plain_options(
    mask_a: Tensor | None, mask_b: Tensor | None, head_dim: int
) -> tuple[Tensor | float | None, ...]:
    """Return the values of :class:`PairOptions` for a call that has no options but masks."""
    return None, mask_a, mask_b, None, None, None, head_dim**-0.5, NO_TIMES, 0.0, True


class Pairs(NamedTuple):
    """Visibility and time distance of each pair, (batch, 1, time_a, time_b), where they matter."""

    visible: Tensor | None
    gap: Tensor | None

    @property
    def visible_from_b(self) -> Tensor | None:
        """Visibility with the queries in B, (batch, 1, time_b, time_a)."""
        return None if self.visible is None else self.visible.transpose(-1, -2)


def pair_up(options: PairOptions) -> Pairs:
    """Combine the masks and the times of both sides."""
    mask_a, mask_b = options.mask_a, options.mask_b
    visible: Tensor | None = None
    if mask_a is not None:
        visible = mask_a[:, None, :, None]
    if mask_b is not None:
        real_b = mask_b[:, None, None, :]
        visible = real_b if visible is None else visible & real_b
    gap: Tensor | None = None
    if options.times_a is not None and options.times_b is not None:
        times_a = zero_padding(options.times_a[:, None, :, None], mask_a)
        times_b = zero_padding(options.times_b[:, None, :, None], mask_b)
        gap = (times_a - times_b.transpose(-1, -2)).abs()
        if options.max_gap < math.inf:
            near = gap <= options.max_gap
            visible = near if visible is None else visible & near
    return Pairs(visible, gap)


def pair_scores(x_a: Tensor, x_b: Tensor, pairs: Pairs, options: PairOptions) -> Tensor:
    """``scale * x_a x_b^T - decay * gap``, (batch, heads, time_a, time_b)."""
    scores = options.scale * (x_a @ x_b.transpose(-1, -2))
    if pairs.gap is not None and options.decay is not None:
        scores = scores - options.decay[None, :, None, None] * pairs.gap
    return scores


def decay_gradient(grad_scores: Tensor, pairs: Pairs, options: PairOptions) -> Tensor | None:
    """Gradient of the slopes, (heads,), from that of the scores (batch, heads, time_a, time_b)."""
    if pairs.gap is None or options.decay is None:
        return None
    return -(grad_scores * pairs.gap).sum(dim=(0, 2, 3)).to(options.decay.dtype)


def draw_both_directions(
    scores: Tensor, options: PairOptions
) -> tuple[Dropout | None, Dropout | None]:
    """Dropout of the softmax over B (stream 0) and over A (stream 1, its queries are in B).

    Args:
        scores: (batch, heads, time_a, time_b).
        options: ``dropout_seed`` and ``dropout_p`` are read.
    """
    batch, heads, time_a, time_b = scores.shape
    steps_a = torch.arange(time_a, device=scores.device)
    steps_b = torch.arange(time_b, device=scores.device)
    seed, dropout_p = options.dropout_seed, options.dropout_p
    return (
        draw_dropout(seed, dropout_p, batch, heads, steps_a[:, None], steps_b, stream=0),
        draw_dropout(seed, dropout_p, batch, heads, steps_b[:, None], steps_a, stream=1),
    )
