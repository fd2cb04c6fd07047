"""GroundingDINO of its authors (IDEA-Research; ``groundingdino-py`` on the package index)."""

from __future__ import annotations

from typing import Any

from groundingdino.models.GroundingDINO.fuse_modules import BiMultiHeadAttention
from torch import Tensor

from mmer.kernels import shared_cross_attention
from mmer.layers.cross_attention import merge_heads, split_heads

from .fused import FusedModule, too_wide


class FusedBiMultiHeadAttention(FusedModule, BiMultiHeadAttention):
    """The attention of image and text to each other."""

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why an attention cannot become fused."""
        return too_wide(module.head_dim)

    def forward(
        self,
        v: Tensor,
        l: Tensor,  # noqa: E741 - the library's name, and callers use it
        attention_mask_v: Tensor | None = None,
        attention_mask_l: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let image and text attend to each other.

        Args:
            v: (batch, positions, features) of the image.
            l: (batch, tokens, features) of the text.
            attention_mask_v: (batch, positions) bool, True = padding.
            attention_mask_l: (batch, tokens) bool, True = padding.
        """
        heads = self.num_heads
        image, text = shared_cross_attention(
            split_heads(self.v_proj(v), heads),
            split_heads(self.l_proj(l), heads),
            split_heads(self.values_v_proj(v), heads),
            split_heads(self.values_l_proj(l), heads),
            mask_a=None if attention_mask_v is None else ~attention_mask_v.bool(),
            mask_b=None if attention_mask_l is None else ~attention_mask_l.bool(),
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.attention_backend,
        )
        return self.out_v_proj(merge_heads(image)), self.out_l_proj(merge_heads(text))
