"""Replace the attention of a module of your own: MMMU-BA's, from the equations of its paper.

python examples/drop_in_own_module.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mmer
from mmer.replacement import FusedModule, register_replacement


class BiModalAttention(nn.Module):
    """MMMU-BA (Ghosal et al., EMNLP 2018, section 3.1), as one would write it down.

    ``M1 = X Y^T``, ``M2 = Y X^T``; ``O1 = softmax(M1) Y``, ``O2 = softmax(M2) X``; the result is
    ``[O1 * X, O2 * Y]``. One head, not scaled; X and Y are (utterances, features) of a video.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch, utterances, features) of both modalities -> (batch, utterances, 2 features)."""
        scores = x @ y.transpose(-1, -2)
        from_y = scores.softmax(dim=-1) @ y
        from_x = scores.transpose(-1, -2).softmax(dim=-1) @ x
        return torch.cat((from_y * x, from_x * y), dim=-1)


class FusedBiModalAttention(FusedModule, BiModalAttention):
    """The same, with one operator for both directions."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch, utterances, features) of both modalities -> (batch, utterances, 2 features)."""
        one_head = (x[:, None], y[:, None])
        from_y, from_x = mmer.shared_cross_attention(
            *one_head, *one_head, scale=1.0, backend=self.attention_backend
        )
        return torch.cat((from_y[:, 0] * x, from_x[:, 0] * y), dim=-1)


class Model(nn.Module):
    """Text with audio, and text with video."""

    def __init__(self) -> None:
        super().__init__()
        self.text_audio = BiModalAttention()
        self.text_video = BiModalAttention()

    def forward(self, text: Tensor, audio: Tensor, video: Tensor) -> Tensor:
        """(batch, utterances, 100) each -> (batch, utterances, 400)."""
        return torch.cat((self.text_audio(text, audio), self.text_video(text, video)), dim=-1)


def main() -> None:
    """Replace it, compare, and put it back."""
    torch.manual_seed(0)
    model, inputs = Model(), [0.3 * torch.randn(2, 98, 100) for _ in range(3)]
    before = model(*inputs)
    register_replacement(FusedBiModalAttention)
    with mmer.replace_attention(model) as replacement:
        print(replacement)
        after = model(*inputs)
    print(f"largest difference {(after - before).abs().max():.1e}")
    assert torch.equal(model(*inputs), before)


if __name__ == "__main__":
    main()
