"""Shared cross-attention: one similarity matrix serves both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..arguments import autocast, check_pair, check_same_size
from ..backends import plain_head_dim, run, run_plain
from ..pairs import PairOptions, plain_options
from ..registration import OperatorDefinition
from . import reference


def _output_shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    qk_a, qk_b, v_a, v_b = tensors
    batch = qk_b.shape[0] if qk_a.shape[0] == 1 else qk_a.shape[0]
    return [
        (batch, qk_a.shape[1], qk_a.shape[2], v_b.shape[3]),
        (batch, qk_b.shape[1], qk_b.shape[2], v_a.shape[3]),
    ]


DEFINITION = OperatorDefinition(
    name="shared_cross_attention",
    tensors=("qk_a", "qk_b", "v_a", "v_b"),
    options_type=PairOptions,
    differentiable_options=1,
    outputs=2,
    output_shapes=_output_shapes,
    forward=reference.forward,
    backward=reference.backward,
)


def prepare(
    qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor, **options: Any
) -> tuple[tuple[Tensor, ...], PairOptions]:
    """Validate a call and return the tensors and the options that every backend takes."""
    qk_a, qk_b, v_a, v_b = autocast(qk_a, qk_b, v_a, v_b)
    checked = check_pair({"qk_a": qk_a, "v_a": v_a}, {"qk_b": qk_b, "v_b": v_b}, **options)
    check_same_size(3, "head_dim", {"qk_a": qk_a, "qk_b": qk_b})
    return (qk_a, qk_b, v_a, v_b), checked


def shared_cross_attention(
    qk_a: Tensor,
    qk_b: Tensor,
    v_a: Tensor,
    v_b: Tensor,
    *,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    times_a: Tensor | None = None,
    times_b: Tensor | None = None,
    decay: Tensor | None = None,
    max_gap: float | None = None,
    return_lse: bool = False,
    deterministic: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    r"""Attention of two sequences to each other through one similarity matrix.

    .. math::
        S = \text{scale}\; qk_a\, qk_b^T - \text{decay}\,|t_a - t_b| \qquad
        out_a = \text{softmax}_b(S)\, v_b \qquad out_b = \text{softmax}_a(S)^T v_a

    The cross-attention of LightGlue (Lindenberger et al., 2023), GLIP (Li et al., 2022),
    GroundingDINO (Liu et al., 2023) and BiXT (Hiller et al., 2024). The reference
    and the CPU backend compute S once. Triton does where the shorter side is short, CUDA also where
    groups of blocks can share a head; both with half dtypes and heads of at most 128 dimensions
    (backward on CUDA, of more than 64 only where the shorter side has at most 64 steps). Else S is
    computed once for each direction, in one launch.

    Args:
        qk_a: what A is compared by, (batch, heads, time_a, head_dim); any strides with a contiguous
            last dimension.
        qk_b: what B is compared by, (batch, heads, time_b, head_dim).
        v_a: values of A, (batch, heads, time_a, value_dim_a).
        v_b: values of B, (batch, heads, time_b, value_dim_b).
        mask_a: (batch, time_a) bool, True = real. Padded steps are neither queries nor keys:
            whatever they hold, their output and their gradient are 0.
        mask_b: (batch, time_b) bool.
        scale: factor on the similarity, ``head_dim ** -0.5`` by default.
        dropout_p: probability that an attention weight is dropped, independently in each direction.
        dropout_seed: int or 0-dim int64 tensor; the same seed gives the same mask on every backend.
            Drawn from torch's generator of the device by default.
        times_a: (batch, time_a) seconds, floating point.
        times_b: (batch, time_b) seconds.
        decay: (heads,) slope per second, learnable; meant to be non-negative.
        max_gap: pairs further apart than this, in seconds, do not see each other.
        return_lse: also return the log-sum-exp of each query's scores.
        deterministic: False allows a backend to add gradients up in an order that varies.
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    One side may have batch size 1: it is broadcast, and its gradient is reduced. Masks and times
    have the batch size of the result or 1.

    Returns:
        out_a (batch, heads, time_a, value_dim_b) and out_b (batch, heads, time_b, value_dim_a) in
        the dtype of the inputs; with ``return_lse`` also lse_a (batch, heads, time_a) and lse_b
        (batch, heads, time_b), natural logarithm, float32 (float64 for float64 inputs),
        differentiable. A query that is padded or sees no key has output 0 and log-sum-exp ``-inf``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
        RuntimeError: the requested backend cannot run this call.
    """
    head_dim = plain_head_dim(backend, qk_a, dropout_p, deterministic)
    if (
        head_dim
        and (scale is None and dropout_seed is None)
        and (times_a is None and times_b is None and decay is None and max_gap is None)
    ):
        arguments = (qk_a, qk_b, v_a, v_b, *plain_options(mask_a, mask_b, head_dim))
        plain = run_plain(DEFINITION, arguments, return_lse)
        if plain is not None:
            return plain
    tensors, options = prepare(
        qk_a,
        qk_b,
        v_a,
        v_b,
        mask_a=mask_a,
        mask_b=mask_b,
        scale=scale,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        times_a=times_a,
        times_b=times_b,
        decay=decay,
        max_gap=max_gap,
        deterministic=deterministic,
    )
    return run(backend, DEFINITION, tensors, options, return_lse)
