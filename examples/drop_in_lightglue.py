"""LightGlue of kornia, with one operator for both directions of its cross-attention.

pip install torch && pip install '.[peers]' && python examples/drop_in_lightglue.py

Random weights at the real size (9 layers, 4 heads of 64): the numbers mean nothing, the time and
the memory are those of trained weights. Early stopping and pruning are off, so that all layers see
all points.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from kornia.feature import LightGlue
from torch import Tensor

import mmer
from mmer.replacement import compare_attention


def images(points: int) -> dict[str, dict[str, Tensor]]:
    """Two images with as many points each."""
    return {
        f"image{number}": {
            "keypoints": 1024 * torch.rand(1, points, 2),
            "descriptors": torch.randn(1, points, 256),
            "image_size": torch.tensor([[1024, 1024]]),
        }
        for number in range(2)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the matcher and one of its cross-attention blocks before and after."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    matcher = LightGlue(None, flash=False, depth_confidence=-1, width_confidence=-1).eval()
    with mmer.replace_attention(matcher) as replacement:
        print(replacement)
    block = matcher.transformers[0].cross_attn
    for points in options.points:
        pair = images(points)
        descriptors = [torch.randn(1, points, 256) for _ in range(2)]
        with torch.no_grad():
            whole = compare_attention(
                matcher,
                lambda model, pair=pair: [model(pair)["log_assignment"]],
                repeats=options.repeats,
            )
            alone = compare_attention(
                block, lambda model, pair=descriptors: model(*pair), repeats=options.repeats
            )
        print(f"{points} x {points} points, the matcher: {whole}")
        print(f"{points} x {points} points, one block:   {alone}")


if __name__ == "__main__":
    main()
