"""lucidrains' bidirectional-cross-attention."""

from __future__ import annotations

from typing import Any

from bidirectional_cross_attention.bidirectional_cross_attention import BidirectionalCrossAttention
from torch import Tensor, nn

from mmer.kernels import shared_cross_attention
from mmer.layers.cross_attention import merge_heads, split_heads

from .fused import FusedModule, too_wide


class FusedBidirectionalCrossAttention(FusedModule, BidirectionalCrossAttention):
    """Two sequences that attend to each other through one similarity."""

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why an attention cannot become fused."""
        if not isinstance(module.talking_heads, nn.Identity):
            return "talking_heads mixes the attention maps of all heads"
        if module.dropout.p != module.context_dropout.p:
            return "its directions have different dropouts"
        return too_wide(module.to_qk.out_features // module.heads)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_attn: bool = False,
        rel_pos_bias: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Let both sequences attend to each other.

        Args:
            x: (batch, time, dim).
            context: (batch, time, context_dim).
            mask: (batch, time) bool, True = real.
            context_mask: (batch, time) bool, True = real.
            return_attn: leaves the call to the library, as it wants the attention maps.
            rel_pos_bias: leaves the call to the library.
        """
        if return_attn or rel_pos_bias is not None:
            reason = "attention maps are requested" if return_attn else "rel_pos_bias is given"
            return self.original_forward(
                reason, x, context, mask, context_mask, return_attn, rel_pos_bias
            )
        x, context = self.norm(x), self.context_norm(context)
        out, context_out = shared_cross_attention(
            split_heads(self.to_qk(x), self.heads),
            split_heads(self.context_to_qk(context), self.heads),
            split_heads(self.to_v(x), self.heads),
            split_heads(self.context_to_v(context), self.heads),
            mask_a=mask,
            mask_b=context_mask,
            scale=self.scale,
            dropout_p=self.dropout.p if self.training else 0.0,
            backend=self.attention_backend,
        )
        return self.to_out(merge_heads(out)), self.context_to_out(merge_heads(context_out))
