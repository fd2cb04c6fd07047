"""Chunked attention on Triton: its launches, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..triton_backend.configuration import Configuration, pick
from ..triton_backend.launch import (
    Launch,
    Plan,
    blocks,
    describe_scoring,
    matrix,
    padded_dim,
    present,
    readable,
    steps,
)
from ..triton_backend.pairs import plan_delta
from ..triton_backend.target import Target
from .reference import ChunkOptions, token_counts
from .triton_backward import ChunkedGradients, chunked_backward
from .triton_forward import chunked_forward
from .triton_windows import Chunking, Summaries

FORWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=64, warps=4, stages=2),
    Configuration(dim=128, bits=16, block=64, tile=32, warps=4, stages=2),
    # 10.0 has the shared memory for what it takes more than others.
    Configuration(dim=256, bits=16, block=64, tile=32, warps=8, stages=2, shared_memory=101_408),
    # float32 is three products a product: small tiles. 64 rows spill 40 bytes on 10.0 and 12.0.
    Configuration(dim=64, bits=32, block=32, tile=16, warps=4, stages=1, capability=100),
    Configuration(dim=64, bits=32, block=64, tile=16, warps=4, stages=1),
    # Wider heads are read in pieces, see `products`. Where a block is as large as its tile, several
    # warps form the same scores.
    Configuration(dim=128, bits=32, block=64, tile=16, warps=4, stages=1),
    Configuration(dim=256, bits=32, block=16, tile=32, warps=4, stages=1),
)
BACKWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=2),
    Configuration(dim=128, bits=16, block=64, tile=32, warps=8, stages=1),
    Configuration(dim=256, bits=16, block=32, tile=32, warps=8, stages=1),
    # float32 is three products a product: few warps, and tiles so wide that no two of them form the
    # same scores. 32 rows spill 16 bytes on 8.0 and 48 on 10.0.
    Configuration(dim=64, bits=32, block=16, tile=32, warps=4, stages=1),
    # Read in pieces, too; 8 warps share the accumulators of 256 columns. 16 rows, with half the
    # exponentials, spill 32 bytes on 8.0.
    Configuration(dim=128, bits=32, block=16, tile=32, warps=4, stages=1, capability=90),
    Configuration(dim=128, bits=32, block=32, tile=16, warps=4, stages=1),
    Configuration(dim=256, bits=32, block=16, tile=32, warps=8, stages=1),
)
# Summaries are few: one for each chunk of tokens.
SUMMARY_TILE = 16


def _describe_chunking(options: ChunkOptions, time: int) -> Chunking:
    # Numbers beyond the length mean the same as the length, and sums of them do not overflow.
    chunk_size = min(options.chunk_size, max(time, 1))
    lookahead = 0 if options.causal else options.lookahead
    return Chunking(
        chunk_size, *(min(x, time) for x in (options.lookback, lookahead, options.max_summaries))
    )


def _describe_summaries(
    options: ChunkOptions, time: int, gradients: tuple[Tensor, ...]
) -> Summaries | None:
    key, value = options.summary_k, options.summary_v
    if key is None or value is None or key.shape[2] == 0:
        return None
    key, value = readable(key), readable(value)
    count = token_counts(options.mask, time, options.chunk_size, key.device)
    bias = count.clamp(min=1).float().log2()
    mask = None if options.mask is None else count > 0
    return Summaries(
        matrix(key),
        matrix(value),
        matrix(gradients[0]) if gradients else None,
        matrix(gradients[1]) if gradients else None,
        steps(mask, None),
        bias,
        0 if bias.shape[0] == 1 else bias.stride(0),
        key.shape[2],
    )


def _constants(q: Tensor, v: Tensor, options: ChunkOptions, row: Configuration) -> dict[str, Any]:
    return {
        "HEAD_DIM": q.shape[3],
        "VALUE_DIM": v.shape[3],
        "BLOCK": row.block,
        "TILE": row.tile,
        "SUMMARY_TILE": SUMMARY_TILE,
        "BLOCK_HEAD_DIM": padded_dim(q.shape[3]),
        "BLOCK_VALUE_DIM": padded_dim(v.shape[3]),
        "CAUSAL": options.causal,
    }


def plan_forward(q: Tensor, k: Tensor, v: Tensor, options: ChunkOptions, target: Target) -> Plan:
    """Plan the forward: one launch, a block of queries a program."""
    q, k, v = map(readable, (q, k, v))
    batch, heads, time, dim = q.shape
    out = q.new_empty(batch, heads, time, v.shape[3])
    lse = q.new_empty(batch, heads, time, dtype=torch.float32)
    row = pick(FORWARD, padded_dim(dim, v.shape[3]), q.dtype, target)
    count = blocks(time, row.block)
    arguments: dict[str, Any] = {
        "q": matrix(q),
        "k": matrix(k),
        "v": matrix(v),
        "out": matrix(out),
        "lse": lse,
        "steps": steps(options.mask, None),
        "summaries": _describe_summaries(options, time, ()),
        "chunking": _describe_chunking(options, time),
        "scoring": describe_scoring(options, decay=None, max_gap=0.0, signed=False),
        "heads": heads,
        "time": time,
        "blocks": count,
    }
    constants = {
        **_constants(q, v, options, row),
        "NEGATIVE": options.scale < 0,
        "PRECISION": target.precision,
    }
    programs = batch * heads * count
    launch = Launch(
        "chunked_forward", chunked_forward, programs, arguments, constants, row, (out, lse)
    )
    return Plan((out, lse), [launch])


def plan_backward(
    grad_outputs: tuple[Tensor, ...],
    grad_lses: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    options: ChunkOptions,
    outputs: tuple[Tensor, ...],
    lses: tuple[Tensor, ...],
    target: Target,
) -> Plan:
    """Plan the backward: the delta of the queries, then all gradients."""
    q, k, v = map(readable, tensors)
    grad_out = readable(grad_outputs[0])
    grad_lse = None if grad_lses[0] is None else grad_lses[0].contiguous()
    batch, heads, time, dim = q.shape
    side = steps(options.mask, None)
    (delta,), first = plan_delta(outputs, (grad_out,), lses, (grad_lse,), (side,), target)
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    grad_summaries: list[Tensor | None] = [None, None]
    if options.summary_k is not None and options.summary_v is not None:
        grad_summaries = [
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (options.summary_k, options.summary_v)
        ]
    summaries = _describe_summaries(options, time, present(*grad_summaries))
    row = pick(BACKWARD, padded_dim(dim, v.shape[3]), q.dtype, target)
    count = blocks(time, row.block)
    summary_blocks = 0 if summaries is None else blocks(summaries.chunks, SUMMARY_TILE)
    arguments: dict[str, Any] = {
        "q": matrix(q),
        "k": matrix(k),
        "v": matrix(v),
        "gradients": ChunkedGradients(matrix(grad_out), lses[0], delta, *map(matrix, gradients)),
        "steps": side,
        "summaries": summaries,
        "chunking": _describe_chunking(options, time),
        "scoring": describe_scoring(options, decay=None, max_gap=0.0, signed=True),
        "scale": options.scale,
        "heads": heads,
        "time": time,
        "blocks": count,
        "summary_blocks": summary_blocks,
    }
    constants = {**_constants(q, v, options, row), "PRECISION": target.precision}
    programs = batch * heads * (summary_blocks + 2 * count)
    written = present(*gradients, *grad_summaries)
    second = Launch(
        "chunked_backward", chunked_backward, programs, arguments, constants, row, written
    )
    return Plan((*gradients, *grad_summaries), [first, second])
