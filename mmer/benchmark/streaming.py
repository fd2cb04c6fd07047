"""How long a live stream waits for each piece: latency of ``chunked_attention_step``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmer import ChunkedAttentionState, chunked_attention_step
from mmer.benchmark.cases import DTYPES
from mmer.benchmark.problem import Unavailable

RATE = 50.0
PIECES = (1, 2, 5, 10, 25, 50)
_HEADS, _HEAD_DIM, _CHUNK_SIZE, _LOOKBACK = 8, 64, 64, 1
_WARM_UP = 20


@dataclass(frozen=True)
class Latency:
    """Latency of pieces of one length.

    Attributes:
        dtype: name of the dtype.
        steps: steps in a piece, at 50 a second.
        pieces: how many pieces were timed.
        p50: seconds, median.
        p99: seconds, 99th percentile.
    """

    dtype: str
    steps: int
    pieces: int
    p50: float
    p99: float

    @property
    def seconds(self) -> float:
        """How much of the stream a piece holds."""
        return self.steps / RATE


def measure_latency(
    dtype: str, pieces: Sequence[int] = PIECES, count: int = 300, device: str = "cpu"
) -> list[Latency]:
    """Measure one causal stream of 8 heads of dimension 64, chunks of 64 steps, lookback 1.

    Args:
        dtype: Name of the dtype.
        pieces: Lengths of pieces, in steps.
        count: How many pieces of each length to time.
        device: Where.

    Returns:
        A latency for each length.

    Raises:
        Unavailable: The stream's outputs are wrong: no time is given.
    """
    check_stream(dtype, device)
    latencies = []
    for steps in pieces:
        stream = draw_stream(steps * (count + _WARM_UP), dtype, device)
        step = make_step()
        seconds = []
        for number in range(count + _WARM_UP):
            piece = [x[:, :, number * steps : (number + 1) * steps] for x in stream]
            start = time.perf_counter()
            out = step(piece)
            if device != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
            del out
        timed = torch.tensor(seconds[_WARM_UP:], dtype=torch.float64)
        p50, p99 = timed.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
        latencies.append(Latency(dtype, steps, count, p50, p99))
    return latencies


def check_stream(dtype: str, device: str = "cpu") -> None:
    """The gate: compare a stream in uneven pieces with float64 over the whole.

    Raises:
        Unavailable: They differ by more than the error rule allows.
    """
    total = 5 * _CHUNK_SIZE + 7
    q, k, v = draw_stream(total, dtype, device)
    step = make_step()
    outputs, start = [], 0
    while start < total:
        stop = min(total, start + 1 + start % 50)
        outputs.append(step([x[:, :, start:stop] for x in (q, k, v)]))
        start = stop
    ours = torch.cat(outputs, dim=2).double()
    place = torch.arange(total, device=device)
    age = place[:, None] // _CHUNK_SIZE - place[None, :] // _CHUNK_SIZE
    hidden = (age > _LOOKBACK) | (place[None, :] > place[:, None])

    def dense(kind: torch.dtype) -> Tensor:
        scores = (q.to(kind) @ k.to(kind).transpose(-1, -2)) * _HEAD_DIM**-0.5
        return (scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ v.to(kind)).double()

    truth, plain = dense(torch.float64), dense(DTYPES[dtype])
    allowed = (plain - truth).abs().max() + torch.finfo(DTYPES[dtype]).eps * truth.abs().max()
    if ours.shape != truth.shape or not (ours - truth).abs().max() <= 2 * allowed:
        raise Unavailable(f"chunked_attention_step is wrong in {dtype}: it is not timed")


def draw_stream(steps: int, dtype: str, device: str = "cpu") -> list[Tensor]:
    """Draw q, k and v of so many steps, each (1, heads, steps, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(1, _HEADS, steps, _HEAD_DIM, generator=generator) + 0.5).to(
            device, DTYPES[dtype]
        )
        for _ in range(3)
    ]


def make_step() -> Callable[[Sequence[Tensor]], Tensor]:
    """Begin a stream, and return what takes its next piece."""
    state = ChunkedAttentionState(_CHUNK_SIZE, lookback=_LOOKBACK, causal=True)

    def step(piece: Sequence[Tensor]) -> Tensor:
        q, k, v = piece
        with torch.no_grad():
            return chunked_attention_step(q, k, v, state)

    return step
