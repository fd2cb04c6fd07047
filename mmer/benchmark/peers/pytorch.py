"""What PyTorch itself offers for our operators."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from mmer.benchmark.cases import BACKWARD, DTYPES, ChunkShape, PairShape
from mmer.benchmark.gate import softmax_attention
from mmer.benchmark.problem import Call, Problem, Unavailable, directed, torch_call


def sdpa(problem: Problem) -> Call:
    """One ``scaled_dot_product_attention`` for each direction; over chunks, with a dense mask."""
    shape = problem.case.shape
    mask = None
    if isinstance(shape, ChunkShape):
        _refuse_large(problem, "its mask and scores", shape.time**2)
        chunk = torch.arange(shape.time, device=problem.inputs[0].device) // shape.chunk_size
        age = chunk[:, None] - chunk[None, :]
        mask = (age >= -shape.lookahead) & (age <= shape.lookback)
    return torch_call(
        lambda *tensors: tuple(
            scaled_dot_product_attention(q, k, v, attn_mask=mask)
            for q, k, v in directed(problem.case, tensors)
        ),
        problem,
    )


def sdpa_flipped(problem: Problem) -> Call:
    """Both directions stacked into the batch of one ``scaled_dot_product_attention``."""
    shape = problem.case.shape
    if not isinstance(shape, PairShape):
        raise Unavailable("it has one direction only")
    if shape.time_a != shape.time_b:
        raise Unavailable("both directions fit into one call only if the lengths are equal")

    def attend(*tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (torch.cat(pair) for pair in zip(*directed(problem.case, tensors), strict=True))
        return scaled_dot_product_attention(q, k, v).chunk(2)

    return torch_call(attend, problem)


def sdpa_windows(problem: Problem) -> Call:
    """Every chunk as an element of the batch, its keys copied together, one call for all."""
    shape = problem.case.shape
    if not isinstance(shape, ChunkShape):
        raise Unavailable("it is for chunks")
    size, chunks = shape.chunk_size, -(-shape.time // shape.chunk_size)
    width = 1 + shape.lookback + shape.lookahead
    behind = chunks * size - shape.time
    place = torch.arange((chunks + shape.lookback + shape.lookahead) * size)
    real = (place >= shape.lookback * size) & (place < shape.lookback * size + shape.time)
    visible = real.unfold(0, width * size, size)[:, None, :].to(problem.inputs[0].device)

    def windows(x: Tensor) -> Tensor:
        padded = pad(x, (0, 0, shape.lookback * size, behind + shape.lookahead * size))
        return padded.unfold(2, width * size, size).transpose(-1, -2).flatten(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        queries = pad(q, (0, 0, 0, behind)).unflatten(2, (chunks, size)).flatten(1, 2)
        mask = visible.repeat(shape.heads, 1, 1)
        out = scaled_dot_product_attention(queries, windows(k), windows(v), attn_mask=mask)
        return (out.unflatten(1, (shape.heads, chunks)).flatten(2, 3)[:, :, : shape.time],)

    return torch_call(attend, problem)


def eager(problem: Problem) -> Call:
    """Einsum and softmax; the shared similarity once, as LightGlue computes it."""
    return torch_call(_eager_function(problem), problem)


def compiled_eager(problem: Problem) -> Call:
    """The same through ``torch.compile``."""
    torch.compiler.reset()
    return torch_call(torch.compile(_eager_function(problem), dynamic=False), problem)


def flex(problem: Problem) -> Call:
    """Compiled FlexAttention, once for each direction."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    shape = problem.case.shape
    if problem.case.direction == BACKWARD and problem.inputs[0].device.type == "cpu":
        raise Unavailable("its backward does not exist on the CPU")
    torch.compiler.reset()
    options: dict[str, Any] = {}
    if isinstance(shape, ChunkShape):
        options["block_mask"] = BlockMask.from_kv_blocks(
            *_visible_chunks(shape),
            BLOCK_SIZE=shape.chunk_size,
            seq_lengths=(shape.time, shape.time),
        )
    attend = torch.compile(flex_attention, dynamic=False)
    return torch_call(
        lambda *tensors: tuple(
            attend(q, k, v, **options) for q, k, v in directed(problem.case, tensors)
        ),
        problem,
    )


def _eager_function(problem: Problem) -> Any:
    case, shape = problem.case, problem.case.shape
    if isinstance(shape, ChunkShape):
        raise Unavailable("a dense time x time matrix; sdpa has it")
    matrices = (3 if case.direction != BACKWARD else 6) * (
        1 if case.operator == "shared_cross_attention" else 2
    )
    _refuse_large(problem, "its scores", matrices * shape.pairs)

    def shared(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
        scores = torch.einsum("bhid,bhjd->bhij", qk_a, qk_b) * qk_a.shape[3] ** -0.5
        out_a = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=3), v_b)
        return out_a, torch.einsum("bhij,bhid->bhjd", scores.softmax(dim=2), v_a)

    def separate(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(softmax_attention(q, k, v) for q, k, v in directed(case, tensors))

    return shared if case.operator == "shared_cross_attention" else separate


def _visible_chunks(shape: ChunkShape) -> tuple[Tensor, Tensor]:
    chunks = -(-shape.time // shape.chunk_size)
    number = torch.arange(chunks)
    first = (number - shape.lookback).clamp(min=0)
    last = (number + shape.lookahead).clamp(max=chunks - 1)
    count = (last - first + 1).int()
    # Entries behind the count are not looked at, and must be valid all the same.
    index = (first[:, None] + number[None, :]).clamp(max=chunks - 1).int()
    return count[None, None], index[None, None]


def _refuse_large(problem: Problem, what: str, elements: int) -> None:
    size = elements * DTYPES[problem.case.dtype].itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if problem.inputs[0].device.type == "cpu" and size > memory // 3:
        raise Unavailable(f"{what} would take {size / 2**30:.0f} GiB")
