"""Chunked temporal attention: every chunk of time attends to itself and to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..arguments import (
    autocast,
    check_attention_tensors,
    check_count,
    check_dropout,
    check_flag,
    check_mask,
    check_same_size,
    check_scale,
)
from ..attend import compute_dtype, zero_padding
from ..backends import plain_head_dim, run, run_plain
from ..registration import OperatorDefinition
from . import reference
from .reference import ChunkOptions

ALL_SUMMARIES = 2**31 - 1


def _output_shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    q, _, v = tensors
    return [(q.shape[0], q.shape[1], q.shape[2], v.shape[3])]


DEFINITION = OperatorDefinition(
    name="chunked_attention",
    tensors=("q", "k", "v"),
    options_type=ChunkOptions,
    differentiable_options=2,
    outputs=1,
    output_shapes=_output_shapes,
    forward=reference.forward,
    backward=reference.backward,
)


def check_chunking(
    chunk_size: int, lookback: int, lookahead: int, causal: bool, max_summaries: int | None
) -> int:
    """Validate what a query sees and return the number of summaries, a huge one for all.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: chunk_size < 1, or another count < 0.
    """
    check_count("chunk_size", chunk_size, low=1)
    check_count("lookback", lookback, low=0)
    check_count("lookahead", lookahead, low=0)
    check_flag("causal", causal)
    return (
        ALL_SUMMARIES
        if max_summaries is None
        else check_count("max_summaries", max_summaries, low=0)
    )


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    lookback: int = 1,
    lookahead: int = 0,
    causal: bool = False,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    summaries: tuple[Tensor, Tensor] | None = None,
    max_summaries: int | None = None,
    deterministic: bool = True,
) -> tuple[tuple[Tensor, ...], ChunkOptions]:
    """Validate a call and return the tensors and the options that every backend takes."""
    q, k, v = autocast(q, k, v)
    check_attention_tensors({"q": q, "k": k, "v": v})
    batch = check_same_size(0, "batch size", {"q": q, "k": k, "v": v})
    time = check_same_size(2, "time", {"q": q, "k": k, "v": v})
    check_same_size(3, "head_dim", {"q": q, "k": k})
    newest = check_chunking(chunk_size, lookback, lookahead, causal, max_summaries)
    summary_k: Tensor | None = None
    summary_v: Tensor | None = None
    if summaries is not None:
        if not isinstance(summaries, (tuple, list)) or len(summaries) != 2:
            raise TypeError(f"summaries must be a pair (k_s, v_s), got {type(summaries).__name__}")
        summary_k, summary_v = autocast(*summaries)
        chunks = -(-time // chunk_size)
        for name, summary, token in (
            ("summaries[0]", summary_k, k),
            ("summaries[1]", summary_v, v),
        ):
            check_attention_tensors({"q": q, name: summary})
            wanted = (batch, q.shape[1], chunks, token.shape[3])
            if tuple(summary.shape) != wanted:
                raise ValueError(
                    f"{name} must have shape (batch, heads, chunks, dim) = {wanted}, "
                    f"got {tuple(summary.shape)}"
                )
    probability, seed = check_dropout(dropout_p, dropout_seed, q.device)
    return (q, k, v), ChunkOptions(
        summary_k=summary_k,
        summary_v=summary_v,
        mask=check_mask("mask", mask, (batch,), time, q.device),
        dropout_seed=seed,
        chunk_size=chunk_size,
        lookback=lookback,
        lookahead=lookahead,
        causal=causal,
        max_summaries=newest,
        scale=check_scale(scale, q.shape[3]),
        dropout_p=probability,
        deterministic=check_flag("deterministic", deterministic),
    )


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    lookback: int = 1,
    lookahead: int = 0,
    causal: bool = False,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    summaries: tuple[Tensor, Tensor] | None = None,
    max_summaries: int | None = None,
    return_lse: bool = False,
    deterministic: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every chunk of time to itself and to its neighbours, at a cost linear in time.

    A query at time i, in chunk ``c = i // chunk_size``, sees the real keys of chunks ``c -
    lookback`` to ``c + lookahead``, and only those with ``j <= i`` if ``causal``.

    Args:
        q: queries, (batch, heads, time, head_dim); any strides with a contiguous last dimension.
        k: keys, (batch, heads, time, head_dim).
        v: values, (batch, heads, time, value_dim).
        chunk_size: steps in a chunk.
        lookback: number of chunks before its own that a query sees.
        lookahead: number of chunks behind its own that a query sees; of no effect if ``causal``.
        causal: no query sees a key later than itself.
        mask: (batch, time) bool, True = real. Padded steps are neither queries nor keys: whatever
            they hold, their output and their gradient are 0.
        scale: factor on the similarity, ``head_dim ** -0.5`` by default.
        dropout_p: probability that an attention weight is dropped.
        dropout_seed: int or 0-dim int64 tensor; the same seed gives the same mask on every backend.
            Drawn from torch's generator of the device by default.
        summaries: (k_s, v_s), one mean key (batch, heads, chunks, head_dim) and value (batch,
            heads, chunks, value_dim) of each chunk, as :func:`chunk_summaries` makes them. A query
            also sees the summary of every chunk older than its lookback, with ``log(number of real
            tokens in that chunk)`` added to its logit.
        max_summaries: only the newest this many of them; all by default.
        return_lse: also return the log-sum-exp of each query's logits.
        deterministic: False allows a backend to add gradients up in an order that varies.
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Returns:
        out (batch, heads, time, value_dim) in the dtype of the inputs; with ``return_lse`` also lse
        (batch, heads, time), natural logarithm, float32 (float64 for float64 inputs),
        differentiable. A query that is padded or sees no key has output 0 and log-sum-exp ``-inf``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
        RuntimeError: the requested backend cannot run this call.
    """
    head_dim = plain_head_dim(backend, q, dropout_p, deterministic)
    if (
        head_dim
        and (scale is None and dropout_seed is None)
        and (summaries is None and max_summaries is None)
        and type(chunk_size) is type(lookback) is type(lookahead) is int
        and type(causal) is bool
    ):
        window = (chunk_size, lookback, lookahead, causal, ALL_SUMMARIES)
        plain_options = (None, None, mask, None, *window, head_dim**-0.5, 0.0, True)
        plain = run_plain(DEFINITION, (q, k, v, *plain_options), return_lse)
        if plain is not None:
            return (plain[0], plain[1]) if return_lse else plain[0]
    tensors, options = prepare(
        q,
        k,
        v,
        chunk_size,
        lookback,
        lookahead,
        causal,
        mask=mask,
        scale=scale,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        summaries=summaries,
        max_summaries=max_summaries,
        deterministic=deterministic,
    )
    results = run(backend, DEFINITION, tensors, options, return_lse)
    return (results[0], results[1]) if return_lse else results[0]


def chunk_summaries(
    k: Tensor, v: Tensor, chunk_size: int, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean key and value of each chunk over its real tokens, as ``summaries`` are wanted.

    Args:
        k: keys, (batch, heads, time, head_dim).
        v: values, (batch, heads, time, value_dim).
        chunk_size: steps in a chunk.
        mask: (batch, time) bool, True = real.

    Returns:
        k_s (batch, heads, chunks, head_dim) and v_s (batch, heads, chunks, value_dim); 0 for a
        chunk without real tokens.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
    """
    check_attention_tensors({"k": k, "v": v})
    batch = check_same_size(0, "batch size", {"k": k, "v": v})
    time = check_same_size(2, "time", {"k": k, "v": v})
    check_count("chunk_size", chunk_size, low=1)
    mask = check_mask("mask", mask, (batch,), time, k.device)
    count = reference.token_counts(mask, time, chunk_size, k.device).clamp(min=1)[:, None, :, None]

    def mean(x: Tensor) -> Tensor:
        real = zero_padding(x.to(compute_dtype(x.dtype)), mask)
        return (reference.split_chunks(real, chunk_size).sum(dim=3) / count).to(x.dtype)

    return mean(k), mean(v)
