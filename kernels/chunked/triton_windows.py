"""Who sees whom in chunked attention, for Triton kernels.

What a query sees is an interval of tokens and, where summaries are given, an interval of summaries
behind it; what a key is seen by is an interval of queries. So the bodies of the cross-attention
kernels run here with a window for each resident row, and each block visits only what it may see.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Chunking(NamedTuple):
    """Which keys a query sees, see the operator; ``lookahead`` is 0 if causal."""

    chunk_size: Any
    lookback: Any
    lookahead: Any
    newest: Any


class Summaries(NamedTuple):
    """Means of chunks; ``steps`` masks those of no real token.

    ``bias`` (batch or 1, chunks) holds the base 2 logarithms of the numbers of real tokens.
    """

    key: Any
    value: Any
    grad_key: Any
    grad_value: Any
    steps: Any
    bias: Any
    bias_stride: Any
    chunks: Any


@triton.jit
def token_window(queries, chunking, time, CAUSAL: tl.constexpr):
    """First token that each query sees, and one past the last."""
    chunk = queries // chunking.chunk_size
    first = tl.maximum(chunk - chunking.lookback, 0) * chunking.chunk_size
    # A lookahead past the end must not overflow.
    chunks = tl.cdiv(time, chunking.chunk_size)
    last = tl.minimum(chunk + 1 + chunking.lookahead, chunks) * chunking.chunk_size
    if CAUSAL:
        last = tl.minimum(last, queries + 1)
    return first, tl.minimum(last, time)


@triton.jit
def summary_window(queries, chunking):
    """First summary that each query sees, and one past the last."""
    last = tl.maximum(queries // chunking.chunk_size - chunking.lookback, 0)
    return tl.maximum(last - chunking.newest, 0), last


@triton.jit
def token_audience(keys, chunking, time, CAUSAL: tl.constexpr):
    """First query that sees each token, and one past the last."""
    chunk = keys // chunking.chunk_size
    chunks = tl.cdiv(time, chunking.chunk_size)
    first = tl.maximum(chunk - chunking.lookahead, 0) * chunking.chunk_size
    if CAUSAL:
        first = keys
    last = tl.minimum(chunk + 1 + chunking.lookback, chunks) * chunking.chunk_size
    return first, tl.minimum(last, time)


@triton.jit
def summary_audience(chunks_of, chunking, time):
    """First query that sees each summary, and one past the last."""
    chunks = tl.cdiv(time, chunking.chunk_size)
    first = tl.minimum(chunks_of + 1 + chunking.lookback, chunks)
    last = tl.minimum(first + chunking.newest, chunks)
    return tl.minimum(first * chunking.chunk_size, time), tl.minimum(
        last * chunking.chunk_size, time
    )
