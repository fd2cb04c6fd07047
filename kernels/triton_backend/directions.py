"""One direction of attention over a range of keys or queries: the bodies that kernels inline.

Each body keeps one block resident and streams the tiles of the other side. A resident row may see
all that is streamed, or the interval ``[first, last)`` of it. The range ``[low, high)`` has an
interior ``[inner_low, inner_high)`` of whole tiles in which every streamed step is inside and seen
by every resident row: it runs without masks, then the edges run with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import (
    LOG2_E,
    LOWEST,
    add_products,
    first_half,
    keep_mask,
    load_lse_log2,
    load_real,
    load_row_values,
    load_times,
    out_of_reach,
    partial_sums,
    products,
    real_range,
    rows_of,
)


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


class Queries(NamedTuple):
    """A block of queries: its rows, the numbers of its steps, and when they are.

    ``negative`` tells the sign of the scale.
    """

    rows: Any
    steps: Any
    times: Any
    negative: Any


class Keys(NamedTuple):
    """Keys and values of one head, and what is added to each key's scores, or None."""

    key: Any
    key_stride: Any
    value: Any
    value_stride: Any
    steps: Any
    bias: Any
    time: Any


@triton.jit
def attend(
    row_max,
    row_sum,
    acc,
    queries,
    keys,
    batch,
    head,
    row,
    span,
    scoring,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_INTERIOR: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    LIMITED: tl.constexpr,
    LAZY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend a block of queries to the keys of a span; continues from, and returns, the state.

    LAZY takes the row maximum of the first visible tile as the reference for all: no running
    maximum, no rescaling. The caller checks the row sums. ``row_sum`` is (BLOCK_QUERIES, 8), see
    `partial_sums`.
    """
    if keys.steps.mask is None and BLOCK_INTERIOR > 0:
        row_max, row_sum, acc = _attend_tiles(
            row_max,
            row_sum,
            acc,
            queries,
            keys,
            batch,
            head,
            row,
            span,
            scoring,
            stream,
            HEAD_DIM,
            VALUE_DIM,
            BLOCK_QUERIES,
            BLOCK_INTERIOR,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            False,
            LIMITED,
            LAZY,
            PRECISION,
        )
    return _attend_tiles(
        row_max,
        row_sum,
        acc,
        queries,
        keys,
        batch,
        head,
        row,
        span,
        scoring,
        stream,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK_QUERIES,
        BLOCK_EDGE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        True,
        LIMITED,
        LAZY,
        PRECISION,
    )


@triton.jit
def _attend_tiles(
    row_max,
    row_sum,
    acc,
    queries,
    keys,
    batch,
    head,
    row,
    span,
    scoring,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    EDGE: tl.constexpr,
    LIMITED: tl.constexpr,
    LAZY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to the interior of a span or to its edges."""
    TIMED: tl.constexpr = keys.steps.times is not None
    BIASED: tl.constexpr = (TIMED and scoring.decay is not None) or keys.bias is not None
    for index in range(0, tile_count(span, EDGE, BLOCK_KEYS)):
        start = tile_start(span, index, EDGE, BLOCK_KEYS)
        steps = start + tl.arange(0, BLOCK_KEYS)
        real = steps < keys.time
        if EDGE:
            real = load_real(keys.steps, batch, start, keys.time, BLOCK_KEYS)
        reached = True
        if TIMED:
            times = load_times(keys.steps, batch, start, real, BLOCK_KEYS)
            if LIMITED:
                reached = not out_of_reach(
                    queries.times, queries.rows.real, times, real, scoring.max_gap
                )
        if reached:
            # (BLOCK_KEYS, BLOCK_HEAD_DIM)
            k = rows_of(
                keys.key, keys.key_stride, start, real, HEAD_DIM, BLOCK_KEYS, BLOCK_HEAD_DIM, EDGE
            )
            scores = products(
                queries.rows,
                k,
                HEAD_DIM,
                BLOCK_QUERIES,
                BLOCK_KEYS,
                BLOCK_HEAD_DIM,
                EDGE,
                PRECISION,
            )
            if queries.negative:
                scores = -scores
            scale = scoring.scale_log2
            if BIASED:
                scores = scores * scale
                scale = 1.0
            if TIMED:
                gap = tl.abs(queries.times[:, None] - times[None, :])
                if scoring.decay is not None:
                    scores -= tl.load(scoring.decay + head) * LOG2_E * gap
                if LIMITED:
                    scores = tl.where(gap <= scoring.max_gap, scores, float("-inf"))
            if keys.bias is not None:
                scores += tl.load(keys.bias + steps, mask=real, other=0.0)[None, :]
            if EDGE:
                visible = real[None, :]
                if span.first is not None:
                    visible = visible & in_window(span, steps)
                scores = tl.where(visible, scores, float("-inf"))
            # (BLOCK_KEYS, BLOCK_VALUE_DIM)
            v = rows_of(
                keys.value,
                keys.value_stride,
                start,
                real,
                VALUE_DIM,
                BLOCK_KEYS,
                BLOCK_VALUE_DIM,
                EDGE,
            )
            if LAZY:
                if start == span.low:
                    sample = scores
                    # All keys of an interior tile are seen: a few of them are reference enough.
                    if not EDGE:
                        sample = first_half(scores, BLOCK_QUERIES, BLOCK_KEYS)
                        if BLOCK_KEYS >= 128:
                            sample = first_half(sample, BLOCK_QUERIES, BLOCK_KEYS // 2)
                    row_max = tl.maximum(tl.max(sample, 1) * scale, LOWEST)
                weights = tl.math.exp2(scores * scale - row_max[:, None])
                row_sum += partial_sums(weights, BLOCK_QUERIES, BLOCK_KEYS)
            else:
                new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
                weights = tl.math.exp2(scores * scale - new_max[:, None])
                rescale = tl.math.exp2(row_max - new_max)
                row_sum = row_sum * rescale[:, None]
                row_sum += partial_sums(weights, BLOCK_QUERIES, BLOCK_KEYS)
                acc = acc * rescale[:, None]
                row_max = new_max
            if scoring.seed is not None:
                keep = keep_mask(
                    scoring, row, queries.steps, start, stream, BLOCK_QUERIES, BLOCK_KEYS
                )
                weights = tl.where(keep, weights, 0.0)
            acc = add_products(
                acc, weights, v, VALUE_DIM, BLOCK_KEYS, BLOCK_VALUE_DIM, EDGE, PRECISION
            )
    return row_max, row_sum, acc


@triton.jit
def query_gradient(
    grad_query,
    gap_sum,
    query,
    queries,
    query_real,
    query_times,
    grad_out,
    lse_log2,
    delta,
    key,
    key_stride,
    value,
    value_stride,
    key_steps,
    key_bias,
    batch,
    head,
    row,
    key_time,
    span,
    scoring,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the keys of a span to the gradient of a block of queries, still without the scale.

    ``gap_sum`` collects, per query, the gradient of the scores times the gap in seconds.
    """
    MASKED: tl.constexpr = key_steps.mask is not None
    TIMED: tl.constexpr = key_steps.times is not None
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, BLOCK_KEYS)):
            start = tile_start(span, index, EDGE, BLOCK_KEYS)
            keys = start + tl.arange(0, BLOCK_KEYS)
            key_real = keys < key_time
            if EDGE:
                key_real = load_real(key_steps, batch, start, key_time, BLOCK_KEYS)
            reached = True
            if TIMED:
                key_times = load_times(key_steps, batch, start, key_real, BLOCK_KEYS)
                if LIMITED:
                    reached = not out_of_reach(
                        query_times, query_real, key_times, key_real, scoring.max_gap
                    )
            if reached:
                # (BLOCK_KEYS, BLOCK_HEAD_DIM) and (BLOCK_KEYS, BLOCK_VALUE_DIM)
                k = rows_of(
                    key, key_stride, start, key_real, HEAD_DIM, BLOCK_KEYS, BLOCK_HEAD_DIM, EDGE
                )
                v = rows_of(
                    value,
                    value_stride,
                    start,
                    key_real,
                    VALUE_DIM,
                    BLOCK_KEYS,
                    BLOCK_VALUE_DIM,
                    EDGE,
                )
                scores = products(
                    query, k, HEAD_DIM, BLOCK_QUERIES, BLOCK_KEYS, BLOCK_HEAD_DIM, EDGE, PRECISION
                )
                scores = scores * scoring.scale_log2
                if TIMED:
                    gap = tl.abs(query_times[:, None] - key_times[None, :])
                    if scoring.decay is not None:
                        scores -= tl.load(scoring.decay + head) * LOG2_E * gap
                    if LIMITED:
                        scores = tl.where(gap <= scoring.max_gap, scores, float("-inf"))
                if key_bias is not None:
                    scores += tl.load(key_bias + keys, mask=key_real, other=0.0)[None, :]
                if EDGE:
                    visible = key_real[None, :]
                    if span.first is not None:
                        visible = visible & in_window(span, keys)
                    scores = tl.where(visible, scores, float("-inf"))
                weights = tl.math.exp2(scores - lse_log2[:, None])
                grad_weights = products(
                    grad_out,
                    v,
                    VALUE_DIM,
                    BLOCK_QUERIES,
                    BLOCK_KEYS,
                    BLOCK_VALUE_DIM,
                    EDGE,
                    PRECISION,
                )
                if scoring.seed is not None:
                    keep = keep_mask(
                        scoring, row, queries, start, stream, BLOCK_QUERIES, BLOCK_KEYS
                    )
                    grad_weights = tl.where(keep, grad_weights * scoring.keep_scale, 0.0)
                grad_scores = weights * (grad_weights - delta[:, None])
                if TIMED and scoring.decay is not None:
                    gap_sum += tl.sum(grad_scores * gap, 1)
                grad_query = add_products(
                    grad_query,
                    grad_scores,
                    k,
                    HEAD_DIM,
                    BLOCK_KEYS,
                    BLOCK_HEAD_DIM,
                    EDGE,
                    PRECISION,
                )
    return grad_query, gap_sum


@triton.jit
def key_value_gradient(
    grad_key,
    grad_value,
    key,
    value,
    first_key,
    key_real,
    key_times,
    key_bias,
    query,
    query_stride,
    grad_out,
    grad_out_stride,
    lse,
    delta,
    query_steps,
    batch,
    head,
    row,
    query_time,
    span,
    scoring,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the queries of a span to the gradients of a block of keys and values.

    A padded query has log-sum-exp -inf, so its weights are 0 without a mask. ``key_bias``, one
    for each key, is added to the scores, or None.
    """
    MASKED: tl.constexpr = query_steps.mask is not None
    TIMED: tl.constexpr = query_steps.times is not None
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, BLOCK_QUERIES)):
            start = tile_start(span, index, EDGE, BLOCK_QUERIES)
            queries = start + tl.arange(0, BLOCK_QUERIES)
            query_real = queries < query_time
            if EDGE:
                query_real = load_real(query_steps, batch, start, query_time, BLOCK_QUERIES)
            reached = True
            if TIMED:
                query_times = load_times(query_steps, batch, start, query_real, BLOCK_QUERIES)
                if LIMITED:
                    reached = not out_of_reach(
                        key_times, key_real, query_times, query_real, scoring.max_gap
                    )
            if reached:
                # (BLOCK_QUERIES, BLOCK_HEAD_DIM) and (BLOCK_QUERIES, BLOCK_VALUE_DIM)
                q = rows_of(
                    query,
                    query_stride,
                    start,
                    query_real,
                    HEAD_DIM,
                    BLOCK_QUERIES,
                    BLOCK_HEAD_DIM,
                    EDGE,
                )
                lse_log2 = load_lse_log2(lse, row, start, query_time, BLOCK_QUERIES)
                correction = load_row_values(delta, row, start, query_time, BLOCK_QUERIES)
                grad_real = query_real
                if LIMITED:
                    # A real query may see no key here, and its gradient may then be NaN.
                    grad_real = query_real & (lse_log2 < float("inf"))
                grad = rows_of(
                    grad_out,
                    grad_out_stride,
                    start,
                    grad_real,
                    VALUE_DIM,
                    BLOCK_QUERIES,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                )
                # (BLOCK_KEYS, BLOCK_QUERIES)
                scores = products(
                    key, q, HEAD_DIM, BLOCK_KEYS, BLOCK_QUERIES, BLOCK_HEAD_DIM, EDGE, PRECISION
                )
                scores = scores * scoring.scale_log2
                if TIMED:
                    gap = tl.abs(key_times[:, None] - query_times[None, :])
                    if scoring.decay is not None:
                        scores -= tl.load(scoring.decay + head) * LOG2_E * gap
                    if LIMITED:
                        scores = tl.where(gap <= scoring.max_gap, scores, float("-inf"))
                if key_bias is not None:
                    scores += key_bias[:, None]
                if EDGE and span.first is not None:
                    scores = tl.where(in_window(span, queries), scores, float("-inf"))
                weights = tl.math.exp2(scores - lse_log2[None, :])
                grad_weights = products(
                    value,
                    grad,
                    VALUE_DIM,
                    BLOCK_KEYS,
                    BLOCK_QUERIES,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                    PRECISION,
                )
                kept = weights
                if scoring.seed is not None:
                    keep = tl.trans(
                        keep_mask(
                            scoring, row, queries, first_key, stream, BLOCK_QUERIES, BLOCK_KEYS
                        )
                    )
                    kept = tl.where(keep, weights * scoring.keep_scale, 0.0)
                    grad_weights = tl.where(keep, grad_weights * scoring.keep_scale, 0.0)
                grad_value = add_products(
                    grad_value,
                    kept,
                    grad,
                    VALUE_DIM,
                    BLOCK_QUERIES,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                    PRECISION,
                )
                grad_scores = weights * (grad_weights - correction[None, :])
                grad_key = add_products(
                    grad_key,
                    grad_scores,
                    q,
                    HEAD_DIM,
                    BLOCK_QUERIES,
                    BLOCK_HEAD_DIM,
                    EDGE,
                    PRECISION,
                )
    return grad_key, grad_value
