"""Both directions of cross-attention in one launch, each computing its own scores.

A program attends one block of queries, of either side, to all of the other side: the first programs
of a head take blocks of A, the rest blocks of B. Bidirectional cross-attention always runs so;
shared cross-attention where no block holds a whole side, and then S is computed twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .direction_forward import Keys, Queries, attend
from .spans import whole_span
from .tiles import (
    LOWEST,
    choose_side,
    finish_rows,
    load_real,
    load_times,
    rows_of,
    runtime_matrix,
    runtime_steps,
    select_head,
    store_row_values,
    store_tile,
)

# Row sums under a lazy reference beyond it are not trusted: products with values must stay finite.
LARGEST = tl.constexpr(2.0**100)


class ForwardSide(NamedTuple):
    """One side: matrices, ``lse`` a pointer (batch * heads, time) of float32."""

    query: Any
    key: Any
    value: Any
    out: Any
    lse: Any
    steps: Any


@triton.jit(do_not_specialize=["heads", "blocks_a", "blocks_b", "time_a", "time_b"])
def pair_forward(
    a,
    b,
    scoring,
    heads,
    time_a,
    time_b,
    blocks_a,
    blocks_b,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_A: tl.constexpr,
    VALUE_DIM_B: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_INTERIOR: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    NEGATIVE: tl.constexpr,
    LIMITED: tl.constexpr,
    LAZY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Out = dropout(softmax(scale * query key^T - decay * gap)) value, for both sides."""
    block = tl.program_id(0) % (blocks_a + blocks_b)
    row = tl.program_id(0) // (blocks_a + blocks_b)
    # One body, inlined once, for both directions where their values are equally wide.
    if VALUE_DIM_A == VALUE_DIM_B:
        x, y, time_x, time_y, start, stream = choose_side(
            runtime_side(a, b), runtime_side(b, a), time_a, time_b, block, blocks_a, BLOCK_QUERIES
        )
        attend_block(
            x,
            y,
            scoring,
            heads,
            time_x,
            time_y,
            start,
            row,
            stream,
            HEAD_DIM,
            VALUE_DIM_A,
            BLOCK_QUERIES,
            BLOCK_INTERIOR,
            BLOCK_EDGE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            NEGATIVE,
            LIMITED,
            LAZY,
            PRECISION,
        )
    else:
        if block < blocks_a:
            attend_block(
                a,
                b,
                scoring,
                heads,
                time_a,
                time_b,
                block * BLOCK_QUERIES,
                row,
                0,
                HEAD_DIM,
                VALUE_DIM_B,
                BLOCK_QUERIES,
                BLOCK_INTERIOR,
                BLOCK_EDGE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                NEGATIVE,
                LIMITED,
                LAZY,
                PRECISION,
            )
        else:
            attend_block(
                b,
                a,
                scoring,
                heads,
                time_b,
                time_a,
                (block - blocks_a) * BLOCK_QUERIES,
                row,
                1,
                HEAD_DIM,
                VALUE_DIM_A,
                BLOCK_QUERIES,
                BLOCK_INTERIOR,
                BLOCK_EDGE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                NEGATIVE,
                LIMITED,
                LAZY,
                PRECISION,
            )


@triton.jit
def runtime_side(side, other):
    """The side with strides that an ``if`` can choose."""
    return ForwardSide(
        runtime_matrix(side.query, other.query),
        runtime_matrix(side.key, other.key),
        runtime_matrix(side.value, other.value),
        runtime_matrix(side.out, other.out),
        side.lse,
        runtime_steps(side.steps),
    )


@triton.jit
def attend_block(
    x,
    y,
    scoring,
    heads,
    time_x,
    time_y,
    start,
    row,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_INTERIOR: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    NEGATIVE: tl.constexpr,
    LIMITED: tl.constexpr,
    LAZY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries of x from ``start`` on, keys and values of y."""
    batch = row // heads
    head = row % heads
    query_real = load_real(x.steps, batch, start, time_x, BLOCK_QUERIES)
    query_times = None
    if x.steps.times is not None:
        query_times = load_times(x.steps, batch, start, query_real, BLOCK_QUERIES)
    # (BLOCK_QUERIES, BLOCK_HEAD_DIM)
    query = rows_of(
        select_head(x.query, batch, head),
        start,
        query_real,
        HEAD_DIM,
        BLOCK_QUERIES,
        BLOCK_HEAD_DIM,
        True,
    )
    steps = start + tl.arange(0, BLOCK_QUERIES)
    queries = Queries(query, steps, query_times, NEGATIVE)
    keys = Keys(
        select_head(y.key, batch, head), select_head(y.value, batch, head), y.steps, None, time_y
    )
    span = whole_span(y.steps, batch, time_y, BLOCK_INTERIOR, BLOCK_EDGE)
    row_max = tl.full([BLOCK_QUERIES], LOWEST, tl.float32)
    row_sum = tl.zeros([BLOCK_QUERIES, 8], tl.float32)
    acc = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE_DIM], tl.float32)
    row_max, row_sum, acc = attend(
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
        BLOCK_EDGE,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        LIMITED,
        LAZY,
        PRECISION,
    )
    row_sum = tl.sum(row_sum, 1)
    if LAZY:  # noqa: SIM102 - known when compiling, what follows is not
        # Scores rose far above the first tile's: once more, with a running maximum.
        if not (tl.max(row_sum, 0) < LARGEST):
            row_max, row_sum, acc = attend(
                tl.full([BLOCK_QUERIES], LOWEST, tl.float32),
                tl.zeros([BLOCK_QUERIES, 8], tl.float32),
                tl.zeros([BLOCK_QUERIES, BLOCK_VALUE_DIM], tl.float32),
                queries,
                keys,
                batch,
                head,
                row,
                whole_span(y.steps, batch, time_y, 0, BLOCK_EDGE),
                scoring,
                stream,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_QUERIES,
                0,
                BLOCK_EDGE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                LIMITED,
                False,
                PRECISION,
            )
            row_sum = tl.sum(row_sum, 1)
    acc, lse = finish_rows(row_max, row_sum, acc, query_real, scoring)
    store_tile(
        select_head(x.out, batch, head),
        start,
        time_x,
        acc,
        VALUE_DIM,
        BLOCK_QUERIES,
        BLOCK_VALUE_DIM,
    )
    store_row_values(x.lse, row, start, time_x, lse, BLOCK_QUERIES)
