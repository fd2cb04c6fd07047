"""Fusion of any number of modalities: every pair attends to each other."""

from __future__ import annotations

from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from mmer.layers.fusion import ATTENTIONS, FusionSide

from .config import RecognizerConfig
from .stem import Tokens


class PairwiseFusion(nn.Module):
    """:class:`~mmer.layers.FusionBlock` for more than two sides.

    Every pair of modalities has a cross-attention of its own; what a modality takes from its
    partners is averaged over those that are present in the item, then goes through its gated
    residual and its feed-forward. A modality that is missing, for an item or for all, changes
    nothing for the others.

    State dict: ``attention.NAME__NAME.*`` for each pair in the order of the configuration, as the
    attention layer documents it, and ``sides.NAME.*`` as :class:`~mmer.layers.FusionBlock`
    documents its sides.

    Args:
        config: its ``fusion`` is not "none".
        backend: which implementation of the operator to use.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        config: RecognizerConfig,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                f"{first}__{second}": ATTENTIONS[config.fusion](
                    config.embed_dim,
                    config.num_heads,
                    dropout=config.attention_dropout,
                    time_decay=config.time_decay,
                    max_gap=config.max_gap,
                    backend=backend,
                    device=device,
                    dtype=dtype,
                )
                for first, second in combinations(config.modalities, 2)
            }
        )
        self.sides = nn.ModuleDict(
            {
                name: FusionSide(
                    config.embed_dim,
                    gate_init=config.gate_init,
                    expansion=config.expansion,
                    dropout=config.dropout,
                    device=device,
                    dtype=dtype,
                )
                for name in config.modalities
            }
        )

    def forward(self, modalities: dict[str, Tokens]) -> dict[str, Tokens]:
        """Fuse the modalities at hand, in the order of the configuration."""
        normed = {name: self._side(name).norm(x.values) for name, x in modalities.items()}
        updates: dict[str, list[Tensor]] = {name: [] for name in modalities}
        for first, second in combinations(modalities, 2):
            from_second, from_first = self.attention[f"{first}__{second}"](
                normed[first],
                normed[second],
                mask_a=modalities[first].mask,
                mask_b=modalities[second].mask,
                times_a=modalities[first].times,
                times_b=modalities[second].times,
            )
            updates[first].append(from_second)
            updates[second].append(from_first)

        present = {name: tokens.mask.any(dim=1).int() for name, tokens in modalities.items()}
        total = torch.stack(list(present.values())).sum(dim=0)
        fused = {}
        for name, tokens in modalities.items():
            update: Tensor | None = None
            if updates[name]:
                partners = (total - present[name]).clamp(min=1)[:, None, None]
                update = torch.stack(updates[name]).sum(dim=0) / partners
            values = self._side(name)(tokens.values, update, tokens.mask)
            fused[name] = tokens._replace(values=values)
        return fused

    def _side(self, name: str) -> FusionSide:
        return cast(FusionSide, self.sides[name])
