"""Which class stands in for which: the table that ``replace_attention`` looks modules up in."""

from __future__ import annotations

import importlib

from torch import nn

from .fused import FusedModule, original_class, unknown_arguments

# The library's class -> the fused class, as module:name. Nothing is imported before a module of the
# library's class is found, by which time the library is imported anyway.
_TRANSFORMERS = "transformers.models"
_RULES: dict[str, str | type[FusedModule]] = {
    "kornia.feature.lightglue.CrossBlock": "kornia_lightglue:FusedCrossBlock",
    "kornia.feature.lightglue.TransformerLayer": "kornia_lightglue:FusedTransformerLayer",
    f"{_TRANSFORMERS}.lightglue.modeling_lightglue.LightGlueAttention": (
        "transformers_lightglue:FusedLightGlueAttention"
    ),
    "groundingdino.models.GroundingDINO.fuse_modules.BiMultiHeadAttention": (
        "original_grounding_dino:FusedBiMultiHeadAttention"
    ),
    "bidirectional_cross_attention.bidirectional_cross_attention.BidirectionalCrossAttention": (
        "lucidrains_bidirectional:FusedBidirectionalCrossAttention"
    ),
    "local_attention.local_attention.LocalAttention": "lucidrains_local:FusedLocalAttention",
    **{
        f"{_TRANSFORMERS}.{file}.modeling_{file}.{prefix}{name}": f"{file}:Fused{prefix}{name}"
        for file, prefix in (
            ("grounding_dino", "GroundingDino"),
            ("mm_grounding_dino", "MMGroundingDino"),
        )
        for name in ("BiMultiHeadAttention", "Encoder")
    },
}
_MULTIHEAD = (
    "nothing says whether another nn.MultiheadAttention attends the other way over the same "
    "sequences; merge such a pair with mmer.replacement.merge_multihead_attention"
)


def register_replacement(fused: type[FusedModule]) -> None:
    """Let :func:`replace_attention` also replace modules of a class of your own.

    Args:
        fused: a class that derives from :class:`FusedModule` and the class that it stands in for,
            in this order. Define it in a module, so that models with it can be pickled.

    Raises:
        TypeError: ``fused`` is no such class.
    """
    if not (isinstance(fused, type) and issubclass(fused, FusedModule)):
        raise TypeError(f"fused must be a class that derives from FusedModule, got {fused!r}")
    _RULES[_path(original_class(fused))] = fused


def fused_class_for(module: nn.Module, name: str) -> type[FusedModule] | str | None:
    """Return the fused class for a module, or why there is none, or None if it is no attention.

    Args:
        module: any module.
        name: its qualified name in the model.
    """
    found = type(module)
    if issubclass(found, FusedModule):
        return None
    if found is nn.MultiheadAttention:
        return _MULTIHEAD
    known = next((base for base in found.__mro__ if _path(base) in _RULES), None)
    if known is None:
        return None
    if known is not found:
        return f"{found.__name__} is derived from {known.__name__} and may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced already, by something else"
    fused = _load(_RULES[_path(found)])
    return unknown_arguments(fused) or fused.refusal(module, name) or fused


def _path(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _load(rule: str | type[FusedModule]) -> type[FusedModule]:
    if not isinstance(rule, str):
        return rule
    module, _, name = rule.partition(":")
    fused: type[FusedModule] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return fused
