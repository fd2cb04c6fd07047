"""Keeping what sits in padded steps out of every sum."""

from __future__ import annotations

from torch import Tensor


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x`` with its padded steps set to 0, whatever they hold.

    A product with the mask would keep NaN and infinity, in the result and in the gradients of
    weights that ``x`` is multiplied with; this does not.

    Args:
        x: (batch, time, features) or (batch, time).
        mask: (batch, time) bool, True = real; None means that every step is real.
    """
    if mask is None:
        return x
    return x.masked_fill(~(mask if x.dim() == mask.dim() else mask.unsqueeze(-1)), 0.0)
