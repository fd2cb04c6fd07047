"""What the backward of a softmax subtracts from its weights' gradient, for each query."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import load_real, load_row_values, products, rows_of, select_head, store_row_values


class DeltaSide(NamedTuple):
    """Outputs and gradients of one side; ``grad_lse`` and ``delta`` (batch * heads, time)."""

    out: Any
    grad_out: Any
    lse: Any
    grad_lse: Any
    delta: Any
    steps: Any


@triton.jit
def row_delta(
    side,
    batch,
    head,
    row,
    start,
    real,
    time,
    key_time,
    grad_out,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """rowsum(out * grad_out) - grad_lse, (BLOCK,); 0 for a row that sees no key.

    The sums are the diagonal of a product, formed as the gradient of the weights is: where a query
    sees one key, whose value is its output, the two agree to the last bit and the score's gradient
    is 0, as it should be. Where ``key_time`` is 1, there is one key for all and neither is formed:
    the caller has zeros in place of what the gradient of the weights is formed of.
    """
    out = rows_of(select_head(side.out, batch, head), start, real, DIM, BLOCK, BLOCK_DIM, True)
    rows = tl.arange(0, BLOCK)
    all_products = products(grad_out, out, DIM, BLOCK, BLOCK, BLOCK_DIM, True, PRECISION)
    delta = tl.sum(tl.where(rows[:, None] == rows[None, :], all_products, 0.0), 1)
    delta = tl.where(key_time > 1, delta, 0.0)
    if side.grad_lse is not None:
        delta -= load_row_values(side.grad_lse, row, start, time, BLOCK)
    steps = start + rows
    lse = tl.load(
        side.lse + tl.cast(row, tl.int64) * time + steps, mask=steps < time, other=float("-inf")
    )
    return tl.where(lse > float("-inf"), delta, 0.0)


@triton.jit(do_not_specialize=["heads", "blocks_a", "blocks_b", "time_a", "time_b"])
def pair_delta(
    a,
    b,
    heads,
    time_a,
    time_b,
    blocks_a,
    blocks_b,
    DIM_A: tl.constexpr,
    DIM_B: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The delta of both sides in one launch; ``b`` None for one side alone."""
    block = tl.program_id(0) % (blocks_a + blocks_b)
    row = tl.program_id(0) // (blocks_a + blocks_b)
    if b is None:
        start = block * BLOCK
        _delta_block(a, heads, row, start, time_a, time_a, DIM_A, BLOCK, BLOCK_DIM, PRECISION)
    else:
        if block < blocks_a:
            start = block * BLOCK
            _delta_block(a, heads, row, start, time_a, time_b, DIM_A, BLOCK, BLOCK_DIM, PRECISION)
        else:
            start = (block - blocks_a) * BLOCK
            _delta_block(b, heads, row, start, time_b, time_a, DIM_B, BLOCK, BLOCK_DIM, PRECISION)


@triton.jit
def _delta_block(
    side,
    heads,
    row,
    start,
    time,
    key_time,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = row // heads
    head = row % heads
    real = load_real(side.steps, batch, start, time, BLOCK)
    grad_out = rows_of(
        select_head(side.grad_out, batch, head), start, real, DIM, BLOCK, BLOCK_DIM, True
    )
    delta = row_delta(
        side,
        batch,
        head,
        row,
        start,
        real,
        time,
        key_time,
        grad_out,
        DIM,
        BLOCK,
        BLOCK_DIM,
        PRECISION,
    )
    store_row_values(side.delta, row, start, time, delta, BLOCK)
