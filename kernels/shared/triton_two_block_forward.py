"""Shared cross-attention forward where one program holds a whole side in two blocks: S once.

For a short side of 65 to 128 steps. The scores are transposed, the short side Y on their rows, so
that its sums and its accumulator lie alike and little is kept in registers; each tile of X meets
one block of Y after the other and is finished when it has passed both. Reference, guard and repair
are those of ``triton_once_forward.py``.
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
    partial_sums,
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
def shared_two_block_forward(
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
    """One head a program, ``2 * BLOCK_Y`` steps of Y; ``query`` is what a side is compared by."""
    MASKED: tl.constexpr = x.steps.mask is not None
    row = tl.program_id(0)
    batch = row // heads
    head = row % heads
    low = load_block(
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
    high = load_block(
        y,
        batch,
        head,
        BLOCK_Y,
        time_y,
        HEAD_DIM,
        VALUE_DIM_Y,
        BLOCK_Y,
        BLOCK_HEAD_DIM,
        BLOCK_VALUE_DIM,
        NEGATIVE,
    )
    span = whole_span(x.steps, batch, time_x, BLOCK_X, BLOCK_X)
    reference = LOWEST
    low_sum = tl.zeros([BLOCK_Y, 8], tl.float32)
    high_sum = tl.zeros([BLOCK_Y, 8], tl.float32)
    low_acc = tl.zeros([BLOCK_Y, BLOCK_VALUE_DIM], tl.float32)
    high_acc = tl.zeros([BLOCK_Y, BLOCK_VALUE_DIM], tl.float32)
    unsafe = tl.zeros([BLOCK_X], tl.int32)
    x_key = select_head(x.query, batch, head)
    x_value = select_head(x.value, batch, head)
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, BLOCK_X)):
            start = tile_start(span, index, EDGE, BLOCK_X)
            real = start + tl.arange(0, BLOCK_X) < time_x
            if EDGE:
                real = load_real(x.steps, batch, start, time_x, BLOCK_X)
            # (BLOCK_X, BLOCK_HEAD_DIM) and (BLOCK_X, BLOCK_VALUE_DIM)
            key = load_tile(x_key, start, real, HEAD_DIM, BLOCK_X, BLOCK_HEAD_DIM, EDGE)
            value = load_tile(x_value, start, real, VALUE_DIM_X, BLOCK_X, BLOCK_VALUE_DIM, EDGE)
            out = tl.zeros([BLOCK_X, BLOCK_VALUE_DIM], tl.float32)
            weights = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
            reference, low_sum, low_acc, out, weights = _meet(
                low,
                key,
                value,
                start,
                real,
                reference,
                low_sum,
                low_acc,
                out,
                weights,
                scoring,
                row,
                stream_x,
                stream_y,
                BLOCK_X,
                BLOCK_Y,
                EDGE,
                PRECISION,
            )
            reference, high_sum, high_acc, out, weights = _meet(
                high,
                key,
                value,
                start,
                real,
                reference,
                high_sum,
                high_acc,
                out,
                weights,
                scoring,
                row,
                stream_x,
                stream_y,
                BLOCK_X,
                BLOCK_Y,
                EDGE,
                PRECISION,
            )
            row_sum = in_order(tl.sum(weights, 0), BLOCK_X)
            unsafe |= out_of_range(row_sum, real)
            row_reference = tl.zeros([BLOCK_X], tl.float32) + reference
            out, lse = finish_rows(row_reference, row_sum, out, real, scoring)
            store_tile(
                select_head(x.out, batch, head),
                start,
                time_x,
                out,
                VALUE_DIM_Y,
                BLOCK_X,
                BLOCK_VALUE_DIM,
            )
            store_row_values(x.lse, row, start, time_x, lse, BLOCK_X)
    if MASKED:
        store_padding(x, batch, head, row, time_x, span, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
    low_unsafe = finish_block(
        y,
        low,
        reference,
        tl.sum(low_sum, 1),
        low_acc,
        batch,
        head,
        row,
        time_y,
        scoring,
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    high_unsafe = finish_block(
        y,
        high,
        reference,
        tl.sum(high_sum, 1),
        high_acc,
        batch,
        head,
        row,
        time_y,
        scoring,
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    # Without a visible pair there are no sums, and none is needed.
    is_unsafe = tl.max(unsafe, 0) + tl.max(low_unsafe | high_unsafe, 0) > 0
    if is_unsafe & (reference > LOWEST):
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
def _meet(
    block,
    key,
    value,
    start,
    real,
    reference,
    column_sum,
    acc,
    out,
    row_weights,
    scoring,
    row,
    stream_x,
    stream_y,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add a tile of X to a block of Y, and the block to the tile."""
    # (BLOCK_Y, BLOCK_X)
    scores = tl.dot(block.key, tl.trans(key), input_precision=PRECISION)
    if reference <= LOWEST:
        visible = block.real[:, None]
        if EDGE:
            visible = visible & real[None, :]
        highest = tl.max(tl.max(tl.where(visible, scores, float("-inf")), 1), 0)
        reference = tl.maximum(highest * scoring.scale_log2, LOWEST)
    offsets = tl.where(block.real, -reference, float("-inf"))
    weights = tl.math.exp2(scores * scoring.scale_log2 + offsets[:, None])
    if EDGE:
        weights = tl.where(real[None, :], weights, 0.0)
    column_sum += partial_sums(weights, BLOCK_Y, BLOCK_X)
    row_weights += weights
    y_weights = weights.to(value.dtype)
    x_weights = tl.trans(y_weights)
    if scoring.seed is not None:
        rows = start + tl.arange(0, BLOCK_X)
        columns = block.start + tl.arange(0, BLOCK_Y)
        x_keep = keep_mask(scoring, row, rows, block.start, stream_x, BLOCK_X, BLOCK_Y)
        y_keep = keep_mask(scoring, row, columns, start, stream_y, BLOCK_Y, BLOCK_X)
        x_weights = tl.where(x_keep, x_weights, 0.0)
        y_weights = tl.where(y_keep, y_weights, 0.0)
    acc = tl.dot(y_weights, value, acc, input_precision=PRECISION)
    out = tl.dot(x_weights, block.value, out, input_precision=PRECISION)
    return reference, column_sum, acc, out, row_weights
