"""One direction of attention over a span, forward: the body that kernels inline."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .spans import in_window, tile_count, tile_start
from .tiles import (
    LOWEST,
    add_products,
    apply_gap,
    first_half,
    keep_mask,
    load_real,
    load_times,
    out_of_reach,
    partial_sums,
    products,
    rows_of,
)


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
    value: Any
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
            k = rows_of(keys.key, start, real, HEAD_DIM, BLOCK_KEYS, BLOCK_HEAD_DIM, EDGE)
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
                scores = apply_gap(scores, gap, scoring, head, LIMITED)
            if keys.bias is not None:
                scores += tl.load(keys.bias + steps, mask=real, other=0.0)[None, :]
            if EDGE:
                visible = real[None, :]
                if span.first is not None:
                    visible = visible & in_window(span, steps)
                scores = tl.where(visible, scores, float("-inf"))
            # (BLOCK_KEYS, BLOCK_VALUE_DIM)
            v = rows_of(keys.value, start, real, VALUE_DIM, BLOCK_KEYS, BLOCK_VALUE_DIM, EDGE)
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
