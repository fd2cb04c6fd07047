"""What the forward kernels with S once share: blocks of the short side, the guard, the repair."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..triton_backend.pair_forward import attend_block
from ..triton_backend.tiles import (
    finish_rows,
    load_real,
    load_tile,
    select_head,
    store_row_values,
    store_tile,
)

# Sums under the common reference beyond these are not trusted: 2**-90 and 2**100. Within them,
# products with values and sums of those stay normal numbers.
SMALLEST = tl.constexpr(8.0779357e-28)
LARGEST = tl.constexpr(1.2676506e30)
# Tiles of the repair, which is seldom taken: small, so that its registers are no more than others'.
REPAIR_ROWS = tl.constexpr(64)
REPAIR_KEYS = tl.constexpr(16)


class Block(NamedTuple):
    """A block of Y: its keys, its values, its first step and which steps are real."""

    key: Any
    value: Any
    start: Any
    real: Any


@triton.jit
def load_block(
    y,
    batch,
    head,
    start: tl.constexpr,
    time_y,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    NEGATIVE: tl.constexpr,
):
    """The steps of Y from ``start`` on."""
    real = load_real(y.steps, batch, start, time_y, BLOCK_Y)
    # (BLOCK_Y, BLOCK_HEAD_DIM) and (BLOCK_Y, BLOCK_VALUE_DIM)
    key = load_tile(
        select_head(y.query, batch, head), start, real, HEAD_DIM, BLOCK_Y, BLOCK_HEAD_DIM, True
    )
    if NEGATIVE:
        key = -key
    value = load_tile(
        select_head(y.value, batch, head), start, real, VALUE_DIM, BLOCK_Y, BLOCK_VALUE_DIM, True
    )
    return Block(key, value, start, real)


@triton.jit
def repair(
    x,
    y,
    scoring,
    heads,
    time_x,
    time_y,
    row,
    stream_x,
    stream_y,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_X: tl.constexpr,
    VALUE_DIM_Y: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Both directions anew, each with its own scores and exact maxima.

    It reads everything again, so that nothing has to be kept for what hardly ever happens.
    """
    for start in range(0, time_x, REPAIR_ROWS):
        attend_block(
            x,
            y,
            scoring,
            heads,
            time_x,
            time_y,
            start,
            row,
            stream_x,
            HEAD_DIM,
            VALUE_DIM_Y,
            REPAIR_ROWS,
            0,
            REPAIR_KEYS,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            NEGATIVE,
            False,
            False,
            PRECISION,
        )
    for start in range(0, time_y, REPAIR_ROWS):
        attend_block(
            y,
            x,
            scoring,
            heads,
            time_y,
            time_x,
            start,
            row,
            stream_y,
            HEAD_DIM,
            VALUE_DIM_X,
            REPAIR_ROWS,
            0,
            REPAIR_KEYS,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            NEGATIVE,
            False,
            False,
            PRECISION,
        )


@triton.jit
def in_order(values, BLOCK: tl.constexpr):
    """The same values, one or few a thread: sums over rows lie in every thread many times over."""
    return tl.gather(values, tl.arange(0, BLOCK), 0)


@triton.jit
def out_of_range(sums, real):
    """Which sums of real steps cannot be trusted, as integers."""
    in_range = (sums > SMALLEST) & (sums < LARGEST)
    return (real & (in_range == 0)).to(tl.int32)


@triton.jit
def finish_block(
    y,
    block,
    reference,
    column_sum,
    acc,
    batch,
    head,
    row,
    time_y,
    scoring,
    VALUE_DIM: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
):
    """Store a block of Y; return which of its sums cannot be trusted."""
    out, lse = finish_rows(
        tl.zeros([BLOCK_Y], tl.float32) + reference, column_sum, acc, block.real, scoring
    )
    store_tile(
        select_head(y.out, batch, head),
        block.start,
        time_y,
        out,
        VALUE_DIM,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    store_row_values(y.lse, row, block.start, time_y, lse, BLOCK_Y)
    return out_of_range(column_sum, block.real)


@triton.jit
def store_padding(
    x,
    batch,
    head,
    row,
    time_x,
    span,
    VALUE_DIM: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
):
    """0 and -inf for the tiles of X before its first and behind its last real step."""
    zeros = tl.zeros([BLOCK_X, BLOCK_VALUE_DIM], tl.float32)
    lowest = tl.full([BLOCK_X], float("-inf"), tl.float32)
    x_out = select_head(x.out, batch, head)
    visited = tl.maximum(tl.cdiv(tl.maximum(span.high - span.low, 0), BLOCK_X) * BLOCK_X, 0)
    before = tl.minimum(span.low, time_x)
    for start in range(0, before, BLOCK_X):
        store_tile(x_out, start, time_x, zeros, VALUE_DIM, BLOCK_X, BLOCK_VALUE_DIM)
        store_row_values(x.lse, row, start, time_x, lowest, BLOCK_X)
    for start in range(span.low + visited, time_x, BLOCK_X):
        store_tile(x_out, start, time_x, zeros, VALUE_DIM, BLOCK_X, BLOCK_VALUE_DIM)
        store_row_values(x.lse, row, start, time_x, lowest, BLOCK_X)
