"""Fusion of two modalities: what a transformer block is to one sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import (
    check_choice,
    check_mask,
    check_number,
    check_probability,
    check_sequence,
)
from .cross_attention import BidirectionalCrossAttention, CrossAttention, SharedCrossAttention
from .feed_forward import FeedForward
from .padding import zero_padding

ATTENTIONS: dict[str, type[BidirectionalCrossAttention] | type[SharedCrossAttention]] = {
    "bidirectional": BidirectionalCrossAttention,
    "shared": SharedCrossAttention,
}


class FusionSide(nn.Module):
    """One sequence's part of a fusion: norm, gated residual, feed-forward.

    Args:
        features: width of the sequence.
        gate_init: first value of every channel's gate; 0 starts as if there were no other sequence.
        expansion: how many times wider the feed-forward's middle is.
        dropout: probability that an activation is dropped in training.
        bias: whether norms and projections have biases.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        features: int,
        *,
        gate_init: float,
        expansion: int,
        dropout: float,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_init = check_number("gate_init", gate_init, low=-1e4, high=1e4)
        self.norm = nn.LayerNorm(features, bias=bias, device=device, dtype=dtype)
        self.gate = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.dropout = nn.Dropout(check_probability("dropout", dropout))
        self.feed_forward_norm = nn.LayerNorm(features, bias=bias, device=device, dtype=dtype)
        self.feed_forward = FeedForward(
            features, expansion, dropout, bias=bias, device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gate to its first value."""
        nn.init.constant_(self.gate, self.gate_init)

    def forward(self, x: Tensor, update: Tensor | None, mask: Tensor | None) -> Tensor:
        """Take in what attention found in the other sequences.

        Args:
            x: (batch, time, features), not normed, its padding 0.
            update: (batch, time, features), or None if there is no other sequence, which is the
                same as zeros.
            mask: (batch, time) bool, or None.

        Returns:
            (batch, time, features); padded steps are 0.
        """
        if update is not None:
            x = x + self.gate * self.dropout(update)
        return zero_padding(x + self.feed_forward(self.feed_forward_norm(x)), mask)


class FusionBlock(nn.Module):
    """Pre-norm cross-attention of two sequences, gated residual and feed-forward.

    ``x = x + gate * attention(norm(x_a), norm(x_b))``, ``x = x + feed_forward(norm(x))`` on either
    side. The gate, one learnable factor per channel (LayerScale, Touvron et al. 2021), may start at
    0.

    A side that is wholly missing, for an item (its mask False throughout) or for all (None), leaves
    the other side exactly as if there were no attention: no bias of the missing side gets through.

    State dict: ``attention.*`` as the attention layer documents it; ``side_a.norm.weight``,
    ``.bias``, ``side_a.gate``, ``side_a.feed_forward_norm.weight``, ``.bias``,
    ``side_a.feed_forward.widen.weight``, ``.bias``, ``side_a.feed_forward.narrow.weight``,
    ``.bias``; the same with ``side_b``.

    Args:
        embed_dim: total width of the attention's heads.
        num_heads: number of heads.
        dim_a: features of side A; ``embed_dim`` by default.
        dim_b: features of side B; ``embed_dim`` by default.
        attention: "bidirectional" (projections for each direction) or "shared" (one similarity for
            both).
        gate_init: first value of the gates.
        expansion: how many times wider the feed-forward's middle is.
        dropout: probability that an activation is dropped in training.
        attention_dropout: probability that an attention weight is dropped in training.
        time_decay: learnable slopes of a decay with distance in time; see the attention layers.
        max_gap: seconds; pairs further apart do not see each other.
        bias: whether norms and projections have biases.
        backend: which implementation of the operator to use.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dim_a: int | None = None,
        dim_b: int | None = None,
        attention: str = "bidirectional",
        gate_init: float = 1.0,
        expansion: int = 2,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        time_decay: bool = False,
        max_gap: float | None = None,
        bias: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("attention", attention, tuple(ATTENTIONS))
        check_probability("attention_dropout", attention_dropout)
        self.attention: CrossAttention = ATTENTIONS[attention](
            embed_dim,
            num_heads,
            dim_a=dim_a,
            dim_b=dim_b,
            bias=bias,
            dropout=attention_dropout,
            time_decay=time_decay,
            max_gap=max_gap,
            backend=backend,
            device=device,
            dtype=dtype,
        )

        def side(features: int) -> FusionSide:
            return FusionSide(
                features,
                gate_init=gate_init,
                expansion=expansion,
                dropout=dropout,
                bias=bias,
                device=device,
                dtype=dtype,
            )

        self.side_a = side(self.attention.dim_a)
        self.side_b = side(self.attention.dim_b)

    def forward(
        self,
        x_a: Tensor | None,
        x_b: Tensor | None,
        *,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
        times_a: Tensor | None = None,
        times_b: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Fuse the two sequences.

        Args:
            x_a: (batch, time_a, dim_a), or None if side A is missing for all items.
            x_b: (batch, time_b, dim_b), or None.
            mask_a: (batch, time_a) bool, True = real; None means that every step is real.
            mask_b: (batch, time_b) bool.
            times_a: (batch, time_a) seconds; needed with ``time_decay`` or ``max_gap``.
            times_b: (batch, time_b) seconds.

        Returns:
            Both sequences, updated; padded steps are 0. None for a side that was None.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape, or times are missing.
        """
        if x_a is not None:
            check_sequence("x_a", x_a, self.attention.dim_a)
            check_mask("mask_a", mask_a, x_a)
            x_a = zero_padding(x_a, mask_a)
        if x_b is not None:
            check_sequence("x_b", x_b, self.attention.dim_b)
            check_mask("mask_b", mask_b, x_b)
            x_b = zero_padding(x_b, mask_b)
        update_a: Tensor | None = None
        update_b: Tensor | None = None
        if x_a is not None and x_b is not None:
            update_a, update_b = self.attention(
                self.side_a.norm(x_a),
                self.side_b.norm(x_b),
                mask_a=mask_a,
                mask_b=mask_b,
                times_a=times_a,
                times_b=times_b,
            )
        return (
            None if x_a is None else self.side_a(x_a, update_a, mask_a),
            None if x_b is None else self.side_b(x_b, update_b, mask_b),
        )
