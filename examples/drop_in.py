"""Replace a pair of ``nn.MultiheadAttention`` by one layer, and get the same numbers.

python examples/drop_in.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmer.kernels import bidirectional_cross_attention, explain
from mmer.replacement import merge_multihead_attention

EMBED_DIM, HEADS = 64, 4


def largest_difference(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """Largest difference at real steps; what attention says of padding has no meaning."""
    return float((ours - theirs)[mask].abs().max())


def main() -> None:
    """Compare outputs, with padding on both sides, and say which backend computed them."""
    torch.manual_seed(0)
    video, audio = torch.randn(2, 300, EMBED_DIM), torch.randn(2, 1500, EMBED_DIM)
    video_mask = torch.arange(300) < torch.tensor([[300], [220]])  # True = real
    audio_mask = torch.arange(1500) < torch.tensor([[1500], [900]])

    video_from_audio = nn.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
    audio_from_video = nn.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
    layer = merge_multihead_attention(video_from_audio, audio_from_video)

    with torch.no_grad():
        new_video, new_audio = layer(video, audio, mask_a=video_mask, mask_b=audio_mask)
        old_video, _ = video_from_audio(video, audio, audio, key_padding_mask=~audio_mask)
        old_audio, _ = audio_from_video(audio, video, video, key_padding_mask=~video_mask)
    print("two nn.MultiheadAttention and one BidirectionalCrossAttention, largest difference:")
    print(f"  video {largest_difference(new_video, old_video, video_mask):.1e}")
    print(f"  audio {largest_difference(new_audio, old_audio, audio_mask):.1e}")
    print()
    side_a, side_b = ([torch.randn(2, HEADS, time, 16)] * 3 for time in (300, 1500))
    print(explain(bidirectional_cross_attention, *side_a, *side_b))


if __name__ == "__main__":
    main()
