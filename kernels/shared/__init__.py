"""Shared cross-attention: definition, operator and backends."""

from __future__ import annotations

from .operator import shared_cross_attention

__all__ = ["shared_cross_attention"]
