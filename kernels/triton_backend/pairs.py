"""Launches that both cross-attention operators share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..pairs import PairOptions
from .configuration import Configuration, pick
from .delta import DeltaSide, pair_delta
from .launch import (
    Launch,
    Plan,
    blocks,
    both_masks,
    describe_scoring,
    matrix,
    padded_dim,
    readable,
    steps,
)
from .pair_forward import ForwardSide, pair_forward
from .target import Target
from .tiles import Scoring, Steps

# Role split, forward. The resident queries have 64 rows for 4 warps: 16 rows a warp is what the
# tensor cores take, and 8 warps would compute every product twice.
FORWARD: tuple[Configuration, ...] = (
    # wgmma leaves registers for twice as many keys where none is masked: 16 % fewer instructions a
    # score, what does not grow with the tile being shared by more.
    Configuration(
        dim=64,
        bits=16,
        block=64,
        tile=64,
        interior=128,
        warps=4,
        stages=2,
        capability=90,
        below=100,
    ),
    Configuration(dim=64, bits=16, block=64, tile=64, warps=4, stages=2),
    # 64 keys of 128 dimensions spill on every target.
    Configuration(dim=128, bits=16, block=64, tile=32, warps=4, stages=2, registers=255),
    # The accumulator of 256 dimensions needs 8 warps; its products are not computed twice.
    # 10.0 has the shared memory for what it takes more than others.
    Configuration(dim=256, bits=16, block=64, tile=32, warps=8, stages=2, shared_memory=103_456),
    # float32 is three products a product: small tiles. 64 rows spill 16 bytes on 12.0.
    Configuration(dim=64, bits=32, block=32, tile=16, warps=4, stages=1, capability=120),
    Configuration(dim=64, bits=32, block=64, tile=16, warps=4, stages=1),
    # Wider heads are read in pieces, see `products`. Where a block is as large as its tile, several
    # warps form the same scores.
    Configuration(dim=128, bits=32, block=64, tile=16, warps=4, stages=1),
    Configuration(dim=256, bits=32, block=16, tile=32, warps=4, stages=1),
)
# Reads, and takes the diagonal of a product: small blocks, whose product is small.
DELTA: tuple[Configuration, ...] = (
    Configuration(dim=256, bits=16, block=32, tile=32, warps=4, stages=1),
    Configuration(dim=256, bits=32, block=32, tile=32, warps=4, stages=1),
)


def forward_side(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, steps: Steps
) -> ForwardSide:
    """Describe one side to a forward kernel."""
    return ForwardSide(matrix(query), matrix(key), matrix(value), matrix(out), lse, steps)


def common_batch(a: Tensor, b: Tensor) -> int:
    """Batch size of the result; a batch of 1 is broadcast, against an empty one too."""
    return b.shape[0] if a.shape[0] == 1 else a.shape[0]


def describe_sides(options: PairOptions) -> tuple[Steps, Steps]:
    """Masks and times of both sides; times only where they matter."""
    mask_a, mask_b = both_masks(options.mask_a, options.mask_b)
    timed = options.times_a is not None and (options.decay is not None or limited(options))
    times_a, times_b = (options.times_a, options.times_b) if timed else (None, None)
    return steps(mask_a, times_a), steps(mask_b, times_b)


def limited(options: PairOptions) -> bool:
    """Whether pairs too far apart do not see each other."""
    return options.times_a is not None and options.max_gap < math.inf


def pair_scoring(options: PairOptions, *, signed: bool) -> Scoring:
    """Scores and dropout of a cross-attention call."""
    return describe_scoring(options, decay=options.decay, max_gap=options.max_gap, signed=signed)


def decay_gradient(gap_sums: Tensor | None, options: PairOptions) -> Tensor | None:
    """Gradient of the slopes, (heads,), from each program's sum of score gradient times gap."""
    if gap_sums is None or options.decay is None:
        return None
    return -gap_sums.transpose(0, 1).flatten(1).sum(dim=1).to(options.decay.dtype)


