"""The image-text fusion of GroundingDINO as its authors published it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.replacement import rules
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, fused, randomise

NAME = "groundingdino.models.GroundingDINO.fuse_modules"
REAL_IMAGE = torch.arange(60) < torch.tensor([[60], [41]])
REAL_TEXT = torch.arange(11) < torch.tensor([[7], [11]])


@pytest.fixture(scope="module")
def fuse_modules() -> Iterator[ModuleType]:
    """The file of the installed package, without its other modules and all that they import."""
    package = importlib.util.find_spec("groundingdino")
    if package is None or package.origin is None:
        pytest.skip("groundingdino is missing: pip install --no-deps groundingdino-py")
    folder = Path(package.origin).parent
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "models" / "GroundingDINO" / "fuse_modules.py"
    )
    assert spec is not None
    assert spec.loader is not None
    layers = ModuleType("timm.models.layers")
    # Stochastic depth, of the block around the attention.
    layers.DropPath = nn.Identity
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm.models.layers", layers)
        patch.setitem(sys.modules, NAME, module)
        # Forgotten afterwards: another test may import the whole package.
        patch.delitem(sys.modules, "mmer.replacement.original_grounding_dino", raising=False)
        spec.loader.exec_module(module)
        yield module
        sys.modules.pop("mmer.replacement.original_grounding_dino", None)


def features() -> list[Tensor]:
    return [
        random_tensor(2, n, dim, dtype=torch.float32, seed=n) for n, dim in ((60, 32), (11, 24))
    ]


def attention(fuse_modules: ModuleType) -> nn.Module:
    return randomise(fuse_modules.BiMultiHeadAttention(32, 24, embed_dim=48, num_heads=3))


@pytest.mark.parametrize("masked", [(), ("l",), ("v", "l")])
def test_fusion(fuse_modules: ModuleType, masked: tuple[str, ...]) -> None:
    """The masks are True = padding."""
    real = {"v": REAL_IMAGE, "l": REAL_TEXT}
    masks = {f"attention_mask_{side}": ~real[side] for side in masked}

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        image, text = module(*inputs, **masks)
        return [
            image[REAL_IMAGE] if "v" in masked else image,
            text[REAL_TEXT] if "l" in masked else text,
        ]

    assert_parity(attention(fuse_modules), call, features())


def test_the_block_around_it(fuse_modules: ModuleType) -> None:
    """Norms, scale of the layer, residuals."""
    block = randomise(fuse_modules.BiAttentionBlock(32, 24, embed_dim=48, num_heads=3))
    assert_parity(block, lambda module, x: module(*x), features())
    assert list(replace_attention(block).replaced) == ["attn"]


def test_a_text_that_is_all_padding_gives_the_bias_where_the_library_gives_nan(
    fuse_modules: ModuleType,
) -> None:
    module, nobody = attention(fuse_modules), torch.ones(2, 11, dtype=torch.bool)
    assert module(*features(), attention_mask_l=nobody)[0].isnan().all()
    got, _ = fused(module)(*features(), attention_mask_l=nobody)
    assert torch.equal(got, module.out_v_proj.bias.expand_as(got))


def test_dropout_acts_in_training_only(fuse_modules: ModuleType) -> None:
    twin = fused(attention(fuse_modules))
    assert torch.equal(twin(*features())[0], twin(*features())[0])
    twin.train()
    assert not torch.equal(twin(*features())[0], twin(*features())[0])


def test_the_rule_is_in_the_table() -> None:
    assert f"{NAME}.BiMultiHeadAttention" in rules._RULES
