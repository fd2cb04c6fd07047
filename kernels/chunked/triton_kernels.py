"""Chunked attention in Triton, forward and backward: each block visits only what it may see.

What a query sees is an interval of tokens and, where summaries are given, an interval of summaries
behind it; what a key is seen by is an interval of queries. So the bodies of the cross-attention
kernels run here with a window for each resident row. Tokens and summaries share one softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..triton_backend.directions import (
    Keys,
    Queries,
    attend,
    key_value_gradient,
    query_gradient,
    window_span,
)
from ..triton_backend.tiles import (
    LOWEST,
    finish_rows,
    load_lse_log2,
    load_real,
    load_row_values,
    rows_of,
    select_head,
    store_row_values,
    store_tile,
)


class Chunking(NamedTuple):
    """Which keys a query sees, see the operator; ``lookahead`` is 0 if causal."""

    chunk_size: Any
    lookback: Any
    lookahead: Any
    newest: Any


class Summaries(NamedTuple):
    """Means of chunks; ``steps`` masks those of no real token.

    ``bias`` (batch or 1, chunks) holds the base 2 logarithms of the numbers of real tokens.
    """

    key: Any
    value: Any
    grad_key: Any
    grad_value: Any
    steps: Any
    bias: Any
    bias_stride: Any
    chunks: Any


@triton.jit
def token_window(queries, chunking, time, CAUSAL: tl.constexpr):
    """First token that each query sees, and one past the last."""
    chunk = queries // chunking.chunk_size
    first = tl.maximum(chunk - chunking.lookback, 0) * chunking.chunk_size
    # A lookahead past the end must not overflow.
    chunks = tl.cdiv(time, chunking.chunk_size)
    last = tl.minimum(chunk + 1 + chunking.lookahead, chunks) * chunking.chunk_size
    if CAUSAL:
        last = tl.minimum(last, queries + 1)
    return first, tl.minimum(last, time)


@triton.jit
def summary_window(queries, chunking):
    """First summary that each query sees, and one past the last."""
    last = tl.maximum(queries // chunking.chunk_size - chunking.lookback, 0)
    return tl.maximum(last - chunking.newest, 0), last


@triton.jit
def token_audience(keys, chunking, time, CAUSAL: tl.constexpr):
    """First query that sees each token, and one past the last."""
    chunk = keys // chunking.chunk_size
    chunks = tl.cdiv(time, chunking.chunk_size)
    first = tl.maximum(chunk - chunking.lookahead, 0) * chunking.chunk_size
    if CAUSAL:
        first = keys
    last = tl.minimum(chunk + 1 + chunking.lookback, chunks) * chunking.chunk_size
    return first, tl.minimum(last, time)


@triton.jit
def summary_audience(chunks_of, chunking, time):
    """First query that sees each summary, and one past the last."""
    chunks = tl.cdiv(time, chunking.chunk_size)
    first = tl.minimum(chunks_of + 1 + chunking.lookback, chunks)
    last = tl.minimum(first + chunking.newest, chunks)
    return tl.minimum(first * chunking.chunk_size, time), tl.minimum(
        last * chunking.chunk_size, time
    )


@triton.jit(do_not_specialize=["heads", "time", "blocks"])
def chunked_forward(
    q,
    k,
    v,
    out,
    lse,
    steps,
    summaries,
    chunking,
    scoring,
    heads,
    time,
    blocks,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SUMMARY_TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries a program; its tokens, then its summaries."""
    start = tl.program_id(0) % blocks * BLOCK
    row = tl.program_id(0) // blocks
    batch = row // heads
    head = row % heads
    queries = start + tl.arange(0, BLOCK)
    real = load_real(steps, batch, start, time, BLOCK)
    # (BLOCK, BLOCK_HEAD_DIM)
    query = rows_of(
        select_head(q, batch, head),
        q.stride_time,
        start,
        real,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
        True,
    )
    block = Queries(query, queries, None, NEGATIVE)
    first, last = token_window(queries, chunking, time, CAUSAL)
    span = window_span(first, last, queries < time, time, steps.mask is not None, TILE)
    row_max, row_sum, acc = attend(
        tl.full([BLOCK], LOWEST, tl.float32),
        tl.zeros([BLOCK, 8], tl.float32),
        tl.zeros([BLOCK, BLOCK_VALUE_DIM], tl.float32),
        block,
        Keys(
            select_head(k, batch, head),
            k.stride_time,
            select_head(v, batch, head),
            v.stride_time,
            steps,
            None,
            time,
        ),
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
        TILE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        False,
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
        row_max, row_sum, acc = attend(
            row_max,
            row_sum,
            acc,
            block,
            Keys(
                select_head(summaries.key, batch, head),
                summaries.key.stride_time,
                select_head(summaries.value, batch, head),
                summaries.value.stride_time,
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
            SUMMARY_TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            False,
            False,
            PRECISION,
        )
    acc, row_lse = finish_rows(row_max, tl.sum(row_sum, 1), acc, real, scoring)
    store_tile(
        select_head(out, batch, head),
        out.stride_time,
        start,
        time,
        acc,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
    )
    store_row_values(lse, row, start, time, row_lse, BLOCK)


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
    query = rows_of(
        select_head(q, batch, head),
        q.stride_time,
        start,
        real,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
        True,
    )
    grad_out = rows_of(
        select_head(gradients.grad_out, batch, head),
        gradients.grad_out.stride_time,
        start,
        real,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    lse_log2 = load_lse_log2(gradients.lse, row, start, time, BLOCK)
    delta = load_row_values(gradients.delta, row, start, time, BLOCK)
    first, last = token_window(queries, chunking, time, CAUSAL)
    span = window_span(first, last, queries < time, time, steps.mask is not None, TILE)
    grad_query, unused = query_gradient(
        tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        query,
        queries,
        real,
        None,
        grad_out,
        lse_log2,
        delta,
        select_head(k, batch, head),
        k.stride_time,
        select_head(v, batch, head),
        v.stride_time,
        steps,
        None,
        batch,
        head,
        row,
        time,
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
            query,
            queries,
            real,
            None,
            grad_out,
            lse_log2,
            delta,
            select_head(summaries.key, batch, head),
            summaries.key.stride_time,
            select_head(summaries.value, batch, head),
            summaries.value.stride_time,
            summaries.steps,
            bias,
            batch,
            head,
            row,
            summaries.chunks,
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
        gradients.grad_query.stride_time,
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
    key = rows_of(
        select_head(k, batch, head),
        k.stride_time,
        start,
        real,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
        True,
    )
    value = rows_of(
        select_head(v, batch, head),
        v.stride_time,
        start,
        real,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    first, last = token_audience(keys, chunking, time, CAUSAL)
    span = window_span(first, last, keys < time, time, steps.mask is not None, TILE)
    grad_key, grad_value = key_value_gradient(
        tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32),
        tl.zeros([BLOCK, BLOCK_VALUE_DIM], tl.float32),
        key,
        value,
        start,
        real,
        None,
        None,
        select_head(q, batch, head),
        q.stride_time,
        select_head(gradients.grad_out, batch, head),
        gradients.grad_out.stride_time,
        gradients.lse,
        gradients.delta,
        steps,
        batch,
        head,
        row,
        time,
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
    grad_key = tl.where(real[:, None], grad_key * scale, 0.0)
    grad_value = tl.where(real[:, None], grad_value, 0.0)
    store_tile(
        select_head(gradients.grad_key, batch, head),
        gradients.grad_key.stride_time,
        start,
        time,
        grad_key,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
    )
    store_tile(
        select_head(gradients.grad_value, batch, head),
        gradients.grad_value.stride_time,
        start,
        time,
        grad_value,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
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
        select_head(summaries.key, batch, head),
        summaries.key.stride_time,
        start,
        real,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
        True,
    )
    value = rows_of(
        select_head(summaries.value, batch, head),
        summaries.value.stride_time,
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
    grad_key, grad_value = key_value_gradient(
        tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32),
        tl.zeros([BLOCK, BLOCK_VALUE_DIM], tl.float32),
        key,
        value,
        start,
        real,
        None,
        bias,
        select_head(q, batch, head),
        q.stride_time,
        select_head(gradients.grad_out, batch, head),
        gradients.grad_out.stride_time,
        gradients.lse,
        gradients.delta,
        steps,
        batch,
        head,
        row,
        time,
        span,
        scoring,
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
    grad_key = tl.where(real[:, None], grad_key * scale, 0.0)
    grad_value = tl.where(real[:, None], grad_value, 0.0)
    store_tile(
        select_head(summaries.grad_key, batch, head),
        summaries.grad_key.stride_time,
        start,
        summaries.chunks,
        grad_key,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
    )
    store_tile(
        select_head(summaries.grad_value, batch, head),
        summaries.grad_value.stride_time,
        start,
        summaries.chunks,
        grad_value,
        VALUE_DIM,
        BLOCK,
        BLOCK_VALUE_DIM,
    )
