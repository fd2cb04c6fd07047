"""Chunked temporal attention: definition, operator, streaming and backends."""

from __future__ import annotations

from .operator import chunk_summaries, chunked_attention
from .streaming import ChunkedAttentionState, chunked_attention_step

__all__ = [
    "ChunkedAttentionState",
    "chunk_summaries",
    "chunked_attention",
    "chunked_attention_step",
]
