"""Bidirectional cross-attention backward in Triton: four roles in one launch.

A block of rows of either side has two programs: one streams the other side's keys and values for
the gradient of its queries, one the other side's queries for the gradients of its keys and values.
Nothing is added up in memory, so the same inputs give the same bits.
"""

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
from ..triton_backend.spans import whole_span
from ..triton_backend.tiles import (
    choose_side,
    load_lse_log2,
    load_real,
    load_row_values,
    load_times,
    rows_of,
    runtime_matrix,
    runtime_steps,
    select_head,
    store_tile,
)


class BackwardSide(NamedTuple):
    """One side: matrices, and pointers (batch * heads, time) of float32."""

    query: Any
    key: Any
    value: Any
    grad_out: Any
    grad_query: Any
    grad_key: Any
    grad_value: Any
    lse: Any
    delta: Any
    steps: Any


@triton.jit
def runtime_side(side, other):
    """The side with strides that an ``if`` can choose."""
    return BackwardSide(
        runtime_matrix(side.query, other.query),
        runtime_matrix(side.key, other.key),
        runtime_matrix(side.value, other.value),
        runtime_matrix(side.grad_out, other.grad_out),
        runtime_matrix(side.grad_query, other.grad_query),
        runtime_matrix(side.grad_key, other.grad_key),
        runtime_matrix(side.grad_value, other.grad_value),
        side.lse,
        side.delta,
        runtime_steps(side.steps),
    )


@triton.jit(do_not_specialize=["heads", "time_a", "time_b", "blocks_a", "blocks_b"])
def bidirectional_backward(
    a,
    b,
    scoring,
    scale,
    gap_sums,
    heads,
    time_a,
    time_b,
    blocks_a,
    blocks_b,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_A: tl.constexpr,
    VALUE_DIM_B: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block of rows. ``gap_sums`` (batch * heads, blocks_a + blocks_b) or None."""
    both = blocks_a + blocks_b
    task = tl.program_id(0) % (2 * both)
    row = tl.program_id(0) // (2 * both)
    for_keys = task >= both
    block = tl.where(for_keys, task - both, task)
    if VALUE_DIM_A == VALUE_DIM_B:
        x, y, time_x, time_y, start, stream = choose_side(
            runtime_side(a, b), runtime_side(b, a), time_a, time_b, block, blocks_a, BLOCK
        )
        _one_role(
            x,
            y,
            scoring,
            scale,
            gap_sums,
            heads,
            time_x,
            time_y,
            start,
            row,
            block,
            both,
            for_keys,
            stream,
            HEAD_DIM,
            VALUE_DIM_A,
            VALUE_DIM_A,
            BLOCK,
            TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            LIMITED,
            PRECISION,
        )
    else:
        if block < blocks_a:
            _one_role(
                a,
                b,
                scoring,
                scale,
                gap_sums,
                heads,
                time_a,
                time_b,
                block * BLOCK,
                row,
                block,
                both,
                for_keys,
                0,
                HEAD_DIM,
                VALUE_DIM_A,
                VALUE_DIM_B,
                BLOCK,
                TILE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                LIMITED,
                PRECISION,
            )
        else:
            _one_role(
                b,
                a,
                scoring,
                scale,
                gap_sums,
                heads,
                time_b,
                time_a,
                (block - blocks_a) * BLOCK,
                row,
                block,
                both,
                for_keys,
                1,
                HEAD_DIM,
                VALUE_DIM_B,
                VALUE_DIM_A,
                BLOCK,
                TILE,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                LIMITED,
                PRECISION,
            )


@triton.jit
def _one_role(
    x,
    y,
    scoring,
    scale,
    gap_sums,
    heads,
    time_x,
    time_y,
    start,
    row,
    block,
    row_blocks,
    for_keys,
    stream,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_X: tl.constexpr,
    VALUE_DIM_Y: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of x from ``start`` on; ``stream`` is that of the softmax whose queries are in x."""
    batch = row // heads
    head = row % heads
    rows = start + tl.arange(0, BLOCK)
    x_real = load_real(x.steps, batch, start, time_x, BLOCK)
    x_times = None
    if x.steps.times is not None:
        x_times = load_times(x.steps, batch, start, x_real, BLOCK)
    span = whole_span(y.steps, batch, time_y, TILE, TILE)
    if for_keys:
        # (BLOCK, BLOCK_HEAD_DIM) and (BLOCK, BLOCK_VALUE_DIM)
        key = rows_of(
            select_head(x.key, batch, head), start, x_real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True
        )
        # What only the gradient of a softmax over one step is formed of is left out: that is 0.
        value = rows_of(
            select_head(x.value, batch, head),
            start,
            x_real & (time_x > 1),
            VALUE_DIM_X,
            BLOCK,
            BLOCK_VALUE_DIM,
            True,
        )
        key_value_gradient(
            ResidentKeys(key, value, x_times, None),
            StreamedQueries(
                select_head(y.query, batch, head),
                select_head(y.grad_out, batch, head),
                y.lse,
                y.delta,
                y.steps,
                time_y,
            ),
            x.grad_key,
            x.grad_value,
            time_x,
            batch,
            head,
            row,
            span,
            scoring,
            scale,
            1 - stream,
            HEAD_DIM,
            VALUE_DIM_X,
            BLOCK,
            TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            LIMITED,
            PRECISION,
        )
    else:
        query = rows_of(
            select_head(x.query, batch, head), start, x_real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True
        )
        lse_log2 = load_lse_log2(x.lse, row, start, time_x, BLOCK)
        delta = load_row_values(x.delta, row, start, time_x, BLOCK)
        grad_real = x_real & (time_y > 1)
        if LIMITED:
            # A real query may see no key here, and its gradient may then be NaN.
            grad_real = grad_real & (lse_log2 < float("inf"))
        grad_out = rows_of(
            select_head(x.grad_out, batch, head),
            start,
            grad_real,
            VALUE_DIM_Y,
            BLOCK,
            BLOCK_VALUE_DIM,
            True,
        )
        grad_query, gap_sum = query_gradient(
            tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32),
            tl.zeros([BLOCK], tl.float32),
            ResidentQueries(query, rows, x_times, grad_out, lse_log2, delta),
            Keys(
                select_head(y.key, batch, head),
                select_head(y.value, batch, head),
                y.steps,
                None,
                time_y,
            ),
            batch,
            head,
            row,
            span,
            scoring,
            stream,
            HEAD_DIM,
            VALUE_DIM_Y,
            BLOCK,
            TILE,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            LIMITED,
            PRECISION,
        )
        grad_query = tl.where(x_real[:, None], grad_query * scale, 0.0)
        store_tile(
            select_head(x.grad_query, batch, head),
            start,
            time_x,
            grad_query,
            HEAD_DIM,
            BLOCK,
            BLOCK_HEAD_DIM,
        )
        if gap_sums is not None:
            pointer = gap_sums + tl.cast(row, tl.int64) * row_blocks + block
            tl.store(pointer, tl.sum(tl.where(x_real, gap_sum, 0.0), 0))
