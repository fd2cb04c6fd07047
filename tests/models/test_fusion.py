"""Fusion of several modalities: the fusion block for two, averaged over partners for more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmer.layers import FusionBlock
from mmer.models import ModalityConfig, RecognizerConfig
from mmer.models.fusion import PairwiseFusion
from mmer.models.stem import Tokens

LENGTHS = {"eda": 4, "bvp": 6, "acc": 5}


def made(fusion: str, *names: str) -> PairwiseFusion:
    torch.manual_seed(0)
    config = RecognizerConfig(
        modalities={name: ModalityConfig(1) for name in names},
        num_classes=2,
        embed_dim=8,
        num_heads=2,
        fusion=fusion,
        max_gap=4.0,
    )
    module = PairwiseFusion(config).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def modalities(*names: str) -> dict[str, Tokens]:
    result = {}
    for name in names:
        mask = torch.rand(3, LENGTHS[name]) < 0.7
        values = torch.randn(3, LENGTHS[name], 8).masked_fill(~mask[..., None], 0.0)
        result[name] = Tokens(values, mask, 9 * torch.rand(3, LENGTHS[name]))
    return result


@pytest.mark.parametrize("fusion", ["bidirectional", "shared"])
def test_two_modalities_are_a_fusion_block(fusion: str) -> None:
    pairwise = made(fusion, "eda", "bvp")
    block = FusionBlock(8, 2, attention=fusion, time_decay=True, max_gap=4.0).eval()
    names = {"attention.eda__bvp.": "attention.", "sides.eda.": "side_a.", "sides.bvp.": "side_b."}
    state = pairwise.state_dict()
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    block.load_state_dict(state)
    tokens = modalities("eda", "bvp")
    eda, bvp = tokens.values()
    wanted = block(
        eda.values,
        bvp.values,
        mask_a=eda.mask,
        mask_b=bvp.mask,
        times_a=eda.times,
        times_b=bvp.times,
    )
    for got, values in zip(pairwise(tokens).values(), wanted, strict=True):
        torch.testing.assert_close(got.values, values, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", ["bidirectional", "shared"])
def test_updates_are_averaged_over_the_partners_that_are_present(fusion: str) -> None:
    module = made(fusion, "eda", "bvp", "acc")
    tokens = modalities("eda", "bvp", "acc")
    tokens["acc"].mask[1] = False
    tokens["acc"].values[1] = 0.0
    fused = module(tokens)
    normed = {name: module.sides[name].norm(x.values) for name, x in tokens.items()}

    def taken(first: str, second: str) -> torch.Tensor:
        """What the first of a configured pair takes from the second."""
        a, b = tokens[first], tokens[second]
        update, _ = module.attention[f"{first}__{second}"](
            normed[first],
            normed[second],
            mask_a=a.mask,
            mask_b=b.mask,
            times_a=a.times,
            times_b=b.times,
        )
        return update

    from_bvp, from_acc = taken("eda", "bvp"), taken("eda", "acc")
    update = 0.5 * (from_bvp + from_acc)
    update[1] = from_bvp[1]
    eda = tokens["eda"]
    torch.testing.assert_close(
        fused["eda"].values, module.sides["eda"](eda.values, update, eda.mask)
    )
    assert (fused["acc"].values[1] == 0).all()
    assert all(torch.equal(fused[name].mask, tokens[name].mask) for name in tokens)


def test_a_lone_modality_goes_through_its_feed_forward_only() -> None:
    module = made("bidirectional", "eda", "bvp")
    tokens = modalities("eda")
    side, eda = module.sides["eda"], tokens["eda"]
    wanted = eda.values + side.feed_forward(side.feed_forward_norm(eda.values))
    torch.testing.assert_close(
        module(tokens)["eda"].values, wanted.masked_fill(~eda.mask[..., None], 0.0)
    )
    absent = Tokens(
        torch.full((3, 6, 8), 0.0),
        torch.zeros(3, 6, dtype=torch.bool),
        torch.full((3, 6), math.nan),
    )
    both = module({**tokens, "bvp": absent})
    assert torch.equal(both["eda"].values, module(tokens)["eda"].values)
