"""lucidrains' bidirectional-cross-attention and local-attention, without their maps and copies.

pip install torch && pip install '.[peers]' && python examples/drop_in_lucidrains.py

The sizes are those of their own README files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from bidirectional_cross_attention import BidirectionalCrossAttention
from local_attention import LocalAttention
from torch import Tensor, nn

import mmer
from mmer.replacement import compare_attention


def train(module: nn.Module, inputs: list[Tensor], masks: dict[str, Tensor]) -> list[Tensor]:
    """One forward and backward pass; the results at real steps and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = module(*leaves, **masks)
    results = results if isinstance(results, tuple) else (results,)
    return [*results, *torch.autograd.grad(sum(x.sum() for x in results), leaves)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare both modules before and after, in training."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shorter", type=int, default=1, help="divide all lengths by this")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    video, audio, local = (length // options.shorter for length in (4096, 8192, 8192))

    torch.manual_seed(0)
    joint = BidirectionalCrossAttention(dim=512, heads=8, dim_head=64, context_dim=386)
    with mmer.replace_attention(joint) as replacement:
        print(replacement)
    inputs = [torch.randn(1, video, 512), torch.randn(1, audio, 386)]
    masks = {
        "mask": torch.ones(1, video, dtype=torch.bool),
        "context_mask": torch.ones(1, audio, dtype=torch.bool),
    }
    compared = compare_attention(
        joint, lambda model: train(model, inputs, masks), repeats=options.repeats
    )
    print(f"bidirectional, {video} x {audio}, training: {compared}")

    windows = LocalAttention(dim=64, window_size=512, causal=True, autopad=True)
    tensors = [torch.randn(2, 8, local, 64) for _ in range(3)]
    compared = compare_attention(
        windows, lambda model: train(model, tensors, {}), repeats=options.repeats
    )
    print(f"local, {local}, window 512, training: {compared}")


if __name__ == "__main__":
    main()
