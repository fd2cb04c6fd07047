"""Shared cross-attention forward where one program holds a whole side: S is computed once.

Y is the short side, in one block; the tiles of X stream past it. A tile sees all columns, so its
rows are finished at once; the columns gather over the tiles. One exponential serves both directions
under a common reference, the maximum of the first tile. Row and column sums guard it: where one
leaves the range of float32, all is computed again with two exponentials and exact maxima. That is
the only form in float16, whose exponents are too few for a common reference, and with times.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.directions import tile_count, tile_start, whole_span
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

# Sums under the common reference beyond these are not trusted: 2**-90 and 2**100. Within them,
# products with values and sums of those stay normal numbers.
SMALLEST = tl.constexpr(8.0779357e-28)
LARGEST = tl.constexpr(1.2676506e30)


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
    LIMITED: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head a program; the ``query`` of a side is what it is compared by."""
    row = tl.program_id(0)
    batch = row // heads
    head = row % heads
    y_real = load_real(y.steps, batch, 0, time_y, BLOCK_Y)
    # (BLOCK_Y, BLOCK_HEAD_DIM) and (BLOCK_Y, BLOCK_VALUE_DIM)
    y_key = load_tile(
        select_head(y.query, batch, head),
        y.query.stride_time,
        0,
        y_real,
        HEAD_DIM,
        BLOCK_Y,
        BLOCK_HEAD_DIM,
        True,
    )
    if NEGATIVE:
        y_key = -y_key
    y_value = load_tile(
        select_head(y.value, batch, head),
        y.value.stride_time,
        0,
        y_real,
        VALUE_DIM_Y,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
        True,
    )
    if EXACT:
        column_max, column_sum, acc = _exact(
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
            HEAD_DIM,
            VALUE_DIM_X,
            VALUE_DIM_Y,
            BLOCK_X,
            BLOCK_Y,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            LIMITED,
            PRECISION,
        )
    else:
        column_max, column_sum, acc, safe = _one_exponential(
            x,
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
            HEAD_DIM,
            VALUE_DIM_X,
            VALUE_DIM_Y,
            BLOCK_X,
            BLOCK_Y,
            BLOCK_HEAD_DIM,
            BLOCK_VALUE_DIM,
            PRECISION,
        )
        # Seldom taken, so in small tiles: its registers are everyone's.
        REPAIR_X: tl.constexpr = 16
        if not safe:
            column_max, column_sum, acc = _exact(
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
                HEAD_DIM,
                VALUE_DIM_X,
                VALUE_DIM_Y,
                REPAIR_X,
                BLOCK_Y,
                BLOCK_HEAD_DIM,
                BLOCK_VALUE_DIM,
                LIMITED,
                PRECISION,
            )
    out, lse = finish_rows(column_max, column_sum, acc, y_real, scoring)
    store_tile(
        select_head(y.out, batch, head),
        y.out.stride_time,
        0,
        time_y,
        out,
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    store_row_values(y.lse, row, 0, time_y, lse, BLOCK_Y)


@triton.jit
def _one_exponential(
    x,
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
    PRECISION: tl.constexpr,
):
    """Finish all rows of X; return the columns' reference, sums and accumulator, and the guard."""
    MASKED: tl.constexpr = x.steps.mask is not None
    span = whole_span(x.steps, batch, time_x, BLOCK_X)
    reference = LOWEST
    # Summed over the tiles first and over rows at the end: unrounded sums without a shuffle a tile.
    weight_sum = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
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
            key = load_tile(
                x_key, x.query.stride_time, start, x_real, HEAD_DIM, BLOCK_X, BLOCK_HEAD_DIM, EDGE
            )
            value = load_tile(
                x_value,
                x.value.stride_time,
                start,
                x_real,
                VALUE_DIM_X,
                BLOCK_X,
                BLOCK_VALUE_DIM,
                EDGE,
            )
            scores = tl.dot(key, tl.trans(y_key), input_precision=PRECISION)
            visible = y_real[None, :]
            if EDGE:
                visible = visible & x_real[:, None]
            scores = tl.where(visible, scores, float("-inf"))
            if start == span.low:
                reference = tl.maximum(tl.max(tl.max(scores, 1), 0) * scoring.scale_log2, LOWEST)
            weights = tl.math.exp2(scores * scoring.scale_log2 - reference)
            row_sum = tl.sum(weights, 1)
            weight_sum += weights
            in_range = (row_sum > SMALLEST) & (row_sum < LARGEST)
            unsafe |= (x_real & (in_range == 0)).to(tl.int32)
            x_weights = weights
            y_weights = weights
            if scoring.seed is not None:
                x_keep = keep_mask(scoring, row, rows, 0, stream_x, BLOCK_X, BLOCK_Y)
                y_keep = keep_mask(scoring, row, columns, start, stream_y, BLOCK_Y, BLOCK_X)
                x_weights = tl.where(x_keep, weights, 0.0)
                y_weights = tl.where(tl.trans(y_keep), weights, 0.0)
            out = tl.dot(x_weights.to(y_value.dtype), y_value, input_precision=PRECISION)
            acc = tl.dot(tl.trans(y_weights.to(value.dtype)), value, acc, input_precision=PRECISION)
            row_reference = tl.zeros([BLOCK_X], tl.float32) + reference
            out, lse = finish_rows(row_reference, row_sum, out, x_real, scoring)
            store_tile(
                x_out, x.out.stride_time, start, time_x, out, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM
            )
            store_row_values(x.lse, row, start, time_x, lse, BLOCK_X)
    if MASKED:
        _store_padding(x, batch, head, row, time_x, span, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
    column_sum = tl.sum(weight_sum, 0)
    in_range = (column_sum > SMALLEST) & (column_sum < LARGEST)
    unsafe_columns = (y_real & (in_range == 0)).to(tl.int32)
    # Where a side has no real step there are no sums, and none is needed.
    nothing = (span.high <= span.low) | (tl.max(y_real.to(tl.int32), 0) == 0)
    safe = (tl.max(unsafe, 0) + tl.max(unsafe_columns, 0) == 0) | nothing
    column_reference = tl.zeros([BLOCK_Y], tl.float32) + reference
    return column_reference, column_sum, acc, safe


@triton.jit
def _exact(
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
    """The same with an exponential for each direction: exact row and running column maxima."""
    TIMED: tl.constexpr = x.steps.times is not None
    MASKED: tl.constexpr = x.steps.mask is not None
    span = whole_span(x.steps, batch, time_x, BLOCK_X)
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
        _store_padding(x, batch, head, row, time_x, span, VALUE_DIM_Y, BLOCK_X, BLOCK_VALUE_DIM)
    return column_max, column_sum, acc


@triton.jit
def _store_padding(
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
        store_tile(
            x_out, x.out.stride_time, start, time_x, zeros, VALUE_DIM, BLOCK_X, BLOCK_VALUE_DIM
        )
        store_row_values(x.lse, row, start, time_x, lowest, BLOCK_X)
    for start in range(span.low + visited, time_x, BLOCK_X):
        store_tile(
            x_out, x.out.stride_time, start, time_x, zeros, VALUE_DIM, BLOCK_X, BLOCK_VALUE_DIM
        )
        store_row_values(x.lse, row, start, time_x, lowest, BLOCK_X)
