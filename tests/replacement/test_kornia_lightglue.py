"""kornia's LightGlue: CrossBlock, its layer with masks, and the whole matcher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.replacement import OriginalAttentionWarning
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, fused, randomise

lightglue = pytest.importorskip("kornia.feature.lightglue")


def descriptors(points: int, seed: int, features: int = 32, batch: int = 1) -> Tensor:
    return random_tensor(batch, points, features, dtype=torch.float32, seed=seed)


def block() -> nn.Module:
    torch.manual_seed(0)
    return randomise(lightglue.CrossBlock(32, 4))


@pytest.mark.parametrize("points", [(1, 1), (17, 63), (97, 40)])
def test_cross_block(points: tuple[int, int]) -> None:
    inputs = [descriptors(n, seed, batch=2) for seed, n in enumerate(points)]
    assert_parity(block(), lambda module, x: module(*x), inputs)


def test_cross_block_of_the_real_size() -> None:
    """4 heads of 64, and as many points as an image has."""
    module = randomise(lightglue.CrossBlock(256, 4), std=0.05)
    inputs = [descriptors(n, seed, features=256) for seed, n in enumerate((512, 300))]
    assert_parity(module, lambda module, x: module(*x), inputs)


@pytest.mark.parametrize("heads_axis", [False, True])
def test_cross_block_with_a_mask_of_pairs(heads_axis: bool) -> None:
    """Rows of padding too: kornia turns their NaN into 0, which is what they are here."""
    mask0, mask1 = torch.arange(20) < 13, torch.arange(30) < 22
    mask = (mask0[:, None] & mask1)[None]
    if heads_axis:
        mask = mask[None]
    inputs = [descriptors(20, 0), descriptors(30, 1)]
    assert_parity(block(), lambda module, x: module(*x, mask=mask), inputs, gradients=False)


def layer_call(module: nn.Module, inputs: list[Tensor], real: list[Tensor] | None) -> list[Tensor]:
    """A whole layer: self-attention of kornia, then cross-attention; results at real points."""
    encodings = [torch.ones(2, 1, 1, x.shape[1], 8, dtype=x.dtype) * 0.7 for x in inputs]
    masks = [mask[None, :, None] for mask in real] if real else []
    outputs = module(*inputs, *encodings, *masks)
    return [out[:, mask] for out, mask in zip(outputs, real, strict=True)] if real else outputs


def test_layer_with_padding_gives_gradients_as_if_there_were_none() -> None:
    """kornia's own gradients are NaN where a row is masked: it is compared without the padding."""
    real = [torch.arange(20) < 13, torch.arange(30) < 22]
    inputs = [descriptors(20, 0), descriptors(30, 1)]
    module = randomise(lightglue.TransformerLayer(32, 4))
    # Self-attention stays kornia's, whose gradients are NaN, too: here only cross-attention is
    # padded.
    module.self_attn = Nothing()

    def cropped(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        return layer_call(module, [x[:, mask] for x, mask in zip(inputs, real, strict=True)], None)

    assert_parity(
        module, lambda module, x: layer_call(module, x, real), inputs, library_call=cropped
    )
    leaves = [x.clone().requires_grad_() for x in inputs]
    sum(out.sum() for out in layer_call(module, leaves, real)).backward()
    assert leaves[0].grad.isnan().any(), "kornia's gradients are right now: say so in the docs"


class Nothing(nn.Module):
    def forward(self, x: Tensor, encoding: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def test_a_mask_of_pairs_that_is_none_of_points_runs_the_library() -> None:
    mask = torch.ones(1, 6, 7, dtype=torch.bool).tril()
    inputs = [descriptors(6, 0), descriptors(7, 1)]
    module = block()
    with pytest.warns(OriginalAttentionWarning, match="mask of pairs"):
        got = fused(module)(*inputs, mask)
    for ours, wanted in zip(got, module(*inputs, mask), strict=True):
        assert torch.equal(ours, wanted)


def matcher(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return lightglue.LightGlue(
        None, input_dim=64, descriptor_dim=64, num_heads=4, n_layers=3, **options
    ).eval()


def images(points: tuple[int, int] = (120, 90)) -> dict[str, dict[str, Tensor]]:
    return {
        f"image{number}": {
            "keypoints": torch.rand(1, count, 2) * 640,
            "descriptors": torch.randn(1, count, 64),
            "image_size": torch.tensor([[640, 640]]),
        }
        for number, count in enumerate(points)
    }


@pytest.mark.parametrize("pruning", [False, True])
def test_whole_matcher(pruning: bool) -> None:
    options = {} if pruning else {"depth_confidence": -1, "width_confidence": -1}
    model, data = matcher(**options), images()
    with torch.no_grad():
        wanted = model(data)
        with replace_attention(model) as replacement:
            assert list(replacement.replaced) == [
                name
                for n in range(3)
                for name in (f"transformers.{n}", f"transformers.{n}.cross_attn")
            ]
            got = model(data)
    torch.testing.assert_close(got["matching_scores0"], wanted["matching_scores0"])
    assert torch.equal(got["matches0"], wanted["matches0"])
    if not pruning:
        torch.testing.assert_close(
            got["log_assignment"], wanted["log_assignment"], rtol=1e-5, atol=1e-4
        )


def test_matcher_padded_to_static_lengths_and_compiled() -> None:
    """What kornia's ``compile`` does: one graph for each layer, with masks."""
    model, data = matcher(depth_confidence=-1, width_confidence=-1), images((50, 40))
    with torch.no_grad():
        wanted = model(data)["log_assignment"]
        replace_attention(model)
        model.static_lengths = [64]
        for layer in model.transformers:
            layer.masked_forward = torch.compile(
                layer.masked_forward, backend="eager", fullgraph=True
            )
        got = model(data)["log_assignment"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
