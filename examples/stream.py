"""Attend over a live stream in pieces, and get what the whole recording gives.

python examples/stream.py
"""

from __future__ import annotations

import torch

from mmer import ChunkedAttentionState, chunked_attention, chunked_attention_step
from mmer.kernels import chunk_summaries


def main() -> None:
    """Two streams of 25 frames a second; pieces of any length come in, one stream pauses."""
    torch.manual_seed(0)
    options = {"chunk_size": 25, "lookback": 2, "causal": True, "max_summaries": 8}
    query, key, value = (
        torch.randn(2, 4, 500, 16) for _ in range(3)
    )  # (streams, heads, time, dim)

    state = ChunkedAttentionState(**options, summaries=True)
    received, outputs = 0, []
    for length in torch.randint(1, 40, (100,)).tolist():
        piece = slice(received, min(received + length, 500))
        outputs.append(
            chunked_attention_step(query[:, :, piece], key[:, :, piece], value[:, :, piece], state)
        )
        received = piece.stop
    outputs.append(state.flush())
    streamed = torch.cat(outputs, dim=2)

    summaries = chunk_summaries(key, value, options["chunk_size"])
    whole = chunked_attention(query, key, value, **options, summaries=summaries)
    memory = sum(x.numel() * x.element_size() for x in state.state_dict()["tensors"].values())
    print(
        f"{streamed.shape[2]} steps in pieces, largest difference from the whole recording: ",
        end="",
    )
    print(f"{(streamed - whole).abs().max():.1e}")
    print(f"memory of the two streams: {memory / 1024:.0f} KiB, whatever their length")

    lengths = torch.tensor([10, 0])  # the second stream pauses
    piece = [x[:, :, :10] for x in (query, key, value)]
    chunked_attention_step(*piece, state, lengths=lengths)
    print(f"outputs ready after a piece that only the first stream brought: {state.ready.tolist()}")


if __name__ == "__main__":
    main()
