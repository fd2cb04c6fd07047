"""Shared cross-attention backward in Triton where one program holds a whole side: S once.

It holds the short side Y and streams X: seven products, one launch, and the gradients of a tile of
X are final when it has passed. Always added in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.delta import row_delta
from ..triton_backend.tiles import (
    Rows,
    apply_gap,
    keep_mask,
    load_lse_log2,
    load_real,
    load_tile,
    load_times,
    select_head,
    store_tile,
)


@triton.jit(do_not_specialize=["heads", "time_x", "time_y", "stream_x", "stream_y"])
def shared_once_backward(
    x,
    y,
    scoring,
    scale,
    gap_sums,
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
    LIMITED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head a program. ``gap_sums`` (batch * heads,)."""
    MASKED: tl.constexpr = x.steps.mask is not None
    TIMED: tl.constexpr = x.steps.times is not None
    row = tl.program_id(0)
    batch = row // heads
    head = row % heads
    columns = tl.arange(0, BLOCK_Y)
    y_real = load_real(y.steps, batch, 0, time_y, BLOCK_Y)
    # (BLOCK_Y, BLOCK_HEAD_DIM), then (BLOCK_Y, BLOCK_VALUE_DIM)
    y_key = load_tile(
        select_head(y.key, batch, head), 0, y_real, HEAD_DIM, BLOCK_Y, BLOCK_HEAD_DIM, True
    )
    # What only the gradient of a softmax over one step is formed of is left out: that is 0.
    y_value = load_tile(
        select_head(y.value, batch, head),
        0,
        y_real & (time_y > 1),
        VALUE_DIM_Y,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
        True,
    )
    y_grad = load_tile(
        select_head(y.grad_out, batch, head), 0, y_real, VALUE_DIM_X, BLOCK_Y, BLOCK_VALUE_DIM, True
    )
    y_lse = load_lse_log2(y.lse, row, 0, time_y, BLOCK_Y)
    if TIMED:
        y_times = load_times(y.steps, batch, 0, y_real, BLOCK_Y)
    if LIMITED:
        y_grad = tl.where((y_lse < float("inf"))[:, None], y_grad, 0.0)
    y_delta = row_delta(
        y,
        batch,
        head,
        row,
        0,
        y_real,
        time_y,
        time_x,
        Rows(None, 0, y_real, y_grad),
        VALUE_DIM_X,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
        PRECISION,
    )
    y_offset = tl.where(y_real, 0.0, float("-inf"))
    grad_y_key = tl.zeros([BLOCK_Y, BLOCK_HEAD_DIM], tl.float32)
    grad_y_value = tl.zeros([BLOCK_Y, BLOCK_VALUE_DIM], tl.float32)
    gaps = tl.zeros([BLOCK_Y], tl.float32)
    for index in range(0, tl.cdiv(time_x, BLOCK_X)):
        start = index * BLOCK_X
        rows = start + tl.arange(0, BLOCK_X)
        x_real = load_real(x.steps, batch, start, time_x, BLOCK_X)
        # (BLOCK_X, BLOCK_HEAD_DIM), then (BLOCK_X, BLOCK_VALUE_DIM)
        x_key = load_tile(
            select_head(x.key, batch, head), start, x_real, HEAD_DIM, BLOCK_X, BLOCK_HEAD_DIM, True
        )
        x_grad = load_tile(
            select_head(x.grad_out, batch, head),
            start,
            x_real,
            VALUE_DIM_Y,
            BLOCK_X,
            BLOCK_VALUE_DIM,
            True,
        )
        x_lse = load_lse_log2(x.lse, row, start, time_x, BLOCK_X)
        if LIMITED:
            x_grad = tl.where((x_lse < float("inf"))[:, None], x_grad, 0.0)
        x_delta = row_delta(
            x,
            batch,
            head,
            row,
            start,
            x_real,
            time_x,
            time_y,
            Rows(None, start, x_real, x_grad),
            VALUE_DIM_Y,
            BLOCK_X,
            BLOCK_VALUE_DIM,
            PRECISION,
        )
        # (BLOCK_Y, BLOCK_X): the resident side on the rows of the products
        scores = tl.dot(y_key, tl.trans(x_key), input_precision=PRECISION)
        scores = scores * scoring.scale_log2 + y_offset[:, None]
        if TIMED:
            x_times = load_times(x.steps, batch, start, x_real, BLOCK_X)
            gap = tl.abs(y_times[:, None] - x_times[None, :])
            scores = apply_gap(scores, gap, scoring, head, LIMITED)
        scores = tl.where(x_real[None, :], scores, float("-inf"))
        # One direction after the other: less is live at a time.
        x_weights = tl.math.exp2(scores - x_lse[None, :])
        grad_x_weights = tl.dot(y_value, tl.trans(x_grad), input_precision=PRECISION)
        kept_x = x_weights
        if scoring.seed is not None:
            x_keep = tl.trans(keep_mask(scoring, row, rows, 0, stream_x, BLOCK_X, BLOCK_Y))
            grad_x_weights = tl.where(x_keep, grad_x_weights * scoring.keep_scale, 0.0)
            kept_x = tl.where(x_keep, x_weights * scoring.keep_scale, 0.0)
        grad_scores = x_weights * (grad_x_weights - x_delta[None, :])
        grad_y_value = tl.dot(
            kept_x.to(x_grad.dtype), x_grad, grad_y_value, input_precision=PRECISION
        )
        x_value = load_tile(
            select_head(x.value, batch, head),
            start,
            x_real & (time_x > 1),
            VALUE_DIM_X,
            BLOCK_X,
            BLOCK_VALUE_DIM,
            True,
        )
        y_weights = tl.math.exp2(scores - y_lse[:, None])
        grad_y_weights = tl.dot(y_grad, tl.trans(x_value), input_precision=PRECISION)
        kept_y = y_weights
        if scoring.seed is not None:
            y_keep = keep_mask(scoring, row, columns, start, stream_y, BLOCK_Y, BLOCK_X)
            grad_y_weights = tl.where(y_keep, grad_y_weights * scoring.keep_scale, 0.0)
            kept_y = tl.where(y_keep, y_weights * scoring.keep_scale, 0.0)
        grad_scores += y_weights * (grad_y_weights - y_delta[:, None])
        grad_x_value = tl.dot(tl.trans(kept_y.to(y_grad.dtype)), y_grad, input_precision=PRECISION)
        if TIMED and gap_sums is not None:
            gaps += tl.sum(grad_scores * gap, 1)
        rounded = grad_scores.to(x_key.dtype)
        grad_y_key = tl.dot(rounded, x_key, grad_y_key, input_precision=PRECISION)
        grad_x_key = tl.dot(tl.trans(rounded), y_key, input_precision=PRECISION) * scale
        if MASKED:
            grad_x_key = tl.where(x_real[:, None], grad_x_key, 0.0)
            grad_x_value = tl.where(x_real[:, None], grad_x_value, 0.0)
        store_tile(
            select_head(x.grad_key, batch, head),
            start,
            time_x,
            grad_x_key,
            HEAD_DIM,
            BLOCK_X,
            BLOCK_HEAD_DIM,
        )
        store_tile(
            select_head(x.grad_value, batch, head),
            start,
            time_x,
            grad_x_value,
            VALUE_DIM_X,
            BLOCK_X,
            BLOCK_VALUE_DIM,
        )
    grad_y_key = tl.where(y_real[:, None], grad_y_key * scale, 0.0)
    grad_y_value = tl.where(y_real[:, None], grad_y_value, 0.0)
    store_tile(
        select_head(y.grad_key, batch, head),
        0,
        time_y,
        grad_y_key,
        HEAD_DIM,
        BLOCK_Y,
        BLOCK_HEAD_DIM,
    )
    store_tile(
        select_head(y.grad_value, batch, head),
        0,
        time_y,
        grad_y_value,
        VALUE_DIM_Y,
        BLOCK_Y,
        BLOCK_VALUE_DIM,
    )
    if gap_sums is not None:
        tl.store(gap_sums + row, tl.sum(gaps, 0))
