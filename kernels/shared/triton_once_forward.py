"""Shared cross-attention forward where one program holds a whole side: S is computed once.

Y is the short side, in one block; the tiles of X stream past it. A tile sees all columns, so its
rows are finished at once; the columns gather over the tiles. One exponential serves both directions
under a common reference, the maximum of the first tile. Row and column sums guard it: where one
leaves the range of float32, both directions are computed again, each with its own scores and exact
maxima.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.spans import tile_count, tile_start, whole_span
from ..triton_backend.tiles import (
    LOWEST,
    finish_rows,
    keep_mask,
    load_real,
    load_tile,
    partial_column_sums,
    select_head,
    store_row_values,
    store_tile,
)
from .triton_short_side import (
    finish_block,
    in_order,
    load_block,
    out_of_range,
    repair,
    store_padding,
)


@triton.jit(do_not_specialize=["heads", "time_x", "time_y", "stream_x", "stream_y"])
def shared_once_forward(
    x,
    y,
    scoring,
    heads,
    time_x,
    time_y,
    stream_x,
    stream_y,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_X: tl.constexpr,
    VALUE_DIM_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head a program; the ``query`` of a side is what it is compared by."""
    row = tl.program_id(0)
    batch = row // heads
    head = row % heads
    block = load_block(
        y,
        batch,
        head,
        0,
        time_y,
        HEAD_DIM,
        VALUE_DIM_Y,
        BLOCK_Y,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        NEGATIVE,
    )
    safe = _one_exponential(
        x,
        y,
        block,
        scoring,
        batch,
        head,
        row,
        time_x,
        time_y,
        stream_x,
        stream_y,
        HEAD_DIM,
        VALUE_DIM_X,
        VALUE_DIM_Y,
        BLOCK_X,
        BLOCK_Y,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        PRECISION,
    )
    if not safe:
        repair(
            x,
            y,
            scoring,
            heads,
            time_x,
            time_y,
            row,
            stream_x,
            stream_y,
            HEAD_DIM,
            VALUE_DIM_X,
            VALUE_DIM_Y,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            NEGATIVE,
            PRECISION,
        )


@triton.jit
def _one_exponential(
    x,
    y,
    block,
    scoring,
    batch,
    head,
    row,
    time_x,
    time_y,
    stream_x,
    stream_y,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM_X: tl.constexpr,
    VALUE_DIM_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_HEAD_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute both outputs; return whether the sums under the common reference can be trusted."""
    MASKED: tl.constexpr = x.steps.mask is not None
    span = whole_span(x.steps, batch, time_x, BLOCK_X, BLOCK_X)
    reference = LOWEST
    # Summed over the tiles first, over threads at the end: unrounded sums without a shuffle a tile.
    weight_sum = tl.zeros([BLOCK_X // 2, BLOCK_Y], tl.float32)
    # What is added to the scores of each column: less the reference, -inf where it is not real.
    offsets = tl.zeros([BLOCK_Y], tl.float32)
    acc = tl.zeros([BLOCK_Y, BLOCK_VALUE_DIM], tl.float32)
    unsafe = tl.zeros([BLOCK_X], tl.int32)
    columns = tl.arange(0, BLOCK_Y)
    x_key = select_head(x.query, batch, head)
    x_value = select_head(x.value, batch, head)
    x_out = select_head(x.out, batch, head)
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, BLOCK_X)):
            start = tile_start(span, index, EDGE, BLOCK_X)
            rows = start + tl.arange(0, BLOCK_X)
            x_real = rows < time_x
            if EDGE:
                x_real = load_real(x.steps, batch, start, time_x, BLOCK_X)
            # (BLOCK_X, BLOCK_HEAD_DIM) and (BLOCK_X, BLOCK_VALUE_DIM)
            key = load_tile(x_key, start, x_real, HEAD_DIM, BLOCK_X, BLOCK_HEAD_DIM, EDGE)
            scores = tl.dot(key, tl.trans(block.key), input_precision=PRECISION)
            if start == span.low:
                visible = block.real[None, :]
                if EDGE:
                    visible = visible & x_real[:, None]
                highest = tl.max(tl.max(tl.where(visible, scores, float("-inf")), 1), 0)
                reference = tl.maximum(highest * scoring.scale_log2, LOWEST)
                offsets = tl.where(block.real, -reference, float("-inf"))
            weights = tl.math.exp2(scores * scoring.scale_log2 + offsets[None, :])
            if EDGE:
                weights = tl.where(x_real[:, None], weights, 0.0)
            row_sum = tl.sum(weights, 1)
            weight_sum += partial_column_sums(weights, BLOCK_X, BLOCK_Y)
            unsafe |= out_of_range(row_sum, x_real)
            value = load_tile(x_value, start, x_real, VALUE_DIM_X, BLOCK_X, BLOCK_VALUE_DIM, EDGE)
            x_weights = weights.to(value.dtype)
            y_weights = tl.trans(x_weights)
            if scoring.seed is not None:
                x_keep = keep_mask(scoring, row, rows, 0, stream_x, BLOCK_X, BLOCK_Y)
                y_keep = keep_mask(scoring, row, columns, start, stream_y, BLOCK_Y, BLOCK_X)
                x_weights = tl.where(x_keep, x_weights, 0.0)
                y_weights = tl.where(y_keep, y_weights, 0.0)
            acc = tl.dot(y_weights, value, acc, input_precision=PRECISION)
            out = tl.dot(x_weights, block.value, input_precision=PRECISION)
            row_reference = tl.zeros([BLOCK_X], tl.float32) + reference
            out, lse = finish_rows(row_reference, row_sum, out, x_real, scoring)
            store_tile(x_out, start, time_x, out, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
            store_row_values(x.lse, row, start, time_x, lse, BLOCK_X)
    if MASKED:
        store_padding(x, batch, head, row, time_x, span, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
    column_sum = in_order(tl.sum(weight_sum, 0), BLOCK_Y)
    unsafe_columns = finish_block(
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
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    # Where a side has no real step there are no sums, and none is needed.
    nothing = (span.high <= span.low) | (tl.max(block.real.to(tl.int32), 0) == 0)
    return (tl.max(unsafe, 0) + tl.max(unsafe_columns, 0) == 0) | nothing
