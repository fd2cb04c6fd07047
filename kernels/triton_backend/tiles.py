"""What every Triton kernel is made of: tiles, padding, visibility, dropout.

A kernel gets its tensors as tuples of a pointer and strides, so that any strides with a contiguous
last dimension are read in place. Offsets between tiles are 64 bits wide. Logarithms inside of the
kernels are to base 2, because the hardware's exponential is; what is stored is natural.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Below every score, and finite: the difference of two of them is 0, not NaN.
LOWEST = tl.constexpr(-1.0e30)
# Products of wider heads in float32 are formed in pieces of so many columns, see `products`.
_WHOLE = 64
_PIECE = tl.constexpr(32)
# NVIDIA's instruction for logarithms is one against 24; AMD and the interpreter have the library's.
_FAST_LOG2 = tl.constexpr(torch.version.hip is None and os.environ.get("TRITON_INTERPRET") != "1")


class Matrix(NamedTuple):
    """A tensor (batch, heads, time, dim), its last dimension contiguous.

    ``stride_time`` is a constant of the compiled kernel: the distance of two rows then costs no
    arithmetic and no register. A model has one or two of them, whatever its lengths.
    """

    pointer: Any
    stride_batch: Any
    stride_head: Any
    stride_time: Any


class Steps(NamedTuple):
    """What is known of the steps of one side: which are real, and when they are.

    ``mask`` is (batch, time) bool, ``times`` (batch, time) float32; None where there is none.
    """

    mask: Any
    mask_stride_batch: Any
    mask_stride_time: Any
    times: Any
    times_stride_batch: Any
    times_stride_time: Any


class HeadMatrix(NamedTuple):
    """The (time, dim) matrix of one head."""

    pointer: Any
    stride_time: Any


class Rows(NamedTuple):
    """Rows of one head from ``start`` on, and which of them are real, (block,).

    ``tile`` is None where the operand of a product would not fit into registers: it is read in
    pieces then, see `products`.
    """

    matrix: Any
    start: Any
    real: Any
    tile: Any


class Scoring(NamedTuple):
    """How products become scores and which weights are dropped; scalars of one call.

    ``decay`` (heads,) and ``seed`` () are pointers or None; ``threshold`` is the smallest kept
    random word less 2**31, so that words compare as signed numbers.
    """

    scale_log2: Any
    decay: Any
    max_gap: Any
    seed: Any
    threshold: Any
    keep_scale: Any


@triton.constexpr_function
def _same_constant(x, y):
    return isinstance(x, int) and isinstance(y, int) and x == y


@triton.jit
def runtime_matrix(matrix, other):
    """The matrix with strides that an ``if`` can choose: values, but for one that both have."""
    stride_batch = tl.cast(matrix.stride_batch, tl.int64)
    stride_head = tl.cast(matrix.stride_head, tl.int64)
    stride_time = matrix.stride_time
    if not _same_constant(matrix.stride_time, other.stride_time):
        stride_time = tl.cast(matrix.stride_time, tl.int64)
    return Matrix(matrix.pointer, stride_batch, stride_head, stride_time)


@triton.jit
def runtime_steps(steps):
    """The steps with strides that are values, not constants."""
    mask_stride_batch = None
    mask_stride_time = None
    times_stride_batch = None
    times_stride_time = None
    if steps.mask is not None:
        mask_stride_batch = tl.cast(steps.mask_stride_batch, tl.int64)
        mask_stride_time = tl.cast(steps.mask_stride_time, tl.int64)
    if steps.times is not None:
        times_stride_batch = tl.cast(steps.times_stride_batch, tl.int64)
        times_stride_time = tl.cast(steps.times_stride_time, tl.int64)
    return Steps(
        steps.mask,
        mask_stride_batch,
        mask_stride_time,
        steps.times,
        times_stride_batch,
        times_stride_time,
    )


@triton.jit
def choose_side(a, b, time_a, time_b, block, blocks_a, BLOCK: tl.constexpr):
    """The side that a block of rows is of, the other, their times, its first row and its stream."""
    if block < blocks_a:
        x = a
        y = b
        time_x = time_a
        time_y = time_b
        start = block * BLOCK
        stream = 0
    else:
        x = b
        y = a
        time_x = time_b
        time_y = time_a
        start = (block - blocks_a) * BLOCK
        stream = 1
    return x, y, time_x, time_y, start, stream


@triton.jit
def select_head(matrix, batch, head):
    """The (time, dim) matrix of one head."""
    offset = tl.cast(batch, tl.int64) * matrix.stride_batch
    offset += tl.cast(head, tl.int64) * matrix.stride_head
    return HeadMatrix(matrix.pointer + offset, matrix.stride_time)


@triton.jit
def load_tile(
    matrix,
    start,
    real,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Rows from ``start`` on, (BLOCK, BLOCK_DIM); 0 where not real, whatever memory holds."""
    pointers, columns = _tile_pointers(matrix, start, 0, BLOCK, BLOCK_DIM)
    return _load(pointers, columns, real, DIM, BLOCK_DIM, MASKED)


