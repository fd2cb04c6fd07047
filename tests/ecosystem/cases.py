"""Modules that everything of PyTorch's is tried on: layers of ours, and a library's, replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.layers import BidirectionalCrossAttention, ChunkedTemporalAttention, SharedCrossAttention


def replaced(module: nn.Module) -> nn.Module:
    assert replace_attention(module).replaced
    return module


def kornia_block() -> nn.Module:
    lightglue = pytest.importorskip("kornia.feature.lightglue")
    return replaced(lightglue.CrossBlock(16, 2))


class ImagePairs(nn.Module):
    """LightGlue of transformers, whose batch holds both images of a pair one after the other."""

    def __init__(self) -> None:
        super().__init__()
        modeling = pytest.importorskip("transformers.models.lightglue.modeling_lightglue")
        from transformers import LightGlueConfig, SuperPointConfig

        config = LightGlueConfig(
            keypoint_detector_config=SuperPointConfig(),
            descriptor_dim=16,
            num_attention_heads=2,
            attn_implementation="eager",
        )
        self.cross_attention = modeling.LightGlueAttention(config, layer_idx=0)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        def other(side: Tensor) -> Tensor:
            return side.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)

        out, _ = self.cross_attention(
            x,
            encoder_hidden_states=other(x),
            encoder_attention_mask=other(real)[:, None, None],
        )
        return out


def grounding_dino_fusion() -> nn.Module:
    dino = pytest.importorskip("transformers.models.grounding_dino.modeling_grounding_dino")
    config = dino.GroundingDinoConfig(
        d_model=16, encoder_ffn_dim=32, encoder_attention_heads=4, fusion_dropout=0.0
    )
    return replaced(dino.GroundingDinoBiMultiHeadAttention(config))


def lucidrains_bidirectional() -> nn.Module:
    library = pytest.importorskip("bidirectional_cross_attention")
    return replaced(library.BidirectionalCrossAttention(dim=16, heads=2, dim_head=8))


def lucidrains_local() -> nn.Module:
    library = pytest.importorskip("local_attention.transformer")
    return replaced(library.LocalMHA(dim=16, heads=2, dim_head=8, window_size=4, causal=True))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "bidirectional": lambda: BidirectionalCrossAttention(16, 2),
    "shared": lambda: SharedCrossAttention(16, 2),
    "chunked": lambda: ChunkedTemporalAttention(16, 2, chunk_size=4),
    "kornia": kornia_block,
    "transformers LightGlue": lambda: replaced(ImagePairs()),
    "GroundingDINO": grounding_dino_fusion,
    "lucidrains bidirectional": lucidrains_bidirectional,
    "lucidrains local": lucidrains_local,
}
OURS = ("bidirectional", "shared", "chunked")
NAMES = tuple(MAKERS)


def make(name: str) -> nn.Module:
    """One of the modules, always with the same weights."""
    torch.manual_seed(0)
    return MAKERS[name]()


def inputs(name: str, batch: int = 4) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments and keywords; there is padding, except for kornia's block."""
    torch.manual_seed(1)
    x, y = torch.randn(batch, 9, 16), torch.randn(batch, 11, 16)
    mask = torch.arange(11) < torch.tensor([11, 5, 8, 11] * batch)[:batch, None]
    if name in ("chunked", "lucidrains local"):
        return (y,), {"mask": mask}
    if name == "transformers LightGlue":
        return (y,), {"real": mask}
    masks = {
        "kornia": {},
        "GroundingDINO": {"text_attention_mask": ~mask},
        "lucidrains bidirectional": {"context_mask": mask},
    }
    return (x, y), masks.get(name, {"mask_b": mask})


def set_dropout(module: nn.Module, probability: float) -> None:
    """Give every attention a dropout, however its class keeps it."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        for name in ("dropout", "attention_dropout"):
            if isinstance(vars(part).get(name), float):
                setattr(part, name, probability)


def tensors(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors that a module returned, alone, in a tuple, or in pairs with None."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(x for out in outputs if out is not None for x in tensors(out))


def total(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    """A loss that every output matters to, summed over the batch."""
    return sum(out.square().sum() for out in tensors(module(*arguments, **options)))


def loss_of(module: nn.Module, name: str, batch: slice = slice(None)) -> Tensor:
    """The loss of some of the batch."""
    arguments, options = inputs(name)
    return total(
        module, tuple(x[batch] for x in arguments), {k: v[batch] for k, v in options.items()}
    )
