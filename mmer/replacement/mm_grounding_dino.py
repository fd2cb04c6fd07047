"""MM-GroundingDINO of transformers."""

from __future__ import annotations

from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import (
    MMGroundingDinoBiMultiHeadAttention,
    MMGroundingDinoEncoder,
)

from .bi_multihead import FusedBiMultiHead, FusedEncoder


class FusedMMGroundingDinoBiMultiHeadAttention(
    FusedBiMultiHead, MMGroundingDinoBiMultiHeadAttention
):
    """The attention of image and text to each other."""


class FusedMMGroundingDinoEncoder(FusedEncoder, MMGroundingDinoEncoder):
    """The encoder that they are in."""
