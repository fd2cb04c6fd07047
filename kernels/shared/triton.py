"""Shared cross-attention on Triton: which form runs a call, and its launches.

| shorter side | forward | backward |
|---|---|---|
| up to 64 steps, 128 dimensions | bfloat16 without times: S once | halves: S once |
| up to 128 steps, 64 dimensions | the same on capability 9.0, with many heads | the same |
| longer, wider, float32 | role split: S once a direction | role split: S once a side |

S once is one program a head, one launch. Role split takes the row maximum of the first tile as
reference for the whole row in bfloat16 (a running maximum in float16, float32 and with times), both
directions in one launch, and computes five products a side backward. With more blocks of the short
side, S once would have to write float32 partial sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pairs import PairOptions
from ..triton_backend.configuration import Configuration, pick
from ..triton_backend.launch import (
    Launch,
    Plan,
    blocks,
    matrix,
    new_gradients,
    padded_dim,
    present,
    readable,
    reduce_to,
)
from ..triton_backend.pairs import (
    common_batch,
    decay_gradient,
    describe_sides,
    forward_side,
    limited,
    new_outputs,
    pair_scoring,
    plan_delta,
    plan_pair_forward,
)
from ..triton_backend.target import Target
from .triton_once_backward import shared_once_backward
from .triton_once_forward import shared_once_forward
from .triton_sides import BackwardSide
from .triton_split_backward import shared_split_backward
from .triton_two_block_forward import shared_two_block_forward

# S once, forward. ``block`` is the longest side that a program holds. mma.sync wants 16 rows of X a
# warp: fewer, and several warps execute the same products.
ONCE_FORWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=64, warps=4, stages=1, capability=90, below=100),
    Configuration(dim=64, bits=16, block=64, tile=32, warps=8, stages=1, capability=100, below=120),
    # 64 rows spill 96 bytes, 32 rows of 2 warps 64 bytes: here warps do work twice instead.
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=1, capability=120),
    # ptxas spills 48 bytes of 64 rows where it does not for 8.0.
    Configuration(dim=64, bits=16, block=64, tile=32, warps=2, stages=1, capability=86),
    Configuration(dim=64, bits=16, block=64, tile=64, warps=4, stages=1),
    Configuration(dim=128, bits=16, block=64, tile=32, warps=8, stages=1),
)
# S once, backward: three resident tiles, seven products, two accumulators of the short side.
ONCE_BACKWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=1, capability=90, below=100),
    # Tiles of 32 rows would execute a third less, but spill: 8 bytes on 8.0, 32 on 8.6 and 12.0.
    Configuration(dim=64, bits=16, block=64, tile=16, warps=4, stages=1),
    Configuration(dim=128, bits=16, block=64, tile=16, warps=8, stages=1),
)
# S once for a short side of 65 to 128 steps, forward. Tiles of 32 steps execute a fifth more
# instructions, those of 128 spill.
TWO_BLOCK_FORWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=128, tile=64, warps=4, stages=1, capability=90, below=100),
)
# The same backward, the short side in one block of 128: 4 warps spill 944 bytes.
TWO_BLOCK_BACKWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=128, tile=32, warps=8, stages=1, capability=90, below=100),
)
# Role split, backward: five products, two accumulators, three resident tiles.
SPLIT_BACKWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=2, capability=90, below=100),
    # Left alone, ptxas stops at 168 registers for a third program and spills 16 bytes.
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=1, registers=255),
    # 8 warps share 64 columns of scores; with narrower tiles several of them form the same ones.
    Configuration(dim=128, bits=16, block=32, tile=64, warps=8, stages=1),
    # 32 columns spill 40 bytes on 9.0.
    Configuration(dim=256, bits=16, block=32, tile=16, warps=8, stages=1, capability=90, below=100),
    Configuration(dim=256, bits=16, block=32, tile=32, warps=8, stages=1),
    # float32 is three products a product: few rows, whose 8 warps share 64 columns of scores; with
    # narrower tiles several warps form the same ones. 64 columns spill 40 bytes on 12.0.
    Configuration(dim=64, bits=32, block=16, tile=32, warps=8, stages=1, capability=120),
    Configuration(dim=64, bits=32, block=16, tile=64, warps=8, stages=1),
    # Wider heads are read in pieces, see `products`. 16 rows spill 48 bytes on 8.6, 32 rows 8 bytes
    # on 9.0.
    Configuration(dim=128, bits=32, block=32, tile=16, warps=4, stages=1, below=90),
    Configuration(dim=128, bits=32, block=16, tile=32, warps=4, stages=1),
    # 4 warps spill 104 bytes on 8.0 and 304 on 9.0.
    Configuration(dim=256, bits=32, block=16, tile=32, warps=8, stages=1),
)


def forward_has_scores_once(
    short: int, batch_heads: int, dim: int, dtype: torch.dtype, timed: bool, target: Target
) -> bool:
    """Whether one program a head, holding the short side, serves both directions forward.

    It executes half the instructions of two directions, but has one program a head, which must hold
    the short side in registers, and needs a common reference: bfloat16 alone has the exponents for
    one, and times put scores far apart. With two exponentials it would execute no fewer
    instructions than role split. 128 steps fit where wgmma reads factors from shared memory, and
    pay where there are heads for every processor.
    """
    return dtype == torch.bfloat16 and not timed and _fits_once(short, batch_heads, dim, target)


def backward_has_scores_once(
    short: int, batch_heads: int, dim: int, dtype: torch.dtype, target: Target
) -> bool:
    """The same for the backward, which has the log-sum-exps: any halves, with times or without.

    float32 takes three products for one and does not fit.
    """
    return dtype != torch.float32 and _fits_once(short, batch_heads, dim, target)


def _fits_once(short: int, batch_heads: int, dim: int, target: Target) -> bool:
    if short <= 64:
        return short > 0 and dim <= 128
    has_wgmma = 90 <= target.capability < 100 and not target.hip
    return short <= 128 and dim <= 64 and has_wgmma and batch_heads >= target.processors


def plan_forward(
    qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor, options: PairOptions, target: Target
) -> Plan:
    """Plan the forward: S once where a block holds the short side, else once a direction."""
    dims = padded_dim(qk_a.shape[3], v_a.shape[3], v_b.shape[3])
    time_a, time_b = qk_a.shape[2], qk_b.shape[2]
    batch_heads = common_batch(qk_a, qk_b) * qk_a.shape[1]
    short = min(time_a, time_b)
    timed = describe_sides(options)[0].times is not None
    if not forward_has_scores_once(short, batch_heads, dims, qk_a.dtype, timed, target):
        return plan_pair_forward(qk_a, qk_a, v_a, qk_b, qk_b, v_b, options, target)
    return _plan_once(qk_a, qk_b, v_a, v_b, options, target)


def _plan_once(
    qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor, options: PairOptions, target: Target
) -> Plan:
    qk_a, qk_b, v_a, v_b = map(readable, (qk_a, qk_b, v_a, v_b))
    batch, heads, dim = common_batch(qk_a, qk_b), qk_a.shape[1], qk_a.shape[3]
    out_a, out_b, lse_a, lse_b = new_outputs(batch, qk_a, qk_b, v_a, v_b)
    steps_a, steps_b = describe_sides(options)
    side_a = forward_side(qk_a, qk_a, v_a, out_a, lse_a, steps_a)
    side_b = forward_side(qk_b, qk_b, v_b, out_b, lse_b, steps_b)
    time_a, time_b = qk_a.shape[2], qk_b.shape[2]
    streams_a = time_a >= time_b
    block_dim, block_value_dim = padded_dim(dim), padded_dim(v_a.shape[3], v_b.shape[3])
    table = ONCE_FORWARD if min(time_a, time_b) <= 64 else TWO_BLOCK_FORWARD
    row = pick(table, max(block_dim, block_value_dim), qk_a.dtype, target)
    arguments: dict[str, Any] = {
        "x": side_a if streams_a else side_b,
        "y": side_b if streams_a else side_a,
        "scoring": pair_scoring(options, signed=False),
        "heads": heads,
        "time_x": max(time_a, time_b),
        "time_y": min(time_a, time_b),
        "stream_x": 0 if streams_a else 1,
        "stream_y": 1 if streams_a else 0,
    }
    value_dims = (v_a.shape[3], v_b.shape[3])
    constants: dict[str, Any] = {
        "HEAD_DIM": dim,
        "VALUE_DIM_X": value_dims[0 if streams_a else 1],
        "VALUE_DIM_Y": value_dims[1 if streams_a else 0],
        "BLOCK_X": row.tile,
        "BLOCK_HEAD_DIM": block_dim,
        "BLOCK_VALUE_DIM": block_value_dim,
        "NEGATIVE": options.scale < 0,
        "PRECISION": target.precision,
    }
    if min(time_a, time_b) > 64:
        kernel: Any = shared_two_block_forward
        constants |= {"BLOCK_Y": 64}
    else:
        kernel = shared_once_forward
        constants |= {"BLOCK_Y": padded_dim(min(time_a, time_b))}
    outputs = (out_a, out_b, lse_a, lse_b)
    launch = Launch(kernel.__name__, kernel, batch * heads, arguments, constants, row, outputs)
    return Plan(outputs, [launch])


def plan_backward(
    grad_outputs: tuple[Tensor, Tensor],
    grad_lses: tuple[Tensor | None, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    options: PairOptions,
    outputs: tuple[Tensor, Tensor],
    lses: tuple[Tensor, Tensor],
    target: Target,
) -> Plan:
    """Plan the backward: seven products with S once, else five for each side."""
    qk_a, qk_b, v_a, v_b = map(readable, tensors)
    grad_a, grad_b = map(readable, grad_outputs)
    out_a, out_b = outputs
    batch, heads, time_a, _ = out_a.shape
    time_b, dim = qk_b.shape[2], qk_a.shape[3]
    steps_a, steps_b = describe_sides(options)
    gradients = new_gradients((qk_a, qk_b, v_a, v_b), batch)
    grad_qk_a, grad_qk_b, grad_v_a, grad_v_b = gradients
    block_dim, block_value_dim = padded_dim(dim), padded_dim(v_a.shape[3], v_b.shape[3])
    widest = max(block_dim, block_value_dim)
    short = min(time_a, time_b)
    once = backward_has_scores_once(short, batch * heads, widest, qk_a.dtype, target)
    launches = []
    deltas: list[Tensor | None] = [None, None]
    grad_lse_a, grad_lse_b = (None if x is None else x.contiguous() for x in grad_lses)
    if not once:
        made, launch = plan_delta(
            outputs, (grad_a, grad_b), lses, (grad_lse_a, grad_lse_b), (steps_a, steps_b), target
        )
        deltas = [*made]
        launches.append(launch)
    side_a = BackwardSide(
        key=matrix(qk_a),
        value=matrix(v_a),
        out=matrix(out_a),
        grad_out=matrix(grad_a),
        grad_key=matrix(grad_qk_a),
        grad_value=matrix(grad_v_a),
        lse=lses[0],
        grad_lse=grad_lse_a,
        delta=deltas[0],
        steps=steps_a,
    )
    side_b = BackwardSide(
        key=matrix(qk_b),
        value=matrix(v_b),
        out=matrix(out_b),
        grad_out=matrix(grad_b),
        grad_key=matrix(grad_qk_b),
        grad_value=matrix(grad_v_b),
        lse=lses[1],
        grad_lse=grad_lse_b,
        delta=deltas[1],
        steps=steps_b,
    )
    has_decay = options.decay is not None
    arguments: dict[str, Any] = {
        "scoring": pair_scoring(options, signed=True),
        "scale": options.scale,
        "heads": heads,
    }
    constants: dict[str, Any] = {
        "HEAD_DIM": dim,
        "BLOCK_HEAD_DIM": block_dim,
        "BLOCK_VALUE_DIM": block_value_dim,
        "LIMITED": limited(options),
        "PRECISION": target.precision,
    }
    if once:
        table = ONCE_BACKWARD if short <= 64 else TWO_BLOCK_BACKWARD
        row = pick(table, widest, qk_a.dtype, target)
        streams_a = time_a >= time_b
        gap_sums = lses[0].new_empty(batch, heads) if has_decay else None
        sides = (side_a, side_b) if streams_a else (side_b, side_a)
        value_dims = (v_a.shape[3], v_b.shape[3])
        arguments |= {
            "x": sides[0],
            "y": sides[1],
            "gap_sums": gap_sums,
            "time_x": max(time_a, time_b),
            "time_y": min(time_a, time_b),
            "stream_x": 0 if streams_a else 1,
            "stream_y": 1 if streams_a else 0,
        }
        constants |= {
            "VALUE_DIM_X": value_dims[0 if streams_a else 1],
            "VALUE_DIM_Y": value_dims[1 if streams_a else 0],
            "BLOCK_X": row.tile,
            "BLOCK_Y": padded_dim(min(time_a, time_b)),
        }
        launches.append(
            Launch(
                "shared_once_backward",
                shared_once_backward,
                batch * heads,
                arguments,
                constants,
                row,
                present(*gradients, gap_sums),
            )
        )
    else:
        row = pick(SPLIT_BACKWARD, widest, qk_a.dtype, target)
        blocks_a, blocks_b = blocks(time_a, row.block), blocks(time_b, row.block)
        gap_sums = lses[0].new_empty(batch, heads, blocks_a) if has_decay else None
        arguments |= {
            "a": side_a,
            "b": side_b,
            "gap_sums": gap_sums,
            "time_a": time_a,
            "time_b": time_b,
            "blocks_a": blocks_a,
            "blocks_b": blocks_b,
        }
        constants |= {
            "VALUE_DIM_A": v_a.shape[3],
            "VALUE_DIM_B": v_b.shape[3],
            "BLOCK": row.block,
            "TILE": row.tile,
        }
        launches.append(
            Launch(
                "shared_split_backward",
                shared_split_backward,
                batch * heads * (blocks_a + blocks_b),
                arguments,
                constants,
                row,
                present(*gradients, gap_sums),
            )
        )

    def finish(*buffers: Tensor | None) -> tuple[Tensor | None, ...]:
        reduced = [
            reduce_to(gradient, like)
            for gradient, like in zip(gradients, (qk_a, qk_b, v_a, v_b), strict=True)
        ]
        return *reduced, decay_gradient(gap_sums, options)

    return Plan((*gradients, gap_sums), launches, finish)