def new_outputs(
    batch: int, a: Tensor, b: Tensor, value_a: Tensor, value_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty outputs and log-sum-exps of the two directions."""
    heads = a.shape[1]
    out_a = a.new_empty(batch, heads, a.shape[2], value_b.shape[3])
    out_b = b.new_empty(batch, heads, b.shape[2], value_a.shape[3])
    lse_a, lse_b = (a.new_empty(x.shape[:3], dtype=torch.float32) for x in (out_a, out_b))
    return out_a, out_b, lse_a, lse_b


def plan_pair_forward(
    query_a: Tensor,
    key_a: Tensor,
    value_a: Tensor,
    query_b: Tensor,
    key_b: Tensor,
    value_b: Tensor,
    options: PairOptions,
    target: Target,
) -> Plan:
    """Both directions in one launch, each with its own scores."""
    query_a, key_a, value_a, query_b, key_b, value_b = map(
        readable, (query_a, key_a, value_a, query_b, key_b, value_b)
    )
    batch = common_batch(query_a, query_b)
    heads, dim = query_a.shape[1], query_a.shape[3]
    out_a, out_b, lse_a, lse_b = new_outputs(batch, query_a, query_b, value_a, value_b)
    time_a, time_b = query_a.shape[2], query_b.shape[2]
    steps_a, steps_b = describe_sides(options)
    block_dim = padded_dim(dim)
    block_value_dim = padded_dim(value_a.shape[3], value_b.shape[3])
    row = pick(FORWARD, max(block_dim, block_value_dim), query_a.dtype, target)
    blocks_a, blocks_b = blocks(time_a, row.block), blocks(time_b, row.block)
    timed = steps_a.times is not None
    arguments: dict[str, Any] = {
        "a": forward_side(query_a, key_a, value_a, out_a, lse_a, steps_a),
        "b": forward_side(query_b, key_b, value_b, out_b, lse_b, steps_b),
        "scoring": pair_scoring(options, signed=False),
        "heads": heads,
        "time_a": time_a,
        "time_b": time_b,
        "blocks_a": blocks_a,
        "blocks_b": blocks_b,
    }
    constants: dict[str, Any] = {
        "HEAD_DIM": dim,
        "VALUE_DIM_A": value_a.shape[3],
        "VALUE_DIM_B": value_b.shape[3],
        "BLOCK_QUERIES": row.block,
        "BLOCK_INTERIOR": row.interior or row.tile,
        "BLOCK_EDGE": row.tile,
        "BLOCK_HEAD_DIM": block_dim,
        "BLOCK_VALUE_DIM": block_value_dim,
        "NEGATIVE": options.scale < 0,
        "LIMITED": limited(options),
        # bfloat16 has float32's exponents; float16 would lose weights far below the first tile's.
        "LAZY": query_a.dtype == torch.bfloat16 and not timed,
        "PRECISION": target.precision,
    }
    programs = batch * heads * (blocks_a + blocks_b)
    outputs = (out_a, out_b, lse_a, lse_b)
    launch = Launch("pair_forward", pair_forward, programs, arguments, constants, row, outputs)
    return Plan(outputs, [launch])


def plan_delta(
    outputs: tuple[Tensor, ...],
    grad_outputs: tuple[Tensor, ...],
    lses: tuple[Tensor, ...],
    grad_lses: tuple[Tensor | None, ...],
    sides: tuple[Steps, ...],
    target: Target,
) -> tuple[list[Tensor], Launch]:
    """The delta of one side or of both, (batch, heads, time) float32, in one launch."""
    deltas = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in lses]
    described = [
        DeltaSide(matrix(out), matrix(grad_out), lse, grad_lse, delta, side)
        for out, grad_out, lse, grad_lse, delta, side in zip(
            outputs, grad_outputs, lses, grad_lses, deltas, sides, strict=True
        )
    ]
    times = [x.shape[2] for x in outputs]
    block_dim = padded_dim(outputs[0].shape[3], outputs[-1].shape[3])
    row = pick(DELTA, block_dim, outputs[0].dtype, target)
    counts = [blocks(time, row.block) for time in times]
    batch, heads = outputs[0].shape[:2]
    arguments = {
        "a": described[0],
        "b": described[-1] if len(described) == 2 else None,
        "heads": heads,
        "time_a": times[0],
        "time_b": times[-1],
        "blocks_a": counts[0],
        "blocks_b": counts[1] if len(counts) == 2 else 0,
    }
    constants = {
        "DIM_A": outputs[0].shape[3],
        "DIM_B": outputs[-1].shape[3],
        "BLOCK": row.block,
        "BLOCK_DIM": block_dim,
        "PRECISION": target.precision,
    }
    programs = batch * heads * sum(counts)
    launch = Launch("pair_delta", pair_delta, programs, arguments, constants, row, tuple(deltas))
    return deltas, launch
