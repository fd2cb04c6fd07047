"""Fused attention for multimodal sequence models, and emotion recognition built on it.

The operators are here; the layers are in :mod:`mmer.layers`, the model in :mod:`mmer.models`, and
what explains the choice of a backend in :mod:`mmer.kernels`.
"""

from __future__ import annotations

from mmer import _build as _build
from mmer.kernels import (
    ChunkedAttentionState,
    bidirectional_cross_attention,
    chunked_attention,
    chunked_attention_step,
    shared_cross_attention,
)

__all__ = [
    "ChunkedAttentionState",
    "__version__",
    "bidirectional_cross_attention",
    "chunked_attention",
    "chunked_attention_step",
    "shared_cross_attention",
]

__version__ = "0.1.0"
