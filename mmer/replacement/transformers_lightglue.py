"""LightGlue of transformers, which keeps both images of a pair in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.lightglue.modeling_lightglue import LightGlueAttention

from mmer.kernels import bidirectional_cross_attention, shared_cross_attention
from mmer.layers.cross_attention import merge_heads, split_heads

from .fused import FusedModule, too_wide, values_can_be_read


class FusedLightGlueAttention(FusedModule, LightGlueAttention):
    """The cross-attention between the points of two images.

    The original LightGlue has one projection for queries and keys, so that its checkpoints hold the
    same numbers in ``q_proj`` and ``k_proj`` here. Where that is so and no gradient is asked for,
    one similarity serves both directions.
    """

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why an attention cannot become fused."""
        if not name.endswith("cross_attention"):
            return "self-attention has one direction only"
        if module.num_key_value_groups != 1:
            return "several of its heads share a key"
        return too_wide(module.head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Let image 0 and image 1 of each pair attend to each other.

        Args:
            hidden_states: (2 * pairs, points, features): image 0 and 1 of the first pair, and so
                on.
            position_embeddings: None in cross-attention.
            attention_mask: not read in cross-attention.
            encoder_hidden_states: the same with the images of each pair exchanged.
            encoder_attention_mask: (2 * pairs, 1, 1, points), bool with True = real, or added to
                the similarities.
            **kwargs: ``output_attentions`` is read.

        Returns:
            (2 * pairs, points, features), and None in place of the attention maps.
        """
        reason = None
        if encoder_hidden_states is None or position_embeddings is not None:
            reason = "it is no plain cross-attention"
        elif kwargs.get("output_attentions"):
            reason = "attention maps are requested"
        elif encoder_hidden_states.shape != hidden_states.shape or hidden_states.shape[0] % 2:
            reason = "its batch is not made of pairs of images"
        real = real_keys(encoder_attention_mask)
        if encoder_attention_mask is not None and real is None:
            reason = "its mask says more than which points are real"
        if reason is not None:
            return self.original_forward(
                reason,
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                **kwargs,
            )
        heads = self.config.num_attention_heads
        query = split_heads(self.q_proj(hidden_states), heads)
        value = split_heads(self.v_proj(encoder_hidden_states), heads)
        options: dict[str, Any] = {
            "scale": self.scaling,
            "dropout_p": self.attention_dropout if self.training else 0.0,
            "backend": self.attention_backend,
        }
        if real is not None:
            # What image 0 sees is image 1.
            options.update(mask_a=real[1::2], mask_b=real[0::2])
        if self._queries_are_keys():
            results = shared_cross_attention(
                query[0::2], query[1::2], value[1::2], value[0::2], **options
            )
        else:
            key = split_heads(self.k_proj(encoder_hidden_states), heads)
            results = bidirectional_cross_attention(
                query[0::2], key[1::2], value[1::2], query[1::2], key[0::2], value[0::2], **options
            )
        both = torch.stack(results, dim=1).flatten(0, 1)
        return self.o_proj(merge_heads(both)), None

    def _queries_are_keys(self) -> bool:
        query, key = self.q_proj, self.k_proj
        if torch.is_grad_enabled() or not values_can_be_read(query.weight):
            return False
        return torch.equal(query.weight, key.weight) and (
            query.bias is None or torch.equal(query.bias, key.bias)
        )


def real_keys(mask: Tensor | None) -> Tensor | None:
    """Return which points are real, (batch, points), or None if the mask says something else."""
    if mask is None or mask.dim() != 4 or mask.shape[1:3] != (1, 1):
        return None
    keys = mask[:, 0, 0]
    if keys.dtype == torch.bool:
        return keys
    real = keys == 0
    if values_can_be_read(keys):
        least = torch.finfo(keys.dtype).min
        if not torch.equal(real | (keys <= least), torch.ones_like(real)):
            return None
    return real
