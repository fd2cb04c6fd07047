"""Attention in one direction in the style of FlashAttention-2, in Triton: what two calls cost.

The baseline of the counters: running maximum, deterministic backward with a program for each block
of queries and one for each block of keys (Dao, *FlashAttention-2*, 2023; the layout of Triton's
tutorial). Contiguous (batch * heads, time, head_dim) and no options: all it can do is be fast.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmer.kernels.triton_backend.configuration import Configuration
from mmer.kernels.triton_backend.launch import Launch, Plan
from mmer.kernels.triton_backend.tiles import log2

FORWARD = Configuration(dim=128, bits=16, block=64, tile=64, warps=4, stages=2)
BACKWARD = Configuration(dim=128, bits=16, block=64, tile=32, warps=4, stages=2)


@triton.jit
def _tile(pointer, row, start, time, DIM: tl.constexpr, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    steps = start + tl.arange(0, BLOCK)
    pointers = pointer + (row * time + steps)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    if RAGGED:
        return tl.load(pointers, mask=(steps < time)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def _put(pointer, row, start, time, values, DIM: tl.constexpr, BLOCK: tl.constexpr):
    steps = start + tl.arange(0, BLOCK)
    pointers = pointer + (row * time + steps)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=(steps < time)[:, None])


@triton.jit(do_not_specialize=["time_q", "time_k", "blocks"])
def flash_forward(
    q,
    k,
    v,
    out,
    lse,
    time_q,
    time_k,
    blocks,
    scale_log2,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """One block of queries a program; log-sum-exp to base 2."""
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    query = _tile(q, row, start, time_q, DIM, BLOCK, True)
    row_max = tl.full([BLOCK], -1.0e30, tl.float32)
    row_sum = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, DIM], tl.float32)
    whole = time_k // TILE * TILE
    for RAGGED in tl.static_range(2):
        low = whole if RAGGED else 0
        high = time_k if RAGGED else whole
        for first in range(low, high, TILE):
            key = _tile(k, row, first, time_k, DIM, TILE, RAGGED)
            value = _tile(v, row, first, time_k, DIM, TILE, RAGGED)
            scores = tl.dot(query, tl.trans(key))
            if RAGGED:
                inside = first + tl.arange(0, TILE) < time_k
                scores = tl.where(inside[None, :], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
            weights = tl.math.exp2(scores * scale_log2 - new_max[:, None])
            rescale = tl.math.exp2(row_max - new_max)
            row_sum = row_sum * rescale + tl.sum(weights, 1)
            acc = tl.dot(weights.to(value.dtype), value, acc * rescale[:, None])
            row_max = new_max
    _put(out, row, start, time_q, acc * (1.0 / row_sum)[:, None], DIM, BLOCK)
    steps = start + tl.arange(0, BLOCK)
    tl.store(lse + row * time_q + steps, row_max + log2(row_sum), mask=steps < time_q)


@triton.jit(do_not_specialize=["time", "blocks"])
def flash_delta(out, grad_out, delta, time, blocks, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """rowsum(out * grad_out)."""
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    product = _tile(out, row, start, time, DIM, BLOCK, True).to(tl.float32)
    product *= _tile(grad_out, row, start, time, DIM, BLOCK, True).to(tl.float32)
    steps = start + tl.arange(0, BLOCK)
    inside = steps < time
    total = tl.sum(tl.where(inside[:, None], product, 0.0), 1)
    tl.store(delta + row * time + steps, total, mask=inside)


@triton.jit(do_not_specialize=["time_q", "time_k", "blocks_q", "blocks_k"])
def flash_backward(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    grad_q,
    grad_k,
    grad_v,
    time_q,
    time_k,
    blocks_q,
    blocks_k,
    scale_log2,
    scale,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Blocks of queries, then blocks of keys, in one launch."""
    task = tl.program_id(0) % (blocks_q + blocks_k)
    row = (tl.program_id(0) // (blocks_q + blocks_k)).to(tl.int64)
    if task < blocks_q:
        start = task * BLOCK
        steps = start + tl.arange(0, BLOCK)
        query = _tile(q, row, start, time_q, DIM, BLOCK, True)
        grad = _tile(grad_out, row, start, time_q, DIM, BLOCK, True)
        row_lse = tl.load(lse + row * time_q + steps, mask=steps < time_q, other=float("inf"))
        row_delta = tl.load(delta + row * time_q + steps, mask=steps < time_q, other=0.0)
        acc = tl.zeros([BLOCK, DIM], tl.float32)
        whole = time_k // TILE * TILE
        for RAGGED in tl.static_range(2):
            low = whole if RAGGED else 0
            high = time_k if RAGGED else whole
            for first in range(low, high, TILE):
                key = _tile(k, row, first, time_k, DIM, TILE, RAGGED)
                value = _tile(v, row, first, time_k, DIM, TILE, RAGGED)
                scores = tl.dot(query, tl.trans(key)) * scale_log2
                if RAGGED:
                    inside = first + tl.arange(0, TILE) < time_k
                    scores = tl.where(inside[None, :], scores, float("-inf"))
                weights = tl.math.exp2(scores - row_lse[:, None])
                grad_scores = weights * (tl.dot(grad, tl.trans(value)) - row_delta[:, None])
                acc = tl.dot(grad_scores.to(key.dtype), key, acc)
        _put(grad_q, row, start, time_q, acc * scale, DIM, BLOCK)
    else:
        start = (task - blocks_q) * BLOCK
        key = _tile(k, row, start, time_k, DIM, BLOCK, True)
        value = _tile(v, row, start, time_k, DIM, BLOCK, True)
        acc_k = tl.zeros([BLOCK, DIM], tl.float32)
        acc_v = tl.zeros([BLOCK, DIM], tl.float32)
        whole = time_q // TILE * TILE
        for RAGGED in tl.static_range(2):
            low = whole if RAGGED else 0
            high = time_q if RAGGED else whole
            for first in range(low, high, TILE):
                steps = first + tl.arange(0, TILE)
                query = _tile(q, row, first, time_q, DIM, TILE, RAGGED)
                grad = _tile(grad_out, row, first, time_q, DIM, TILE, RAGGED)
                inside = steps < time_q
                row_lse = tl.load(lse + row * time_q + steps, mask=inside, other=float("inf"))
                row_delta = tl.load(delta + row * time_q + steps, mask=inside, other=0.0)
                scores = tl.dot(key, tl.trans(query)) * scale_log2
                weights = tl.math.exp2(scores - row_lse[None, :])
                acc_v = tl.dot(weights.to(grad.dtype), grad, acc_v)
                grad_scores = weights * (tl.dot(value, tl.trans(grad)) - row_delta[None, :])
                acc_k = tl.dot(grad_scores.to(query.dtype), query, acc_k)
        _put(grad_k, row, start, time_k, acc_k * scale, DIM, BLOCK)
        _put(grad_v, row, start, time_k, acc_v, DIM, BLOCK)


def _ceil(time: int, block: int) -> int:
    return -(-time // block)


def plan_forward(q: Tensor, k: Tensor, v: Tensor) -> Plan:
    """One direction; tensors (batch * heads, time, head_dim), head_dim a power of two."""
    rows, time, dim = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty(rows, time, dtype=torch.float32)
    blocks = _ceil(time, FORWARD.block)
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "lse": lse,
        "time_q": time,
        "time_k": k.shape[1],
        "blocks": blocks,
        "scale_log2": dim**-0.5 * 1.4426950408889634,
    }
    constants = {"DIM": dim, "BLOCK": FORWARD.block, "TILE": FORWARD.tile}
    launch = Launch(
        "flash_forward", flash_forward, rows * blocks, arguments, constants, FORWARD, (out, lse)
    )
    return Plan((out, lse), [launch])


def plan_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> Plan:
    """The gradients of one direction: two launches."""
    rows, time, dim = q.shape
    delta = torch.empty_like(lse)
    gradients = tuple(torch.empty_like(x) for x in (q, k, v))
    small = Configuration(dim=256, bits=16, block=32, tile=32, warps=4, stages=1)
    count = _ceil(time, small.block)
    first = Launch(
        "flash_delta",
        flash_delta,
        rows * count,
        {"out": out, "grad_out": grad_out, "delta": delta, "time": time, "blocks": count},
        {"DIM": dim, "BLOCK": small.block},
        small,
        (delta,),
    )
    blocks_q, blocks_k = (_ceil(x.shape[1], BACKWARD.block) for x in (q, k))
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "grad_out": grad_out,
        "lse": lse,
        "delta": delta,
        "grad_q": gradients[0],
        "grad_k": gradients[1],
        "grad_v": gradients[2],
        "time_q": time,
        "time_k": k.shape[1],
        "blocks_q": blocks_q,
        "blocks_k": blocks_k,
        "scale_log2": dim**-0.5 * 1.4426950408889634,
        "scale": dim**-0.5,
    }
    constants = {"DIM": dim, "BLOCK": BACKWARD.block, "TILE": BACKWARD.tile}
    programs = rows * (blocks_q + blocks_k)
    second = Launch(
        "flash_backward", flash_backward, programs, arguments, constants, BACKWARD, gradients
    )
    return Plan(gradients, [first, second])
