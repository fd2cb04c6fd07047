"""What the backward kernels of shared cross-attention are given of each side."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl  # noqa: F401 - Triton's interpreter wants it beside every kernel

from ..triton_backend.tiles import runtime_matrix, runtime_steps


class BackwardSide(NamedTuple):
    """One side: matrices, and pointers (batch * heads, time); ``out`` is for S once alone."""

    key: Any
    value: Any
    out: Any
    grad_out: Any
    grad_key: Any
    grad_value: Any
    lse: Any
    grad_lse: Any
    delta: Any
    steps: Any


@triton.jit
def runtime_side(side, other):
    """The side with strides that an ``if`` can choose; without what S once needs alone."""
    return BackwardSide(
        runtime_matrix(side.key, other.key),
        runtime_matrix(side.value, other.value),
        None,
        runtime_matrix(side.grad_out, other.grad_out),
        runtime_matrix(side.grad_key, other.grad_key),
        runtime_matrix(side.grad_value, other.grad_value),
        side.lse,
        None,
        side.delta,
        runtime_steps(side.steps),
    )
