"""The image-text fusion of GroundingDINO (Liu et al. 2023), as transformers has it twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmer.kernels import shared_cross_attention
from mmer.layers.cross_attention import merge_heads, split_heads

from .fused import FusedModule, too_wide

Result = tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class FusedBiMultiHead(FusedModule):
    """What both BiMultiHeadAttention classes of transformers have in common.

    The library returns both attention maps, (batch, heads, image, text) numbers each, whether they
    are asked for or not. This returns None in their place, except while an encoder that was asked
    for attentions sets ``maps_requested``.
    """

    maps_requested: bool = False

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why an attention cannot become fused."""
        return too_wide(module.head_dim)

    def forward(
        self,
        vision_features: Tensor,
        text_features: Tensor,
        vision_attention_mask: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
    ) -> Result:
        """Let image and text attend to each other.

        Args:
            vision_features: (batch, positions, features).
            text_features: (batch, tokens, features).
            vision_attention_mask: (batch, positions) bool, True = padding.
            text_attention_mask: (batch, tokens) bool, True = padding.
        """
        if self.maps_requested:
            return self.original_forward(
                "attention maps are requested",
                vision_features,
                text_features,
                vision_attention_mask=vision_attention_mask,
                text_attention_mask=text_attention_mask,
            )
        heads = self.num_heads
        vision, text = shared_cross_attention(
            split_heads(self.vision_proj(vision_features), heads),
            split_heads(self.text_proj(text_features), heads),
            split_heads(self.values_vision_proj(vision_features), heads),
            split_heads(self.values_text_proj(text_features), heads),
            mask_a=None if vision_attention_mask is None else ~vision_attention_mask.bool(),
            mask_b=None if text_attention_mask is None else ~text_attention_mask.bool(),
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.attention_backend,
        )
        return (
            (self.out_vision_proj(merge_heads(vision)), None),
            (self.out_text_proj(merge_heads(text)), None),
        )


class FusedEncoder(FusedModule):
    """An encoder that lets its layers compute their attention maps when it is asked for them."""

    def forward(self, *args: Any, output_attentions: bool | None = None, **kwargs: Any) -> Any:
        """Run the library's encoder."""
        wanted = self.config.output_attentions if output_attentions is None else output_attentions
        attentions = [
            attention for attention in self.modules() if isinstance(attention, FusedBiMultiHead)
        ]
        for attention in attentions:
            attention.maps_requested = bool(wanted)
        try:
            return super().forward(*args, output_attentions=output_attentions, **kwargs)
        finally:
            for attention in attentions:
                attention.maps_requested = False
