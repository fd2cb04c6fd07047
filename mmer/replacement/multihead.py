"""A pair of ``nn.MultiheadAttention``, one for each direction, made one layer."""

from __future__ import annotations

import torch
from torch import nn

from mmer.layers import BidirectionalCrossAttention


def merge_multihead_attention(
    a_from_b: nn.MultiheadAttention, b_from_a: nn.MultiheadAttention, *, backend: str = "auto"
) -> BidirectionalCrossAttention:
    """Make one layer of a pair of ``nn.MultiheadAttention`` that attend to each other's input.

    ``layer(a, b, mask_a=real_a, mask_b=real_b)`` then gives what ``a_from_b(a, b, b,
    key_padding_mask=~real_b)`` and ``b_from_a(b, a, a, key_padding_mask=~real_a)`` give at real
    steps, in one call.

    Args:
        a_from_b: queries of A, keys and values of B.
        b_from_a: queries of B, keys and values of A.
        backend: which implementation to use; see ``mmer.kernels.available_backends``.

    Returns:
        A layer with copies of the weights, on their device, in their dtype and in the mode
        (training or not) of ``a_from_b``. It takes (batch, time, features), whatever
        ``batch_first`` was.

    Raises:
        TypeError: an argument is no ``nn.MultiheadAttention``.
        ValueError: the two differ in width, heads, dropout or biases, or have an option that the
            layer does not.
    """
    pair = {"a_from_b": a_from_b, "b_from_a": b_from_a}
    for name, attention in pair.items():
        if not isinstance(attention, nn.MultiheadAttention):
            raise TypeError(
                f"{name} must be an nn.MultiheadAttention, got {type(attention).__name__}"
            )
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(f"{name} must not have add_bias_kv or add_zero_attn")
        if attention.in_proj_weight is None:
            raise ValueError(f"{name} must have kdim and vdim equal to embed_dim")
    for what in ("embed_dim", "num_heads", "dropout"):
        wanted, got = getattr(a_from_b, what), getattr(b_from_a, what)
        if wanted != got:
            raise ValueError(f"b_from_a must have the {what} of a_from_b, {wanted}, got {got}")
    biased = a_from_b.in_proj_bias is not None
    if biased != (b_from_a.in_proj_bias is not None):
        raise ValueError("b_from_a must have biases exactly if a_from_b has them")
    layer = BidirectionalCrossAttention(
        a_from_b.embed_dim,
        a_from_b.num_heads,
        bias=biased,
        dropout=a_from_b.dropout,
        backend=backend,
        device=a_from_b.in_proj_weight.device,
        dtype=a_from_b.in_proj_weight.dtype,
    )
    state = {}
    for kind in ("weight", "bias") if biased else ("weight",):
        # The queries of a direction belong to its own side, the keys and values to the other.
        query_a, key_b, value_b = getattr(a_from_b, f"in_proj_{kind}").detach().chunk(3)
        query_b, key_a, value_a = getattr(b_from_a, f"in_proj_{kind}").detach().chunk(3)
        state[f"to_qkv_a.{kind}"] = torch.cat((query_a, key_a, value_a))
        state[f"to_qkv_b.{kind}"] = torch.cat((query_b, key_b, value_b))
        state[f"to_out_a.{kind}"] = getattr(a_from_b.out_proj, kind)
        state[f"to_out_b.{kind}"] = getattr(b_from_a.out_proj, kind)
    layer.load_state_dict(state)
    return layer.train(a_from_b.training)
