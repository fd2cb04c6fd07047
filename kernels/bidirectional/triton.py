"""Bidirectional cross-attention on Triton: both directions in one launch, forward and backward."""

from __future__ import annotations

from typing import Any

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
    decay_gradient,
    describe_sides,
    limited,
    pair_scoring,
    plan_delta,
    plan_pair_forward,
)
from ..triton_backend.target import Target
from .triton_backward import BackwardSide, bidirectional_backward

BACKWARD: tuple[Configuration, ...] = (
    Configuration(dim=64, bits=16, block=64, tile=32, warps=4, stages=2),
    Configuration(dim=128, bits=16, block=64, tile=32, warps=8, stages=1),
    Configuration(dim=256, bits=16, block=32, tile=32, warps=8, stages=1),
    # float32 is three products a product: few warps, and tiles so wide that no two of them form the
    # same scores. 32 rows spill 56 bytes on 10.0 and 48 on 12.0.
    Configuration(dim=64, bits=32, block=16, tile=32, warps=4, stages=1, capability=100),
    Configuration(dim=64, bits=32, block=32, tile=32, warps=4, stages=1),
    # Wider heads are read in pieces, see `products`; 8 warps share the accumulators of 256 columns.
    # 16 rows, with half the exponentials, spill 16 bytes on 8.0 and 24 on 8.6.
    Configuration(dim=128, bits=32, block=16, tile=32, warps=4, stages=1, capability=90),
    Configuration(dim=128, bits=32, block=32, tile=16, warps=4, stages=1),
    Configuration(dim=256, bits=32, block=16, tile=32, warps=8, stages=1),
)


def plan_forward(
    q_a: Tensor,
    k_a: Tensor,
    v_a: Tensor,
    q_b: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    options: PairOptions,
    target: Target,
) -> Plan:
    """Plan the forward: one launch, each direction with its own scores."""
    return plan_pair_forward(q_a, k_a, v_a, q_b, k_b, v_b, options, target)


def plan_backward(
    grad_outputs: tuple[Tensor, ...],
    grad_lses: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    options: PairOptions,
    outputs: tuple[Tensor, ...],
    lses: tuple[Tensor, ...],
    target: Target,
) -> Plan:
    """Plan the backward: the delta of both sides, then all gradients."""
    q_a, k_a, v_a, q_b, k_b, v_b = map(readable, tensors)
    grad_a, grad_b = map(readable, grad_outputs)
    batch, heads, time_a, _ = outputs[0].shape
    time_b, dim = q_b.shape[2], q_a.shape[3]
    steps_a, steps_b = describe_sides(options)
    contiguous = tuple(None if x is None else x.contiguous() for x in grad_lses)
    deltas, first = plan_delta(
        outputs, (grad_a, grad_b), lses, contiguous, (steps_a, steps_b), target
    )
    inputs = (q_a, k_a, v_a, q_b, k_b, v_b)
    gradients = new_gradients(inputs, batch)
    sides = [
        BackwardSide(
            query=matrix(query),
            key=matrix(key),
            value=matrix(value),
            grad_out=matrix(grad_out),
            grad_query=matrix(grad_query),
            grad_key=matrix(grad_key),
            grad_value=matrix(grad_value),
            lse=lse,
            delta=delta,
            steps=side,
        )
        for (query, key, value), grad_out, (grad_query, grad_key, grad_value), lse, delta, side in (
            (inputs[:3], grad_a, gradients[:3], lses[0], deltas[0], steps_a),
            (inputs[3:], grad_b, gradients[3:], lses[1], deltas[1], steps_b),
        )
    ]
    block_dim, block_value_dim = padded_dim(dim), padded_dim(v_a.shape[3], v_b.shape[3])
    row = pick(BACKWARD, max(block_dim, block_value_dim), q_a.dtype, target)
    blocks_a, blocks_b = blocks(time_a, row.block), blocks(time_b, row.block)
    gap_sums = None
    if options.decay is not None:
        gap_sums = lses[0].new_empty(batch, heads, blocks_a + blocks_b)
    arguments: dict[str, Any] = {
        "a": sides[0],
        "b": sides[1],
        "scoring": pair_scoring(options, signed=True),
        "scale": options.scale,
        "gap_sums": gap_sums,
        "heads": heads,
        "time_a": time_a,
        "time_b": time_b,
        "blocks_a": blocks_a,
        "blocks_b": blocks_b,
    }
    constants: dict[str, Any] = {
        "HEAD_DIM": dim,
        "VALUE_DIM_A": v_a.shape[3],
        "VALUE_DIM_B": v_b.shape[3],
        "BLOCK": row.block,
        "TILE": row.tile,
        "BLOCK_HEAD_DIM": block_dim,
        "BLOCK_VALUE_DIM": block_value_dim,
        "LIMITED": limited(options),
        "PRECISION": target.precision,
    }
    programs = batch * heads * 2 * (blocks_a + blocks_b)
    second = Launch(
        "bidirectional_backward",
        bidirectional_backward,
        programs,
        arguments,
        constants,
        row,
        present(*gradients, gap_sums),
    )

    def finish(*buffers: Tensor | None) -> tuple[Tensor | None, ...]:
        reduced = [reduce_to(x, like) for x, like in zip(gradients, inputs, strict=True)]
        return *reduced, decay_gradient(gap_sums, options)

    return Plan((*gradients, gap_sums), [first, second], finish)
