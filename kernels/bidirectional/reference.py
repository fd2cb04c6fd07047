"""Bidirectional cross-attention in plain PyTorch: a similarity for each direction. The definition.

S_a = scale * q_a k_b^T - decay * |times_a - times_b|      out_a = softmax(S_a) v_b
S_b = scale * q_b k_a^T - decay * |times_b - times_a|      out_b = softmax(S_b) v_a
"""

from __future__ import annotations

from torch import Tensor

from ..attend import attend, attend_backward, compute_dtype, in_full_precision, sum_to, zero_padding
from ..pairs import PairOptions, decay_gradient, draw_both_directions, pair_scores, pair_up


@in_full_precision
def forward(
    q_a: Tensor,
    k_a: Tensor,
    v_a: Tensor,
    q_b: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    options: PairOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out_a, out_b, lse_a and lse_b of validated arguments."""
    dtype = q_a.dtype
    wide = compute_dtype(dtype)
    q_a, k_a, v_a = (zero_padding(x.to(wide), options.mask_a) for x in (q_a, k_a, v_a))
    q_b, k_b, v_b = (zero_padding(x.to(wide), options.mask_b) for x in (q_b, k_b, v_b))
    pairs = pair_up(options)
    scores_a = pair_scores(q_a, k_b, pairs, options)  # (batch, heads, time_a, time_b)
    scores_b = pair_scores(k_a, q_b, pairs, options)  # (batch, heads, time_a, time_b)
    dropout_a, dropout_b = draw_both_directions(scores_a, options)

    out_a, lse_a = attend(scores_a, pairs.visible, v_b, dropout_a)
    out_b, lse_b = attend(scores_b.transpose(-1, -2), pairs.visible_from_b, v_a, dropout_b)
    return out_a.to(dtype), out_b.to(dtype), lse_a, lse_b


@in_full_precision
def backward(
    grad_out_a: Tensor,
    grad_out_b: Tensor,
    grad_lse_a: Tensor | None,
    grad_lse_b: Tensor | None,
    q_a: Tensor,
    k_a: Tensor,
    v_a: Tensor,
    q_b: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    options: PairOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q_a, k_a, v_a, q_b, k_b, v_b and decay."""
    like = (q_a, k_a, v_a, q_b, k_b, v_b)
    dtype = compute_dtype(q_a.dtype)
    q_a, k_a, v_a = (zero_padding(x.to(dtype), options.mask_a) for x in (q_a, k_a, v_a))
    q_b, k_b, v_b = (zero_padding(x.to(dtype), options.mask_b) for x in (q_b, k_b, v_b))
    pairs = pair_up(options)
    scores_a = pair_scores(q_a, k_b, pairs, options)  # (batch, heads, time_a, time_b)
    scores_b = pair_scores(k_a, q_b, pairs, options)  # (batch, heads, time_a, time_b)
    dropout_a, dropout_b = draw_both_directions(scores_a, options)

    grad_scores_a, grad_v_b = attend_backward(
        grad_out_a.to(dtype), grad_lse_a, scores_a, pairs.visible, v_b, dropout_a
    )
    grad_scores_b, grad_v_a = attend_backward(
        grad_out_b.to(dtype),
        grad_lse_b,
        scores_b.transpose(-1, -2),
        pairs.visible_from_b,
        v_a,
        dropout_b,
    )
    gradients = (
        options.scale * (grad_scores_a @ k_b),
        options.scale * (grad_scores_b.transpose(-1, -2) @ q_b),
        grad_v_a,
        options.scale * (grad_scores_b @ k_a),
        options.scale * (grad_scores_a.transpose(-1, -2) @ q_a),
        grad_v_b,
    )
    grad_q_a, grad_k_a, grad_v_a, grad_q_b, grad_k_b, grad_v_b = map(sum_to, gradients, like)
    grad_decay = decay_gradient(grad_scores_a + grad_scores_b.transpose(-1, -2), pairs, options)
    return grad_q_a, grad_k_a, grad_v_a, grad_q_b, grad_k_b, grad_v_b, grad_decay
