"""kornia's LightGlue (Lindenberger et al. 2023): both directions from one similarity."""

from __future__ import annotations

from typing import Any

import torch
from kornia.feature.lightglue import CrossBlock, TransformerLayer
from torch import Tensor

from mmer.kernels import shared_cross_attention
from mmer.layers.cross_attention import merge_heads, split_heads

from .fused import FusedModule, too_wide, values_can_be_read


class FusedCrossBlock(FusedModule, CrossBlock):
    """The cross-attention between the points of two images."""

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why a block cannot become fused."""
        return too_wide(module.to_qk.out_features // module.heads)

    def forward(self, x0: Tensor, x1: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Update the descriptors of both images.

        Args:
            x0: (batch, points_0, features).
            x1: (batch, points_1, features).
            mask: bool, True = this pair of points may attend; broadcasts to (batch, heads,
                points_0, points_1).
        """
        if mask is None:
            return self.attend(x0, x1, None, None)
        masks = separate(mask, x0.shape[0])
        if masks is None:
            return self.original_forward(
                "its mask of pairs is not made of one mask for each image", x0, x1, mask
            )
        return self.attend(x0, x1, *masks)

    def attend(
        self, x0: Tensor, x1: Tensor, mask0: Tensor | None, mask1: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Do it with a mask (batch, points) for each image, True = real."""
        qk0, qk1, v0, v1 = (
            split_heads(x, self.heads)
            for x in (self.to_qk(x0), self.to_qk(x1), self.to_v(x0), self.to_v(x1))
        )
        m0, m1 = shared_cross_attention(
            qk0,
            qk1,
            v0,
            v1,
            mask_a=mask0,
            mask_b=mask1,
            scale=self.scale,
            backend=self.attention_backend,
        )
        m0, m1 = self.to_out(merge_heads(m0)), self.to_out(merge_heads(m1))
        return x0 + self.ffn(torch.cat([x0, m0], -1)), x1 + self.ffn(torch.cat([x1, m1], -1))


class FusedTransformerLayer(FusedModule, TransformerLayer):
    """A layer that hands the masks of its images on as they are, not as a mask of pairs."""

    def masked_forward(
        self,
        desc0: Tensor,
        desc1: Tensor,
        encoding0: Tensor,
        encoding1: Tensor,
        mask0: Tensor,
        mask1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update the descriptors of both images, some of which are padding."""
        cross = self.cross_attn
        if not isinstance(cross, FusedCrossBlock):
            return super().masked_forward(desc0, desc1, encoding0, encoding1, mask0, mask1)
        desc0 = self.self_attn(desc0, encoding0, mask0 & mask0.transpose(-1, -2))
        desc1 = self.self_attn(desc1, encoding1, mask1 & mask1.transpose(-1, -2))
        return cross.attend(desc0, desc1, mask0.squeeze(-1), mask1.squeeze(-1))


def separate(mask: Tensor, batch: int) -> tuple[Tensor, Tensor] | None:
    """Return the mask of each image that a mask of pairs is made of, or None if it is not."""
    if not values_can_be_read(mask):
        return None
    # A mask without heads, as kornia makes it, broadcasts as it should for one pair of images only.
    if mask.dim() == 3 and (batch == 1 or mask.shape[0] == 1):
        mask = mask[:, None]
    if mask.dim() != 4 or mask.shape[1] != 1:
        return None
    mask0, mask1 = mask[:, 0].any(dim=-1), mask[:, 0].any(dim=-2)
    if not torch.equal(mask[:, 0], mask0[:, :, None] & mask1[:, None, :]):
        return None
    return mask0, mask1