@triton.jit
def rows_of(
    matrix,
    start,
    real,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Rows from ``start`` on; their tile with them unless products read them in pieces."""
    tile = None
    if not _in_pieces(matrix.pointer, BLOCK_DIM):
        tile = load_tile(matrix, start, real, DIM, BLOCK, BLOCK_DIM, MASKED)
    return Rows(matrix, start, real, tile)


@triton.jit
def products(
    x,
    y,
    DIM: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of each row of x with each of y, (BLOCK_X, BLOCK_Y).

    All rows of y are real where not MASKED. A warp's operands are whole rows, of float32 two
    numbers for one: heads that are too wide are read in pieces. Theirs stays a loop, or the pieces
    of the resident rows would be loaded once and kept.
    """
    if x.tile is not None:
        total = tl.dot(x.tile, tl.trans(y.tile), input_precision=PRECISION)
    else:
        total = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
        for first in range(0, BLOCK_DIM, _PIECE):
            piece_x = _load_piece(x, first, DIM, BLOCK_X, BLOCK_DIM, True)
            piece_y = _load_piece(y, first, DIM, BLOCK_Y, BLOCK_DIM, MASKED)
            total = tl.dot(piece_x, tl.trans(piece_y), total, input_precision=PRECISION)
    return total


@triton.jit
def add_products(
    total,
    weights,
    rows,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the product of weights, (any, BLOCK), with rows, (BLOCK, BLOCK_DIM).

    Where rows have no tile, half of them are read at a time.
    """
    if rows.tile is not None:
        total = tl.dot(weights.to(rows.tile.dtype), rows.tile, total, input_precision=PRECISION)
    elif BLOCK == 16:
        total = _add_tile(
            total, weights, rows, rows.start, rows.real, DIM, BLOCK, BLOCK_DIM, MASKED, PRECISION
        )
    else:
        HALF: tl.constexpr = BLOCK // 2
        # (any, HALF) twice, then (HALF,) twice
        halves = tl.permute(tl.reshape(weights, [weights.shape[0], 2, HALF]), (0, 2, 1))
        first, last = tl.split(halves)
        first_real, last_real = tl.split(tl.trans(tl.reshape(rows.real, [2, HALF])))
        total = _add_tile(
            total, first, rows, rows.start, first_real, DIM, HALF, BLOCK_DIM, MASKED, PRECISION
        )
        total = _add_tile(
            total, last, rows, rows.start + HALF, last_real, DIM, HALF, BLOCK_DIM, MASKED, PRECISION
        )
    return total


@triton.jit
def _add_tile(
    total,
    weights,
    rows,
    start,
    real,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = load_tile(rows.matrix, start, real, DIM, BLOCK, BLOCK_DIM, MASKED)
    return tl.dot(weights, tile, total, input_precision=PRECISION)


@triton.jit
def _load_piece(
    rows,
    first,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    pointers, columns = _tile_pointers(rows.matrix, rows.start, first, BLOCK, _PIECE)
    return _load(pointers, columns, rows.real, DIM, BLOCK_DIM, MASKED)


@triton.jit
def _load(
    pointers, columns, real, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, MASKED: tl.constexpr
):
    if MASKED and DIM < BLOCK_DIM:
        return tl.load(pointers, mask=real[:, None] & (columns < DIM)[None, :], other=0.0)
    if MASKED:
        return tl.load(pointers, mask=real[:, None], other=0.0)
    if DIM < BLOCK_DIM:
        return tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
    return tl.load(pointers)


@triton.constexpr_function
def _in_pieces(pointer, block_dim):
    return pointer.dtype.element_ty == tl.float32 and block_dim > _WHOLE


@triton.jit
def store_tile(
    matrix, start, time, tile, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    """Write the rows of ``tile`` that lie inside of the time."""
    pointers, columns = _tile_pointers(matrix, start, 0, BLOCK, BLOCK_DIM)
    inside = (start + tl.arange(0, BLOCK) < time)[:, None]
    if DIM < BLOCK_DIM:
        inside = inside & (columns < DIM)[None, :]
    tl.store(pointers, tile.to(matrix.pointer.dtype.element_ty), mask=inside)


@triton.jit
def _tile_pointers(matrix, start, first_column, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    columns = first_column + tl.arange(0, COLUMNS)
    # Inside of a tile 32 bits are enough, see `readable`; they save a register a pointer.
    rows = tl.arange(0, BLOCK) * tl.cast(matrix.stride_time, tl.int32)
    first = matrix.pointer + tl.cast(start, tl.int64) * matrix.stride_time
    return first + (rows[:, None] + columns[None, :]), columns


@triton.jit
def load_real(steps, batch, start, time, BLOCK: tl.constexpr):
    """Which of the steps from ``start`` on are real, (BLOCK,)."""
    rows = start + tl.arange(0, BLOCK)
    real = rows < time
    if steps.mask is not None:
        pointer = steps.mask + tl.cast(batch, tl.int64) * steps.mask_stride_batch
        real = real & (tl.load(pointer + rows * steps.mask_stride_time, mask=real, other=0) != 0)
    return real


@triton.jit
def load_times(steps, batch, start, real, BLOCK: tl.constexpr):
    """Seconds of the steps from ``start`` on, (BLOCK,); 0 where not real."""
    rows = start + tl.arange(0, BLOCK)
    pointer = steps.times + tl.cast(batch, tl.int64) * steps.times_stride_batch
    return tl.load(pointer + rows * steps.times_stride_time, mask=real, other=0.0)


@triton.jit
def real_range(steps, batch, time):
    """First real step and one past the last; (time, 0) if there is none.

    Padding at either end then costs its bytes of the mask and no arithmetic.
    """
    first = time
    last = time * 0
    if steps.mask is None:
        first = time * 0
        last = time
    else:
        for start in range(0, time, 1024):
            rows = start + tl.arange(0, 1024)
            real = load_real(steps, batch, start, time, 1024)
            first = tl.minimum(first, tl.min(tl.where(real, rows, time), 0))
            last = tl.maximum(last, tl.max(tl.where(real, rows + 1, 0), 0))
    return first, last


@triton.jit
def out_of_reach(times_x, real_x, times_y, real_y, max_gap):
    """Whether no real pair of two tiles lies within ``max_gap`` seconds.

    Rounding is monotonic: where the nearest ends are too far apart in float32, so is every pair.
    """
    low_x = tl.min(tl.where(real_x, times_x, float("inf")), 0)
    high_x = tl.max(tl.where(real_x, times_x, float("-inf")), 0)
    low_y = tl.min(tl.where(real_y, times_y, float("inf")), 0)
    high_y = tl.max(tl.where(real_y, times_y, float("-inf")), 0)
    return (low_y - high_x > max_gap) | (low_x - high_y > max_gap)


@triton.jit
def apply_gap(scores, gap, scoring, head, LIMITED: tl.constexpr):
    """Scores less their decay over the gap in seconds; -inf where it is too long."""
    if scoring.decay is not None:
        scores -= tl.load(scoring.decay + head) * LOG2_E * gap
    if LIMITED:
        scores = tl.where(gap <= scoring.max_gap, scores, float("-inf"))
    return scores


@triton.jit
def keep_mask(
    scoring, row, queries, first_key, stream, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr
):
    """Which weights dropout keeps, (BLOCK_QUERIES, BLOCK_KEYS); ``kernels/philox.py`` bit for bit.

    One call of Philox gives the words of four neighbouring keys; ``first_key`` is a multiple of 4.
    """
    group = first_key // 4 + tl.arange(0, BLOCK_KEYS // 4)
    shape: tl.constexpr = [BLOCK_QUERIES, BLOCK_KEYS // 4]
    zeros = tl.zeros(shape, tl.int32)
    seed = tl.load(scoring.seed)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, zeros + group[None, :], zeros + queries[:, None], zeros + row, zeros + stream
    )
    # Joined axes are the two bits of key % 4, the higher one first.
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    words = (words ^ 0x80000000).to(tl.int32, bitcast=True)
    return tl.reshape(words >= scoring.threshold, [BLOCK_QUERIES, BLOCK_KEYS])


@triton.jit
def load_lse_log2(pointer, row, start, time, BLOCK: tl.constexpr):
    """Log-sum-exp to base 2, (BLOCK,); +inf where no key is seen, so that all weights are 0."""
    rows = start + tl.arange(0, BLOCK)
    first = pointer + tl.cast(row, tl.int64) * time
    lse = tl.load(first + rows, mask=rows < time, other=float("-inf"))
    return tl.where(lse > float("-inf"), lse * LOG2_E, float("inf"))


@triton.jit
def load_row_values(pointer, row, start, time, BLOCK: tl.constexpr):
    """One float32 per step of a contiguous (batch * heads, time), (BLOCK,); 0 outside."""
    rows = start + tl.arange(0, BLOCK)
    first = pointer + tl.cast(row, tl.int64) * time
    return tl.load(first + rows, mask=rows < time, other=0.0)


@triton.jit
def store_row_values(pointer, row, start, time, values, BLOCK: tl.constexpr):
    """Write one float32 per step of a contiguous (batch * heads, time)."""
    rows = start + tl.arange(0, BLOCK)
    tl.store(pointer + tl.cast(row, tl.int64) * time + rows, values, mask=rows < time)


@triton.jit
def partial_sums(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of every eighth column, (ROWS, 8).

    As tensor cores lay a product out, a thread has them without asking its neighbours.
    """
    return tl.sum(tl.reshape(tile, [ROWS, COLUMNS // 8, 8]), 1)


@triton.jit
def partial_column_sums(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of rows that are eight apart, (ROWS // 2, COLUMNS): of what one thread has."""
    pairs = tl.sum(tl.reshape(tile, [ROWS // 16, 2, 8, COLUMNS]), 1)
    return tl.reshape(pairs, [ROWS // 2, COLUMNS])


@triton.jit
def first_half(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The first half of the columns; no value moves to another thread."""
    halves = tl.permute(tl.reshape(tile, [ROWS, 2, COLUMNS // 2]), (0, 2, 1))
    first, _ = tl.split(halves)
    return first


@triton.jit
def log2(x):
    """Logarithm to base 2 of normal numbers, wrong by 2**-22 at most between 0.5 and 2."""
    if _FAST_LOG2:
        return libdevice.fast_log2f(x)
    return tl.math.log2(x)


@triton.jit
def finish_rows(row_max, row_sum, acc, real, scoring):
    """Divide by the row sums; 0 and -inf for a padded query or one that sees no key."""
    sees_a_key = real & (row_sum > 0)
    safe_sum = tl.where(sees_a_key, row_sum, 1.0)
    factor = tl.where(sees_a_key, 1.0 / safe_sum, 0.0)
    if scoring.seed is not None:
        factor *= scoring.keep_scale
    lse = tl.where(sees_a_key, (row_max + log2(safe_sum)) * LN_2, float("-inf"))
    return acc * factor[:, None], lse
