"""Fused attention for multimodal sequence models, and emotion recognition built on it.

The operators are here, and :func:`replace_attention`, which puts them into models of other
libraries; the layers are in :mod:`mmer.layers`, the model in :mod:`mmer.models`, and what explains
the choice of a backend in :mod:`mmer.kernels`.
"""

from __future__ import annotations

from mmer._build import load_cuda, load_operators
from mmer.kernels import (
    ChunkedAttentionState,
    bidirectional_cross_attention,
    chunked_attention,
    chunked_attention_step,
    enter_cpu,
    enter_cuda,
    shared_cross_attention,
)
from mmer.replacement import replace_attention

__all__ = [
    "ChunkedAttentionState",
    "__version__",
    "bidirectional_cross_attention",
    "chunked_attention",
    "chunked_attention_step",
    "replace_attention",
    "shared_cross_attention",
]

__version__ = "0.1.0"

# A saved program (torch.export) may hold a compiled operator, so they are registered on import.
enter_cpu(load_operators())
enter_cuda(load_cuda())
