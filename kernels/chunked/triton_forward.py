"""Chunked attention forward in Triton: tokens and summaries share one softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.direction_forward import Keys, Queries, attend
from ..triton_backend.spans import window_span
from ..triton_backend.tiles import (
    LOWEST,
    finish_rows,
    load_real,
    rows_of,
    select_head,
    store_row_values,
    store_tile,
)
from .triton_windows import summary_window, token_window


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
    query = rows_of(select_head(q, batch, head), start, real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True)
    block = Queries(query, queries, None, NEGATIVE)
    first, last = token_window(queries, chunking, time, CAUSAL)
    span = window_span(first, last, queries < time, time, steps.mask is not None, TILE)
    row_max, row_sum, acc = attend(
        tl.full([BLOCK], LOWEST, tl.float32),
        tl.zeros([BLOCK, 8], tl.float32),
        tl.zeros([BLOCK, BLOCK_VALUE_DIM], tl.float32),
        block,
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
            SUMMARY_TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            False,
            False,
            PRECISION,
        )
    acc, row_lse = finish_rows(row_max, tl.sum(row_sum, 1), acc, real, scoring)
    store_tile(select_head(out, batch, head), start, time, acc, VALUE_DIM, BLOCK, BLOCK_VALUE_DIM)
    store_row_values(lse, row, start, time, row_lse, BLOCK)
