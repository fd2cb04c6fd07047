"""Chunked attention backward in Triton: three roles in one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..triton_backend.direction_backward import (
    ResidentKeys,
    ResidentQueries,
    StreamedQueries,
    key_value_gradient,
    query_gradient,
)
from ..triton_backend.direction_forward import Keys
from ..triton_backend.spans import window_span
from ..triton_backend.tiles import (
    load_lse_log2,
    load_real,
    load_row_values,
    rows_of,
    select_head,
    store_tile,
)
from .triton_windows import summary_audience, summary_window, token_audience, token_window


class ChunkedGradients(NamedTuple):
    """What the backward reads besides the inputs, and the gradients that it writes."""

    grad_out: Any
    lse: Any
    delta: Any
    grad_query: Any
    grad_key: Any
    grad_value: Any


@triton.jit(do_not_specialize=["heads", "time", "blocks", "summary_blocks"])
def chunked_backward(
    q,
    k,
    v,
    gradients,
    steps,
    summaries,
    chunking,
    scoring,
    scale,
    heads,
    time,
    blocks,
    summary_blocks,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SUMMARY_TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Three roles in one launch: blocks of summaries, of queries, and of keys and values.

    Summaries come first: each is seen by many queries, so their programs take longest.
    """
    per_row = summary_blocks + 2 * blocks
    task = tl.program_id(0) % per_row
    row = tl.program_id(0) // per_row
    if task >= summary_blocks + blocks:
        _token_block(
            q,
            k,
            v,
            gradients,
            steps,
            chunking,
            scoring,
            scale,
            heads,
            time,
            (task - summary_blocks - blocks) * BLOCK,
            row,
            HEAD_DIM,
            VALUE_DIM,
            BLOCK,
            TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            CAUSAL,
            PRECISION,
        )
    elif task >= summary_blocks:
        _query_block(
            q,
            k,
            v,
            gradients,
            steps,
            summaries,
            chunking,
            scoring,
            scale,
            heads,
            time,
            (task - summary_blocks) * BLOCK,
            row,
            HEAD_DIM,
            VALUE_DIM,
            BLOCK,
            TILE,
            SUMMARY_TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            CAUSAL,
            PRECISION,
        )
    else:
        if summaries is not None:
            _summary_block(
                q,
                gradients,
                steps,
                summaries,
                chunking,
                scoring,
                scale,
                heads,
                time,
                task * SUMMARY_TILE,
                row,
                HEAD_DIM,
                VALUE_DIM,
                SUMMARY_TILE,
                TILE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                PRECISION,
            )


