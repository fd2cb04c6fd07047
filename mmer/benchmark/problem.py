"""A case with its tensors, and what every implementation of it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmer.benchmark.cases import BACKWARD, DTYPES, Case

T = TypeVar("T")

# Computes a prepared problem anew, and returns its outputs, with gradients behind them if wanted.
Call = Callable[[], tuple[Tensor, ...]]


class Unavailable(Exception):
    """An implementation cannot run a problem; the message is the reason."""


@dataclass(frozen=True)
class Problem:
    """What is to be computed.

    Attributes:
        case: Which operator, and how.
        inputs: Its tensors, as the operator takes them.
        output_gradients: A gradient of each output.
    """

    case: Case
    inputs: tuple[Tensor, ...]
    output_gradients: tuple[Tensor, ...]


def make_problem(case: Case, device: str = "cpu") -> Problem:
    """Draw the tensors of a case; the same numbers each time."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        # A mean that is not 0 shows errors that cancel otherwise.
        return (torch.randn(shape, generator=generator) + 0.5).to(device, DTYPES[case.dtype])

    return Problem(
        case,
        tuple(draw(shape) for shape in case.input_shapes),
        tuple(draw(shape) for shape in case.output_shapes),
    )


def directed(case: Case, tensors: Sequence[T]) -> list[tuple[T, T, T]]:
    """Return (query, key, value) of each direction, from the operator's tensors or their names."""
    if case.operator == "shared_cross_attention":
        qk_a, qk_b, v_a, v_b = tensors
        return [(qk_a, qk_b, v_b), (qk_b, qk_a, v_a)]
    if case.operator == "bidirectional_cross_attention":
        q_a, k_a, v_a, q_b, k_b, v_b = tensors
        return [(q_a, k_b, v_b), (q_b, k_a, v_a)]
    q, k, v = tensors
    return [(q, k, v)]


def torch_call(function: Callable[..., tuple[Tensor, ...]], problem: Problem) -> Call:
    """Make a call of a differentiable function of the operator's tensors.

    Args:
        function: Takes the problem's inputs, returns the outputs.
        problem: The inputs, and whether their gradients are wanted.
    """
    if problem.case.direction != BACKWARD:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return tuple(function(*problem.inputs))

        return forward
    leaves = tuple(x.detach().requires_grad_() for x in problem.inputs)

    def forward_and_backward() -> tuple[Tensor, ...]:
        outputs = tuple(function(*leaves))
        gradients = torch.autograd.grad(outputs, leaves, problem.output_gradients)
        return (*(x.detach() for x in outputs), *gradients)

    return forward_and_backward
