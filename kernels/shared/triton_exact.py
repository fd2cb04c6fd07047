"""Shared cross-attention forward, S once, with an exponential for each direction.

The only form in float16, whose exponents are too few for a common reference, and with times.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.directions import whole_span
from ..triton_backend.tiles import (
    LOG2_E,
    LOWEST,
    finish_rows,
    keep_mask,
    load_real,
    load_tile,
    load_times,
    select_head,
    store_row_values,
    store_tile,
)
from .triton_finish import finish_columns, store_padding


@triton.jit
def exact(
    x,
    y,
    y_key,
    y_value,
    y_real,
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
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute both outputs with exact row maxima and running column maxima."""
    TIMED: tl.constexpr = x.steps.times is not None
    MASKED: tl.constexpr = x.steps.mask is not None
    span = whole_span(x.steps, batch, time_x, BLOCK_X, BLOCK_X)
    column_max = tl.full([BLOCK_Y], LOWEST, tl.float32)
    column_sum = tl.zeros([BLOCK_Y], tl.float32)
    acc = tl.zeros([BLOCK_Y, BLOCK_VALUE_DIM], tl.float32)
    columns = tl.arange(0, BLOCK_Y)
    x_key = select_head(x.query, batch, head)
    x_value = select_head(x.value, batch, head)
    x_out = select_head(x.out, batch, head)
    if TIMED:
        y_times = load_times(y.steps, batch, 0, y_real, BLOCK_Y)
    for index in range(0, tl.cdiv(tl.maximum(span.high - span.low, 0), BLOCK_X)):
        start = span.low + index * BLOCK_X
        rows = start + tl.arange(0, BLOCK_X)
        x_real = load_real(x.steps, batch, start, time_x, BLOCK_X)
        key = load_tile(
            x_key, x.query.stride_time, start, x_real, HEAD_DIM, BLOCK_X, BLOCK_HEAD_DIM, True
        )
        value = load_tile(
            x_value, x.value.stride_time, start, x_real, VALUE_DIM_X, BLOCK_X, BLOCK_VALUE_DIM, True
        )
        scores = tl.dot(key, tl.trans(y_key), input_precision=PRECISION) * scoring.scale_log2
        visible = y_real[None, :] & x_real[:, None]
        if TIMED:
            x_times = load_times(x.steps, batch, start, x_real, BLOCK_X)
            gap = tl.abs(x_times[:, None] - y_times[None, :])
            if scoring.decay is not None:
                scores -= tl.load(scoring.decay + head) * LOG2_E * gap
            if LIMITED:
                visible = visible & (gap <= scoring.max_gap)
        scores = tl.where(visible, scores, float("-inf"))
        row_max = tl.maximum(tl.max(scores, 1), LOWEST)
        x_weights = tl.math.exp2(scores - row_max[:, None])
        row_sum = tl.sum(x_weights, 1)
        new_max = tl.maximum(column_max, tl.max(scores, 0))
        y_weights = tl.math.exp2(scores - new_max[None, :])
        rescale = tl.math.exp2(column_max - new_max)
        column_sum = column_sum * rescale + tl.sum(y_weights, 0)
        acc = acc * rescale[:, None]
        column_max = new_max
        if scoring.seed is not None:
            x_keep = keep_mask(scoring, row, rows, 0, stream_x, BLOCK_X, BLOCK_Y)
            y_keep = keep_mask(scoring, row, columns, start, stream_y, BLOCK_Y, BLOCK_X)
            x_weights = tl.where(x_keep, x_weights, 0.0)
            y_weights = tl.where(tl.trans(y_keep), y_weights, 0.0)
        out = tl.dot(x_weights.to(y_value.dtype), y_value, input_precision=PRECISION)
        acc = tl.dot(tl.trans(y_weights.to(value.dtype)), value, acc, input_precision=PRECISION)
        out, lse = finish_rows(row_max, row_sum, out, x_real, scoring)
        store_tile(
            x_out, x.out.stride_time, start, time_x, out, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM
        )
        store_row_values(x.lse, row, start, time_x, lse, BLOCK_X)
    if MASKED:
        store_padding(x, batch, head, row, time_x, span, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
    finish_columns(
        y,
        batch,
        head,
        row,
        time_y,
        y_real,
        scoring,
        column_max,
        column_sum,
        acc,
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
