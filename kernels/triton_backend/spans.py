"""What of the streamed side a block visits.

A kernel's body keeps one block resident and streams the tiles of the other side. A resident row may
see all that is streamed, or the interval ``[first, last)`` of it. The range ``[low, high)`` has an
interior ``[inner_low, inner_high)`` of whole tiles in which every streamed step is inside and seen
by every resident row: it runs without masks, then the edges run with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import real_range


class Span(NamedTuple):
    """What of the streamed side a block visits; ``first`` and ``last`` of each row, or None."""

    low: Any
    inner_low: Any
    inner_high: Any
    high: Any
    first: Any
    last: Any


@triton.jit
def whole_span(steps, batch, time, BLOCK: tl.constexpr, EDGE_BLOCK: tl.constexpr):
    """All streamed steps from the first real one to the last.

    The interior is of whole tiles of ``BLOCK``, the edges of tiles of ``EDGE_BLOCK``; a ``BLOCK``
    of 0 makes all of it edge.
    """
    first_real, last_real = real_range(steps, batch, time)
    low = first_real // EDGE_BLOCK * EDGE_BLOCK
    inner_high = low
    if steps.mask is None and BLOCK > 0:
        inner_high = tl.maximum(last_real // BLOCK * BLOCK, low)
    return Span(low, low, inner_high, last_real, None, None)


@triton.jit
def window_span(first, last, real, time, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """What rows see that each see an interval: the union, and inside of it what all of them see."""
    low = tl.min(tl.where(real, first, time), 0) // BLOCK * BLOCK
    high = tl.max(tl.where(real, last, 0), 0)
    if MASKED:
        return Span(low, low, low, high, first, last)
    inner_low = (tl.max(tl.where(real, first, 0), 0) + BLOCK - 1) // BLOCK * BLOCK
    inner_high = tl.min(tl.where(real, last, time), 0) // BLOCK * BLOCK
    # Without an interior the left edge is everything.
    inner_low = tl.maximum(tl.minimum(inner_low, (high + BLOCK - 1) // BLOCK * BLOCK), low)
    inner_high = tl.maximum(inner_high, inner_low)
    return Span(low, inner_low, inner_high, high, first, last)


@triton.jit
def tile_count(span, EDGE: tl.constexpr, BLOCK: tl.constexpr):
    """Number of tiles of the interior or of both edges."""
    if EDGE:
        left = (span.inner_low - span.low) // BLOCK
        return left + tl.maximum(tl.cdiv(span.high - span.inner_high, BLOCK), 0)
    return (span.inner_high - span.inner_low) // BLOCK


@triton.jit
def tile_start(span, index, EDGE: tl.constexpr, BLOCK: tl.constexpr):
    """First step of a tile of the interior or of the edges."""
    if EDGE:
        left = (span.inner_low - span.low) // BLOCK
        beyond = span.inner_high + (index - left) * BLOCK
        return tl.where(index < left, span.low + index * BLOCK, beyond)
    return span.inner_low + index * BLOCK


@triton.jit
def in_window(span, rows):
    """Which streamed ``rows`` each resident row sees, (resident, streamed)."""
    return (rows[None, :] >= span.first[:, None]) & (rows[None, :] < span.last[:, None])
