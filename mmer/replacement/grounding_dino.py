"""GroundingDINO of transformers."""

from __future__ import annotations

from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoBiMultiHeadAttention,
    GroundingDinoEncoder,
)

from .bi_multihead import FusedBiMultiHead, FusedEncoder


class FusedGroundingDinoBiMultiHeadAttention(FusedBiMultiHead, GroundingDinoBiMultiHeadAttention):
    """The attention of image and text to each other."""


class FusedGroundingDinoEncoder(FusedEncoder, GroundingDinoEncoder):
    """The encoder that they are in."""
