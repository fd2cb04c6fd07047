"""Shared cross-attention backward in Triton by roles: S once for each side.

Each block of rows of either side has a program that streams the other side: five products a side, S
and the gradient of the weights twice, no partial sums in memory, always added in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_backend.spans import tile_count, tile_start, whole_span
from ..triton_backend.tiles import (
    add_products,
    apply_gap,
    choose_side,
    keep_mask,
    load_lse_log2,
    load_real,
    load_row_values,
    load_times,
    out_of_reach,
    products,
    rows_of,
    select_head,
    store_tile,
)
from .triton_sides import runtime_side


@triton.jit(do_not_specialize=["heads", "time_a", "time_b", "blocks_a", "blocks_b"])
def shared_split_backward(
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
    """Gradients of a block of rows of either side. ``gap_sums`` (batch * heads, blocks_a)."""
    block = tl.program_id(0) % (blocks_a + blocks_b)
    row = tl.program_id(0) // (blocks_a + blocks_b)
    gap_sum = gap_sums
    if gap_sums is not None:
        gap_sum = gap_sums + tl.cast(row, tl.int64) * blocks_a + block
    if VALUE_DIM_A == VALUE_DIM_B:
        x, y, time_x, time_y, start, stream = choose_side(
            runtime_side(a, b), runtime_side(b, a), time_a, time_b, block, blocks_a, BLOCK
        )
        _split_block(
            x,
            y,
            scoring,
            scale,
            gap_sum,
            heads,
            time_x,
            time_y,
            start,
            row,
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
            _split_block(
                a,
                b,
                scoring,
                scale,
                gap_sum,
                heads,
                time_a,
                time_b,
                block * BLOCK,
                row,
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
            _split_block(
                b,
                a,
                scoring,
                scale,
                gap_sum,
                heads,
                time_b,
                time_a,
                (block - blocks_a) * BLOCK,
                row,
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
def _split_block(
    x,
    y,
    scoring,
    scale,
    gap_sum,
    heads,
    time_x,
    time_y,
    start_x,
    row,
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
    """Rows of x from ``start_x`` on; ``stream`` is that of the softmax whose queries are in x."""
    MASKED: tl.constexpr = x.steps.mask is not None
    TIMED: tl.constexpr = x.steps.times is not None
    batch = row // heads
    head = row % heads
    rows = start_x + tl.arange(0, BLOCK)
    x_real = load_real(x.steps, batch, start_x, time_x, BLOCK)
    # (BLOCK, BLOCK_HEAD_DIM), then (BLOCK, BLOCK_VALUE_DIM)
    x_key = rows_of(
        select_head(x.key, batch, head), start_x, x_real, HEAD_DIM, BLOCK, BLOCK_HEAD_DIM, True
    )
    # What only the gradient of a softmax over one step is formed of is left out: that is 0.
    x_value = rows_of(
        select_head(x.value, batch, head),
        start_x,
        x_real & (time_x > 1),
        VALUE_DIM_X,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    x_lse = load_lse_log2(x.lse, row, start_x, time_x, BLOCK)
    x_grad_real = x_real & (time_y > 1)
    if LIMITED:
        # A real query may see no key here, and its gradient may then be NaN.
        x_grad_real = x_grad_real & (x_lse < float("inf"))
    x_grad = rows_of(
        select_head(x.grad_out, batch, head),
        start_x,
        x_grad_real,
        VALUE_DIM_Y,
        BLOCK,
        BLOCK_VALUE_DIM,
        True,
    )
    x_delta = load_row_values(x.delta, row, start_x, time_x, BLOCK)
    if TIMED:
        x_times = load_times(x.steps, batch, start_x, x_real, BLOCK)
    y_keys = select_head(y.key, batch, head)
    y_values = select_head(y.value, batch, head)
    y_grads = select_head(y.grad_out, batch, head)
    grad_key = tl.zeros([BLOCK, BLOCK_HEAD_DIM], tl.float32)
    grad_value = tl.zeros([BLOCK, BLOCK_VALUE_DIM], tl.float32)
    gaps = tl.zeros([BLOCK], tl.float32)
    span = whole_span(y.steps, batch, time_y, TILE, TILE)
    for EDGE in tl.static_range(1 if MASKED else 0, 2):
        for index in range(0, tile_count(span, EDGE, TILE)):
            start = tile_start(span, index, EDGE, TILE)
            columns = start + tl.arange(0, TILE)
            y_real = columns < time_y
            if EDGE:
                y_real = load_real(y.steps, batch, start, time_y, TILE)
            reached = True
            if TIMED:
                y_times = load_times(y.steps, batch, start, y_real, TILE)
                if LIMITED:
                    reached = not out_of_reach(x_times, x_real, y_times, y_real, scoring.max_gap)
            if reached:
                # (TILE, BLOCK_HEAD_DIM)
                y_key = rows_of(y_keys, start, y_real, HEAD_DIM, TILE, BLOCK_HEAD_DIM, EDGE)
                y_lse = load_lse_log2(y.lse, row, start, time_y, TILE)
                y_delta = load_row_values(y.delta, row, start, time_y, TILE)
                # (BLOCK, TILE)
                scores = products(
                    x_key, y_key, HEAD_DIM, BLOCK, TILE, BLOCK_HEAD_DIM, EDGE, PRECISION
                )
                scores = scores * scoring.scale_log2
                if TIMED:
                    gap = tl.abs(x_times[:, None] - y_times[None, :])
                    scores = apply_gap(scores, gap, scoring, head, LIMITED)
                if EDGE:
                    scores = tl.where(y_real[None, :], scores, float("-inf"))
                x_weights = tl.math.exp2(scores - x_lse[:, None])
                y_weights = tl.math.exp2(scores - y_lse[None, :])
                # (TILE, BLOCK_VALUE_DIM), each loaded when it is needed: registers are scarce
                y_value = rows_of(y_values, start, y_real, VALUE_DIM_Y, TILE, BLOCK_VALUE_DIM, EDGE)
                grad_x_weights = products(
                    x_grad, y_value, VALUE_DIM_Y, BLOCK, TILE, BLOCK_VALUE_DIM, EDGE, PRECISION
                )
                y_grad_real = y_real
                if LIMITED:
                    y_grad_real = y_real & (y_lse < float("inf"))
                y_grad = rows_of(
                    y_grads, start, y_grad_real, VALUE_DIM_X, TILE, BLOCK_VALUE_DIM, EDGE or LIMITED
                )
                grad_y_weights = products(
                    x_value,
                    y_grad,
                    VALUE_DIM_X,
                    BLOCK,
                    TILE,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                    PRECISION,
                )
                kept = y_weights
                if scoring.seed is not None:
                    x_keep = keep_mask(scoring, row, rows, start, stream, BLOCK, TILE)
                    y_keep = tl.trans(
                        keep_mask(scoring, row, columns, start_x, 1 - stream, TILE, BLOCK)
                    )
                    grad_x_weights = tl.where(x_keep, grad_x_weights * scoring.keep_scale, 0.0)
                    grad_y_weights = tl.where(y_keep, grad_y_weights * scoring.keep_scale, 0.0)
                    kept = tl.where(y_keep, y_weights * scoring.keep_scale, 0.0)
                grad_value = add_products(
                    grad_value,
                    kept,
                    y_grad,
                    VALUE_DIM_X,
                    TILE,
                    BLOCK_VALUE_DIM,
                    EDGE or LIMITED,
                    PRECISION,
                )
                grad_scores = x_weights * (grad_x_weights - x_delta[:, None])
                grad_scores += y_weights * (grad_y_weights - y_delta[None, :])
                if TIMED and gap_sum is not None:
                    gaps += tl.sum(grad_scores * gap, 1)
                grad_key = add_products(
                    grad_key, grad_scores, y_key, HEAD_DIM, TILE, BLOCK_HEAD_DIM, EDGE, PRECISION
                )
    grad_key = tl.where(x_real[:, None], grad_key * scale, 0.0)
    grad_value = tl.where(x_real[:, None], grad_value, 0.0)
    store_tile(
        select_head(x.grad_key, batch, head),
        start_x,
        time_x,
        grad_key,
        HEAD_DIM,
        BLOCK,
        BLOCK_HEAD_DIM,
    )
    store_tile(
        select_head(x.grad_value, batch, head),
        start_x,
        time_x,
        grad_value,
        VALUE_DIM_X,
        BLOCK,
        BLOCK_VALUE_DIM,
    )
    if gap_sum is not None:  # noqa: SIM102 - known when compiling, what follows is not
        # Every pair is seen from A: B has nothing to add.
        if stream == 0:
            tl.store(gap_sum, tl.sum(tl.where(x_real, gaps, 0.0), 0))
