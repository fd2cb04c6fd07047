"""Fused attention in the models that people already have, replaced in one line.

:func:`replace_attention` finds the attention modules that it knows in a model and lets the fused
operators compute them, with the weights where they are. ``docs/drop_in.md`` has what each library
means by its masks and options, and where results differ on purpose.
"""

from __future__ import annotations

from .comparison import Comparison, Cost, compare_attention
from .fused import FusedModule, OriginalAttentionWarning
from .multihead import merge_multihead_attention
from .rules import register_replacement
from .swap import Replacement, replace_attention

__all__ = [
    "Comparison",
    "Cost",
    "FusedModule",
    "OriginalAttentionWarning",
    "Replacement",
    "compare_attention",
    "merge_multihead_attention",
    "register_replacement",
    "replace_attention",
]
