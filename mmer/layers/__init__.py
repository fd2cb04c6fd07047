"""Layers on the operators of ``mmer.kernels``, (batch, time, features) in and out.

Built like ``nn.MultiheadAttention``. Masks are bool with True = real, times are seconds. Whatever
sits in padded steps, NaN included, has no influence, and padded steps of a result are 0.
"""

from __future__ import annotations

from .chunked_attention import ChunkedTemporalAttention, ChunkedTemporalState
from .convolution import TemporalConvNet
from .cross_attention import BidirectionalCrossAttention, SharedCrossAttention
from .feed_forward import FeedForward
from .fusion import FusionBlock

__all__ = [
    "BidirectionalCrossAttention",
    "ChunkedTemporalAttention",
    "ChunkedTemporalState",
    "FeedForward",
    "FusionBlock",
    "SharedCrossAttention",
    "TemporalConvNet",
]
