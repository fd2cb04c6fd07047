"""One direction of attention over a span, backward: the bodies that kernels inline."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .spans import in_window, tile_count, tile_start
from .tiles import (
    add_products,
    apply_gap,
    keep_mask,
    load_lse_log2,
    load_real,
    load_row_values,
    load_times,
    out_of_reach,
    products,
    rows_of,
    select_head,
    store_tile,
)


class ResidentQueries(NamedTuple):
    """A block of queries, and what the gradients of its scores need."""

    query: Any
    steps: Any
    times: Any
    grad_out: Any
    lse_log2: Any
    delta: Any


class ResidentKeys(NamedTuple):
    """A block of keys and values; ``bias``, one for each key, is added to the scores, or None."""

    key: Any
    value: Any
    times: Any
    bias: Any


class StreamedQueries(NamedTuple):
    """All queries of one head, and what the gradients of their scores need."""

    query: Any
    grad_out: Any
    lse: Any
    delta: Any
    steps: Any
    time: Any


@triton.jit
def query_gradient(
    grad_query,
    gap_sum,
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
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the keys of a span to the gradient of a block of queries, still without the scale.

    ``gap_sum`` collects, per query, the gradient of the scores times the gap in seconds.
    """
    MASKED: tl.constexpr = keys.steps.mask is not None
    TIMED: tl.constexpr = keys.steps.times is not None
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
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
                        queries.times, queries.query.real, times, real, scoring.max_gap
                    )
            if reached:
                # (BLOCK_KEYS, BLOCK_HEAD_DIM) and (BLOCK_KEYS, BLOCK_VALUE_DIM)
                k = rows_of(keys.key, start, real, HEAD_DIM, BLOCK_KEYS, BLOCK_HEAD_DIM, EDGE)
                v = rows_of(keys.value, start, real, VALUE_DIM, BLOCK_KEYS, BLOCK_VALUE_DIM, EDGE)
                scores = products(
                    queries.query,
                    k,
                    HEAD_DIM,
                    BLOCK_QUERIES,
                    BLOCK_KEYS,
                    BLOCK_HEAD_DIM,
                    EDGE,
                    PRECISION,
                )
                scores = scores * scoring.scale_log2
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
                weights = tl.math.exp2(scores - queries.lse_log2[:, None])
                grad_weights = products(
                    queries.grad_out,
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
                        scoring, row, queries.steps, start, stream, BLOCK_QUERIES, BLOCK_KEYS
                    )
                    grad_weights = tl.where(keep, grad_weights * scoring.keep_scale, 0.0)
                grad_scores = weights * (grad_weights - queries.delta[:, None])
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
    keys,
    queries,
    key_gradients,
    value_gradients,
    key_time,
    batch,
    head,
    row,
    span,
    scoring,
    scale,
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
    """Write the gradients of a block of keys and values, over a span of queries.

    A padded query has log-sum-exp -inf, so its weights are 0 without a mask.
    """
    MASKED: tl.constexpr = queries.steps.mask is not None
    TIMED: tl.constexpr = queries.steps.times is not None
    grad_key = tl.zeros([BLOCK_KEYS, BLOCK_HEAD_DIM], tl.float32)
    grad_value = tl.zeros([BLOCK_KEYS, BLOCK_VALUE_DIM], tl.float32)
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, BLOCK_QUERIES)):
            start = tile_start(span, index, EDGE, BLOCK_QUERIES)
            steps = start + tl.arange(0, BLOCK_QUERIES)
            real = steps < queries.time
            if EDGE:
                real = load_real(queries.steps, batch, start, queries.time, BLOCK_QUERIES)
            reached = True
            if TIMED:
                times = load_times(queries.steps, batch, start, real, BLOCK_QUERIES)
                if LIMITED:
                    reached = not out_of_reach(
                        keys.times, keys.key.real, times, real, scoring.max_gap
                    )
            if reached:
                # (BLOCK_QUERIES, BLOCK_HEAD_DIM) and (BLOCK_QUERIES, BLOCK_VALUE_DIM)
                q = rows_of(
                    queries.query, start, real, HEAD_DIM, BLOCK_QUERIES, BLOCK_HEAD_DIM, EDGE
                )
                lse_log2 = load_lse_log2(queries.lse, row, start, queries.time, BLOCK_QUERIES)
                correction = load_row_values(queries.delta, row, start, queries.time, BLOCK_QUERIES)
                grad_real = real
                if LIMITED:
                    # A real query may see no key here, and its gradient may then be NaN.
                    grad_real = real & (lse_log2 < float("inf"))
                grad = rows_of(
                    queries.grad_out,
                    start,
                    grad_real,
                    VALUE_DIM,
                    BLOCK_QUERIES,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                )
                # (BLOCK_KEYS, BLOCK_QUERIES)
                scores = products(
                    keys.key,
                    q,
                    HEAD_DIM,
                    BLOCK_KEYS,
                    BLOCK_QUERIES,
                    BLOCK_HEAD_DIM,
                    EDGE,
                    PRECISION,
                )
                scores = scores * scoring.scale_log2
                if TIMED:
                    gap = tl.abs(keys.times[:, None] - times[None, :])
                    scores = apply_gap(scores, gap, scoring, head, LIMITED)
                if keys.bias is not None:
                    scores += keys.bias[:, None]
                if EDGE and span.first is not None:
                    scores = tl.where(in_window(span, steps), scores, float("-inf"))
                weights = tl.math.exp2(scores - lse_log2[None, :])
                grad_weights = products(
                    keys.value,
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
                            scoring, row, steps, keys.key.start, stream, BLOCK_QUERIES, BLOCK_KEYS
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
    grad_key = tl.where(keys.key.real[:, None], grad_key * scale, 0.0)
    grad_value = tl.where(keys.key.real[:, None], grad_value, 0.0)
    first = keys.key.start
    # Where to is found behind the loops, which need the registers.
    out = select_head(key_gradients, batch, head)
    store_tile(out, first, key_time, grad_key, HEAD_DIM, BLOCK_KEYS, BLOCK_HEAD_DIM)
    out = select_head(value_gradients, batch, head)
    store_tile(out, first, key_time, grad_value, VALUE_DIM, BLOCK_KEYS, BLOCK_VALUE_DIM)
