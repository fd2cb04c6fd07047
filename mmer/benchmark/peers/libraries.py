"""Published libraries of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmer.benchmark.cases import ChunkShape
from mmer.benchmark.problem import Call, Problem, Unavailable, directed, torch_call


class _Given(nn.Module):
    """Stands in for a projection, and returns what is already projected."""

    projected: Tensor

    def forward(self, _: Tensor) -> Tensor:
        return self.projected


def bidirectional_cross_attention(problem: Problem) -> Call:
    """Lucidrains' layer with what it projects given: all that lies between its projections."""
    from bidirectional_cross_attention import BidirectionalCrossAttention

    case, shape = problem.case, problem.case.shape
    if case.operator != "shared_cross_attention":
        raise Unavailable("it has one similarity for both directions")
    layer = BidirectionalCrossAttention(
        dim=shape.heads * shape.head_dim, heads=shape.heads, dim_head=shape.head_dim
    )
    given = [_Given() for _ in range(4)]
    layer.to_qk, layer.context_to_qk, layer.to_v, layer.context_to_v = given
    layer.to_out = layer.context_to_out = nn.Identity()

    def attend(*tensors: Tensor) -> tuple[Tensor, ...]:
        for module, x in zip(given, tensors, strict=True):
            module.projected = x.transpose(1, 2).flatten(2)
        outputs = layer(given[0].projected, given[1].projected)
        return tuple(x.unflatten(2, (shape.heads, -1)).transpose(1, 2) for x in outputs)

    return torch_call(attend, problem)


def local_attention(problem: Problem) -> Call:
    """Lucidrains' local attention, without its positions."""
    from local_attention import LocalAttention

    shape = problem.case.shape
    if not isinstance(shape, ChunkShape):
        raise Unavailable("it is for chunks")
    layer = LocalAttention(
        shape.chunk_size,
        look_backward=shape.lookback,
        look_forward=shape.lookahead,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    # Without a mask it takes the padding of the last chunk for keys.
    real = None
    if shape.time % shape.chunk_size:
        real = problem.inputs[0].new_ones(shape.batch, shape.time, dtype=torch.bool)
    return torch_call(lambda *tensors: (layer(*tensors, mask=real),), problem)


def flash_attention(problem: Problem) -> Call:
    """FlashAttention, once for each direction."""
    if problem.inputs[0].device.type != "cuda":
        raise Unavailable("it is for GPUs")
    from flash_attn import flash_attn_func

    if problem.case.dtype == "float32":
        raise Unavailable("it takes float16 and bfloat16")
    if isinstance(problem.case.shape, ChunkShape):
        raise Unavailable("it has no attention over chunks")

    def attend(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            flash_attn_func(*(x.transpose(1, 2) for x in direction)).transpose(1, 2)
            for direction in directed(problem.case, tensors)
        )

    return torch_call(attend, problem)
