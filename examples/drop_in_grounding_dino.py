"""The image-text fusion of GroundingDINO, without its attention maps in memory.

pip install torch && pip install '.[peers]' && python examples/drop_in_grounding_dino.py

Random weights at the real size (4 heads of 256): the numbers mean nothing, the time and the memory
are those of trained weights. An image of 1333 x 1000 pixels has about 22000 positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoFusionLayer

import mmer
from mmer.replacement import compare_attention


def train(layer: nn.Module, inputs: list[Tensor], padding: Tensor) -> list[Tensor]:
    """One forward and backward pass; the results and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    (vision, _), (text, _) = layer(*leaves, attention_mask_text=padding)
    gradients = torch.autograd.grad(vision.sum() + text[~padding].sum(), leaves)
    return [vision, text[~padding], *gradients]


def infer(layer: nn.Module, inputs: list[Tensor], padding: Tensor) -> list[Tensor]:
    """One forward pass; what it says of padded tokens has no meaning."""
    with torch.no_grad():
        (vision, _), (text, _) = layer(*inputs, attention_mask_text=padding)
    return [vision, text[~padding]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare one fusion layer before and after, in inference and in training."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--positions", type=int, default=22_000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    layer = GroundingDinoFusionLayer(GroundingDinoConfig(fusion_droppath=0.0)).eval()
    # The model starts with a fusion of 1e-4, which would hide every difference.
    nn.init.ones_(layer.vision_param)
    nn.init.ones_(layer.text_param)
    with mmer.replace_attention(layer) as replacement:
        print(replacement)
    inputs = [torch.randn(1, length, 256) for length in (options.positions, options.tokens)]
    padding = (torch.arange(options.tokens) >= 0.75 * options.tokens)[None]  # True = padding
    for name, call in (("inference", infer), ("training", train)):
        compared = compare_attention(
            layer,
            lambda model, call=call: call(model, inputs, padding),
            repeats=options.repeats,
        )
        print(f"{options.positions} positions, {options.tokens} tokens, {name}: {compared}")


if __name__ == "__main__":
    main()
