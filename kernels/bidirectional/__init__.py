"""Bidirectional cross-attention: definition, operator and backends."""

from __future__ import annotations

from .operator import bidirectional_cross_attention

__all__ = ["bidirectional_cross_attention"]
