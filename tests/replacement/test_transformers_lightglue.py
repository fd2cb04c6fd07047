"""LightGlue of transformers: the cross-attention and its layer, with points that are padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.replacement import OriginalAttentionWarning
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, fused, randomise

modeling = pytest.importorskip("transformers.models.lightglue.modeling_lightglue")
FEATURES = 32


def layer(
    *, tied: bool, implementation: str = "eager", features: int = FEATURES, **options: Any
) -> nn.Module:
    from transformers import LightGlueConfig, SuperPointConfig

    config = LightGlueConfig(
        keypoint_detector_config=SuperPointConfig(),
        descriptor_dim=features,
        num_attention_heads=4,
        **options,
    )
    config._attn_implementation = implementation
    module = randomise(modeling.LightGlueTransformerLayer(config, layer_idx=0))
    if tied:
        module.cross_attention.k_proj.load_state_dict(module.cross_attention.q_proj.state_dict())
    return module


def call(mask: Tensor | None, real: Tensor | None, **options: Any) -> Any:
    def run(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        (x,) = inputs
        angles = torch.linspace(0, 1, x.shape[1] * 8, dtype=x.dtype).view(1, x.shape[1], 8)
        keypoints = (angles.cos(), angles.sin())
        given = mask.to(x.dtype) if mask is not None and mask.is_floating_point() else mask
        out, *_ = module(x, keypoints, given, **options)
        return [out if real is None else out[real]]

    return run


def descriptors(pairs: int = 2, points: int = 23) -> Tensor:
    return random_tensor(2 * pairs, points, FEATURES, dtype=torch.float32, seed=0)


REAL = torch.arange(23) < torch.tensor([[23], [15], [9], [20]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("masked", ["no mask", "added", "bool"])
def test_layer(tied: bool, masked: str) -> None:
    module = layer(tied=tied, implementation="sdpa" if masked == "bool" else "eager")
    if masked == "no mask":
        assert_parity(module, call(None, None), [descriptors()])
        return
    mask = REAL[:, None, None, :]
    if masked == "added":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    assert_parity(module, call(mask, REAL), [descriptors()])


@pytest.mark.parametrize("tied", [False, True])
def test_cross_attention_of_the_real_size(tied: bool) -> None:
    """4 heads of 64."""
    pairs = layer(tied=tied, features=256)
    for parameter in pairs.parameters():
        parameter.detach().mul_(0.3)
    x = random_tensor(2, 300, 256, dtype=torch.float32, seed=0)

    def run(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        (x,) = inputs
        return [module.cross_attention(x, encoder_hidden_states=x.flip(0))[0]]

    assert_parity(pairs, run, [x])


def test_equal_projections_give_the_same_through_one_similarity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, x = layer(tied=True), descriptors()
    twin = fused(module)
    calls = []
    monkeypatch.setattr(
        twin.cross_attention, "_queries_are_keys", lambda: calls.append(1), raising=True
    )
    with torch.no_grad():
        two = call(None, None)(twin, [x])[0]
        monkeypatch.undo()
        assert twin.cross_attention._queries_are_keys()
        one = call(None, None)(twin, [x])[0]
        twin.cross_attention.k_proj.weight[0, 0] += 1
        assert not twin.cross_attention._queries_are_keys()
    assert calls
    torch.testing.assert_close(one, two)


def test_attention_maps_are_the_librarys() -> None:
    module, x = layer(tied=False), descriptors()
    twin = fused(module)
    angles = torch.ones(1, x.shape[1], 8)
    options = {"output_attentions": True}
    wanted = module(x, (angles, angles), None, **options)
    with pytest.warns(OriginalAttentionWarning, match="attention maps"):
        got = twin(x, (angles, angles), None, **options)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[2][1], wanted[2][1])


def test_a_mask_that_weighs_points_runs_the_library() -> None:
    module, x = layer(tied=False), descriptors()
    mask = torch.rand(4, 1, 1, 23)
    wanted = call(mask, None)(module, [x])[0]
    with pytest.warns(OriginalAttentionWarning, match="mask"):
        got = call(mask, None)(fused(module), [x])[0]
    assert torch.equal(got, wanted)


def test_self_attention_is_left_alone() -> None:
    twin = copy.deepcopy(layer(tied=False))
    replacement = replace_attention(twin)
    assert list(replacement.replaced) == ["cross_attention"]
    assert list(replacement.left_alone) == ["self_attention"]


def test_keys_that_heads_share_are_left_alone() -> None:
    module = layer(tied=False, num_key_value_heads=2)
    with pytest.warns(UserWarning, match="share a key"):
        assert not replace_attention(module).replaced