@triton.jit
def _query_block(
    q,
    k,
    v,
    gradients,
    steps,
    summaries,
    chunking,
    scoring,
    scale,
    heads,
    time,
    start,
    row,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SUMMARY_TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of a block of queries: over its tokens, then over its summaries."""
    batch = row // heads
    head = row % heads
    queries = start + tl.arange(0, BLOCK)
    real = load_real(steps, batch, start, time, BLOCK)
    # (BLOCK, BLOCK_HEAD_DIM) and (BLOCK, BLOCK_VALUE_DIM)
    query = rows_of(select_head(q, batch, head), start, real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True)
    # What only the gradient of a softmax over one step is formed of is left out: that is 0.
    grad_out = rows_of(
        select_head(gradients.grad_out, batch, head),
        start,
        real & (time > 1),
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    lse_log2 = load_lse_log2(gradients.lse, row, start, time, BLOCK)
    delta = load_row_values(gradients.delta, row, start, time, BLOCK)
    first, last = token_window(queries, chunking, time, CAUSAL)
    span = window_span(first, last, queries < time, time, steps.mask is not None, TILE)
    resident = ResidentQueries(query, queries, None, grad_out, lse_log2, delta)
    grad_query, unused = query_gradient(
        tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        resident,
        Keys(select_head(k, batch, head), select_head(v, batch, head), steps, None, time),
        batch,
        head,
        row,
        span,
        scoring,
        0,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK,
        TILE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        False,
        PRECISION,
    )
    if summaries is not None:
        first, last = summary_window(queries, chunking)
        span = window_span(
            first,
            last,
            queries < time,
            summaries.chunks,
            summaries.steps.mask is not None,
            SUMMARY_TILE,
        )
        bias = summaries.bias + tl.cast(batch, tl.int64) * summaries.bias_stride
        grad_query, unused = query_gradient(
            grad_query,
            unused,
            resident,
            Keys(
                select_head(summaries.key, batch, head),
                select_head(summaries.value, batch, head),
                summaries.steps,
                bias,
                summaries.chunks,
            ),
            batch,
            head,
            row,
            span,
            scoring,
            1,
            HEAD_DIM,
            VALUE_DIM,
            BLOCK,
            SUMMARY_TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            False,
            PRECISION,
        )
    grad_query = tl.where(real[:, None], grad_query * scale, 0.0)
    store_tile(
        select_head(gradients.grad_query, batch, head),
        start,
        time,
        grad_query,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
    )


@triton.jit
def _token_block(
    q,
    k,
    v,
    gradients,
    steps,
    chunking,
    scoring,
    scale,
    heads,
    time,
    start,
    row,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block of keys and values, over the queries that see it."""
    batch = row // heads
    head = row % heads
    keys = start + tl.arange(0, BLOCK)
    real = load_real(steps, batch, start, time, BLOCK)
    # (BLOCK, BLOCK_HEAD_DIM) and (BLOCK, BLOCK_VALUE_DIM)
    key = rows_of(select_head(k, batch, head), start, real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True)
    value = rows_of(
        select_head(v, batch, head),
        start,
        real & (time > 1),
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    first, last = token_audience(keys, chunking, time, CAUSAL)
    span = window_span(first, last, keys < time, time, steps.mask is not None, TILE)
    key_value_gradient(
        ResidentKeys(key, value, None, None),
        StreamedQueries(
            select_head(q, batch, head),
            select_head(gradients.grad_out, batch, head),
            gradients.lse,
            gradients.delta,
            steps,
            time,
        ),
        gradients.grad_key,
        gradients.grad_value,
        time,
        batch,
        head,
        row,
        span,
        scoring,
        scale,
        0,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK,
        TILE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        False,
        PRECISION,
    )


@triton.jit
def _summary_block(
    q,
    gradients,
    steps,
    summaries,
    chunking,
    scoring,
    scale,
    heads,
    time,
    start,
    row,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block of summaries, over the queries that see it."""
    batch = row // heads
    head = row % heads
    chunks_of = start + tl.arange(0, BLOCK)
    real = load_real(summaries.steps, batch, start, summaries.chunks, BLOCK)
    # (BLOCK, BLOCK_HEAD_DIM) and (BLOCK, BLOCK_VALUE_DIM)
    key = rows_of(
        select_head(summaries.key, batch, head), start, real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True
    )
    value = rows_of(
        select_head(summaries.value, batch, head),
        start,
        real,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    pointer = summaries.bias + tl.cast(batch, tl.int64) * summaries.bias_stride
    bias = tl.load(pointer + chunks_of, mask=real, other=0.0)
    first, last = summary_audience(chunks_of, chunking, time)
    span = window_span(
        first, last, chunks_of < summaries.chunks, time, steps.mask is not None, TILE
    )
    key_value_gradient(
        ResidentKeys(key, value, None, bias),
        StreamedQueries(
            select_head(q, batch, head),
            select_head(gradients.grad_out, batch, head),
            gradients.lse,
            gradients.delta,
            steps,
            time,
        ),
        summaries.grad_key,
        summaries.grad_value,
        summaries.chunks,
        batch,
        head,
        row,
        span,
        scoring,
        scale,
        1,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK,
        TILE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        False,
        PRECISION,
    )
