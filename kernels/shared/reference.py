"""Shared cross-attention in plain PyTorch: one similarity matrix, both directions. The definition.

S = scale * qk_a qk_b^T - decay * |times_a - times_b|
out_a = softmax_over_b(S) v_b          out_b = softmax_over_a(S)^T v_a
"""

from __future__ import annotations

from torch import Tensor

from ..attend import attend, attend_backward, compute_dtype, in_full_precision, sum_to, zero_padding
from ..pairs import PairOptions, decay_gradient, draw_both_directions, pair_scores, pair_up


@in_full_precision
def forward(
    qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor, options: PairOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out_a, out_b, lse_a and lse_b of validated arguments."""
    dtype = qk_a.dtype
    qk_a, v_a = (zero_padding(x.to(compute_dtype(dtype)), options.mask_a) for x in (qk_a, v_a))
    qk_b, v_b = (zero_padding(x.to(compute_dtype(dtype)), options.mask_b) for x in (qk_b, v_b))
    pairs = pair_up(options)
    scores = pair_scores(qk_a, qk_b, pairs, options)  # (batch, heads, time_a, time_b)
    dropout_a, dropout_b = draw_both_directions(scores, options)

    out_a, lse_a = attend(scores, pairs.visible, v_b, dropout_a)
    out_b, lse_b = attend(scores.transpose(-1, -2), pairs.visible_from_b, v_a, dropout_b)
    return out_a.to(dtype), out_b.to(dtype), lse_a, lse_b


@in_full_precision
def backward(
    grad_out_a: Tensor,
    grad_out_b: Tensor,
    grad_lse_a: Tensor | None,
    grad_lse_b: Tensor | None,
    qk_a: Tensor,
    qk_b: Tensor,
    v_a: Tensor,
    v_b: Tensor,
    options: PairOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of qk_a, qk_b, v_a, v_b and decay."""
    like = (qk_a, qk_b, v_a, v_b)
    dtype = compute_dtype(qk_a.dtype)
    qk_a, v_a = (zero_padding(x.to(dtype), options.mask_a) for x in (qk_a, v_a))
    qk_b, v_b = (zero_padding(x.to(dtype), options.mask_b) for x in (qk_b, v_b))
    grad_out_a, grad_out_b = grad_out_a.to(dtype), grad_out_b.to(dtype)
    pairs = pair_up(options)
    scores = pair_scores(qk_a, qk_b, pairs, options)  # (batch, heads, time_a, time_b)
    dropout_a, dropout_b = draw_both_directions(scores, options)

    grad_scores_a, grad_v_b = attend_backward(
        grad_out_a, grad_lse_a, scores, pairs.visible, v_b, dropout_a
    )
    grad_scores_b, grad_v_a = attend_backward(
        grad_out_b, grad_lse_b, scores.transpose(-1, -2), pairs.visible_from_b, v_a, dropout_b
    )
    # Both softmaxes read the one S: its gradient is the sum of theirs.
    grad_scores = grad_scores_a + grad_scores_b.transpose(-1, -2)
    gradients = (
        options.scale * (grad_scores @ qk_b),
        options.scale * (grad_scores.transpose(-1, -2) @ qk_a),
        grad_v_a,
        grad_v_b,
    )
    grad_qk_a, grad_qk_b, grad_v_a, grad_v_b = map(sum_to, gradients, like)
    return grad_qk_a, grad_qk_b, grad_v_a, grad_v_b, decay_gradient(grad_scores, pairs, options)
