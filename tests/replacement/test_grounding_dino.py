"""The image-text fusion of GroundingDINO and MM-GroundingDINO, alone and in the whole model."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.layers.cross_attention import merge_heads, split_heads
from mmer.replacement import OriginalAttentionWarning
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, fused, randomise

pytest.importorskip("transformers")
KINDS = [("grounding_dino", "GroundingDino"), ("mm_grounding_dino", "MMGroundingDino")]
REAL_IMAGE = torch.arange(60) < torch.tensor([[60], [41]])
REAL_TEXT = torch.arange(11) < torch.tensor([[7], [11]])


def small_config(prefix: str) -> Any:
    import transformers

    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3"],
    )
    text = transformers.BertConfig(
        vocab_size=2000,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return getattr(transformers, f"{prefix}Config")(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
        fusion_droppath=0.0,
        fusion_dropout=0.0,
        max_text_len=16,
    )


def attention(folder: str, prefix: str) -> nn.Module:
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    kind = getattr(modeling, f"{prefix}BiMultiHeadAttention")
    return randomise(kind(small_config(prefix)))


def features() -> list[Tensor]:
    return [
        random_tensor(2, n, 32, dtype=torch.float32, seed=seed) for seed, n in enumerate((60, 11))
    ]


@pytest.mark.parametrize(("folder", "prefix"), KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_fusion(folder: str, prefix: str, masked: bool) -> None:
    """The masks are True = padding; padded positions are compared in no one."""

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        masks = [~REAL_IMAGE, ~REAL_TEXT] if masked else []
        (vision, _), (text, _) = module(*inputs, *masks)
        return [vision[REAL_IMAGE], text[REAL_TEXT]] if masked else [vision, text]

    assert_parity(attention(folder, prefix), call, features())


@pytest.mark.parametrize(("spread", "library_is_right"), [(2e4, True), (2e5, False)])
@torch.no_grad()
def test_clamps_matter_only_where_scores_are_spread_over_more_than_50000(
    spread: float, library_is_right: bool
) -> None:
    """In float64, where scores of this size leave no doubt which one is the largest."""
    module = attention(*KINDS[0]).double()
    image, text = (x.double() for x in features())
    query, key, value = (
        split_heads(projection(x), module.num_heads)
        for projection, x in (
            (module.text_proj, text),
            (module.vision_proj, image),
            (module.values_vision_proj, image),
        )
    )
    scores = query @ key.mT
    module.scale = spread / float(scores.max() - scores.min())
    out = nn.functional.scaled_dot_product_attention(query, key, value, scale=module.scale)
    wanted = module.out_text_proj(merge_heads(out))
    torch.testing.assert_close(fused(module)(image, text)[1][0], wanted)
    assert torch.allclose(module(image, text)[1][0], wanted) == library_is_right


@pytest.mark.parametrize("masked", [False, True])
def test_heads_as_wide_as_the_real_ones(masked: bool) -> None:
    """4 heads of 256, the most that the operators take."""
    from transformers import GroundingDinoConfig

    modeling = importlib.import_module(f"transformers.models.{KINDS[0][0]}.modeling_{KINDS[0][0]}")
    module = randomise(modeling.GroundingDinoBiMultiHeadAttention(GroundingDinoConfig()), std=0.03)
    assert (module.num_heads, module.head_dim) == (4, 256)
    real = torch.arange(97) < 70
    inputs = [random_tensor(1, n, 256, dtype=torch.float32, seed=n) for n in (300, 97)]

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        padding = {"text_attention_mask": ~real[None]} if masked else {}
        (vision, _), (text, _) = module(*inputs, **padding)
        return [vision, text[:, real] if masked else text]

    assert_parity(module, call, inputs)


def test_a_text_that_is_all_padding_gives_the_bias_where_the_library_gives_nan() -> None:
    module = attention(*KINDS[0])
    nobody = torch.ones(2, 11, dtype=torch.bool)
    (wanted, _), _ = module(*features(), text_attention_mask=nobody)
    assert wanted.isnan().all(), "the library is right now: say so in the docs"
    (got, _), _ = fused(module)(*features(), text_attention_mask=nobody)
    assert torch.equal(got, module.out_vision_proj.bias.expand_as(got))


def test_dropout_acts_in_training_only() -> None:
    module = attention(*KINDS[0])
    module.dropout = 0.5
    twin = fused(module)
    assert torch.equal(twin(*features())[0][0], twin(*features())[0][0])
    twin.train()
    assert not torch.equal(twin(*features())[0][0], twin(*features())[0][0])


def detector(prefix: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(small_config(prefix)).eval()
    for name, parameter in model.named_parameters():
        # The library starts the fusion at 1e-4, where it would hardly be seen.
        if name.endswith(("vision_param", "text_param")):
            nn.init.constant_(parameter, 0.5)
    return model


def batch() -> dict[str, Tensor]:
    """Two images, one of which is smaller, and two texts, one of which is shorter."""
    torch.manual_seed(1)
    pixel_mask = torch.ones(2, 64, 64, dtype=torch.long)
    pixel_mask[1, 40:] = 0
    text = torch.tensor([[101, 1037, 1205, 1012, 1037, 1305, 1012, 102]] * 2)
    mask = torch.ones_like(text)
    text[1, 5:], mask[1, 5:] = 0, 0
    return {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "pixel_mask": pixel_mask,
        "input_ids": text,
        "attention_mask": mask,
    }


@pytest.mark.parametrize("prefix", [prefix for _, prefix in KINDS])
def test_whole_model(prefix: str) -> None:
    model = detector(prefix)
    with torch.no_grad():
        wanted = model(**batch())
        with replace_attention(model) as replacement:
            assert len(replacement.replaced) == 3
            got = model(**batch())
    torch.testing.assert_close(got.pred_boxes, wanted.pred_boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_attentions_of_the_whole_model_are_the_librarys() -> None:
    model = detector("GroundingDino")
    with torch.no_grad():
        wanted = model(**batch(), output_attentions=True).encoder_attentions
        replace_attention(model)
        with pytest.warns(OriginalAttentionWarning, match="attention maps"):
            got = model(**batch(), output_attentions=True).encoder_attentions
        after = model(**batch())
    for ours, theirs in zip(got, wanted, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y)
    assert after.encoder_attentions is None
