"""Chunked temporal attention beside dense attention with the same mask, in one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmer import chunked_attention
from mmer.kernels import available_backends

from .shapes import CHUNK_SHAPES, ChunkShape

# A dense mask of 30,000 x 30,000 steps and its scores do not fit in the memory of small machines.
LONGEST_DENSE = 4_000


def dense_sdpa(q: Tensor, k: Tensor, v: Tensor, chunk_size: int, lookback: int) -> Tensor:
    """PyTorch's own fused attention with the chunks as a mask."""
    chunk = torch.arange(q.shape[2]) // chunk_size
    age = chunk[:, None] - chunk[None, :]
    return scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age <= lookback))


IMPLEMENTATIONS: dict[str, Any] = {
    "dense sdpa": dense_sdpa,
    **{f"mmer {name}": partial(chunked_attention, backend=name) for name in available_backends()},
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", CHUNK_SHAPES, ids=str)
def test_chunked_attention(benchmark: Any, shape: ChunkShape, name: str) -> None:
    if name == "dense sdpa" and shape.time > LONGEST_DENSE:
        pytest.skip(f"a dense mask of {shape.time} x {shape.time} steps is not tried")
    implementation = IMPLEMENTATIONS[name]
    check = [torch.randn(1, 1, 200, shape.head_dim) for _ in range(3)]
    truth = dense_sdpa(*(x.double() for x in check), shape.chunk_size, shape.lookback)
    ours = implementation(*check, shape.chunk_size, shape.lookback)
    assert (ours - truth).abs().max() <= 64 * torch.finfo(torch.float32).eps * truth.abs().max()

    inputs = [torch.randn(shape.batch, shape.heads, shape.time, shape.head_dim) for _ in range(3)]
    benchmark.group = f"{shape} forward"
    benchmark.extra_info.update(shape._asdict(), threads=torch.get_num_threads())
    with torch.no_grad():
        benchmark.pedantic(
            implementation, (*inputs, shape.chunk_size, shape.lookback), rounds=5, warmup_rounds=1
        )
