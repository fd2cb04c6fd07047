"""The launches of each operator at a given shape, without a GPU: what tests and tools look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bidirectional import operator as bidirectional
from ..bidirectional import triton as bidirectional_triton
from ..chunked import operator as chunked
from ..chunked import triton as chunked_triton
from ..shared import operator as shared
from ..shared import triton as shared_triton
from .launch import Plan
from .target import Target


class Shape(NamedTuple):
    """Sizes of a call; chunked attention takes ``time_a`` as its time."""

    batch: int
    heads: int
    time_a: int
    time_b: int
    head_dim: int


OPERATORS = ("shared", "bidirectional", "chunked")


def plans(
    operator: str,
    shape: Shape,
    dtype: torch.dtype,
    target: Target,
    *,
    device: str = "meta",
    chunk_size: int = 64,
) -> Iterator[tuple[str, Plan]]:
    """Plan the forward and the backward of an operator with its default options.

    Args:
        operator: one of :data:`OPERATORS`.
        shape: sizes.
        dtype: of the tensors.
        target: GPU to plan for.
        device: ``"meta"`` to compile only, ``"cpu"`` to execute: then the inputs are random.
        chunk_size: of chunked attention, whose lookback is 1.

    Yields:
        ``"forward"`` and ``"backward"`` with their plans. The second reads what the first writes.
    """

    def random(time: int) -> Tensor:
        size = (shape.batch, shape.heads, time, shape.head_dim)
        return torch.randn(size, dtype=torch.float32, device=device).to(dtype)

    times = (shape.time_a, shape.time_b)
    inputs, prepare, planner = _operator(operator, times)
    arguments: dict[str, Any] = {"chunk_size": chunk_size} if operator == "chunked" else {}
    tensors, options = prepare(*map(random, inputs), **arguments)
    plan: Plan = planner.plan_forward(*tensors, options, target)
    yield "forward", plan
    results = [x for x in plan.results if x is not None]
    outputs, lses = results[: len(results) // 2], results[len(results) // 2 :]
    gradients = tuple(torch.randn_like(x) for x in outputs)
    plan = planner.plan_backward(
        gradients, (None,) * len(lses), tensors, options, tuple(outputs), tuple(lses), target
    )
    yield "backward", plan


def _operator(name: str, times: tuple[int, int]) -> tuple[tuple[int, ...], Any, Any]:
    """Times of an operator's tensors, the function that validates a call, and its planner."""
    if name == "shared":
        return times * 2, shared.prepare, shared_triton
    if name == "bidirectional":
        return (times[0],) * 3 + (times[1],) * 3, bidirectional.prepare, bidirectional_triton
    if name == "chunked":
        return (times[0],) * 3, chunked.prepare, chunked_triton
    raise ValueError(f"operator must be one of {OPERATORS}, got {name!r}")
