"""The correctness gate: no time is shown of what does not compute the right thing in the same run.

The oracle is plain PyTorch in float64 on the very inputs that are timed, over blocks of queries so
that it fits into memory at any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmer.benchmark.cases import BACKWARD, ChunkShape, PairShape
from mmer.benchmark.problem import Problem, directed

# The error rule (CONTRIBUTING.md): what we allow ourselves, for outputs and for gradients.
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
# Peers round in their own ways. They are in the table as long as they compute the same thing.
PEER_LENIENCE = 8.0
_LARGEST_BLOCK = 2**25


class Truth:
    """The right results of a problem, and how far from them plain PyTorch in the same dtype is.

    Args:
        problem: What is computed.

    Attributes:
        results: outputs and, if its direction asks for them, gradients of the inputs, float64.
        allowances: for each result, ``max|plain - results| + eps * max|results|``.
    """

    def __init__(self, problem: Problem) -> None:
        self.outputs = len(problem.output_gradients)
        self.results = results_in_blocks(problem, torch.float64)
        plain = results_in_blocks(problem, problem.inputs[0].dtype)
        epsilon = torch.finfo(problem.inputs[0].dtype).eps
        self.allowances = [
            (x.double() - truth).abs().max().item() + epsilon * truth.abs().max().item()
            for x, truth in zip(plain, self.results, strict=True)
        ]

    def error(self, results: Sequence[Tensor]) -> float:
        """Return the largest error as a share of what the error rule allows.

        Args:
            results: outputs, or outputs and gradients.

        Returns:
            At most 1 where the error rule holds; inf for what is not finite.

        Raises:
            ValueError: The number or the shapes of the results are wrong.
        """
        worst = 0.0
        expected = self.results[: self.outputs] if len(results) == self.outputs else self.results
        if [tuple(x.shape) for x in results] != [tuple(x.shape) for x in expected]:
            raise ValueError(f"results must have shapes {[tuple(x.shape) for x in expected]}")
        for index, (x, truth) in enumerate(zip(results, expected, strict=True)):
            if not x.isfinite().all():
                return float("inf")
            factor = OUTPUT_FACTOR if index < self.outputs else GRADIENT_FACTOR
            allowed = factor * self.allowances[index]
            worst = max(worst, (x.double() - truth).abs().max().item() / max(allowed, 1e-300))
        return worst


def results_in_blocks(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Compute a problem in plain PyTorch, a block of queries after the other.

    Args:
        problem: What is computed.
        dtype: What to compute in; sums over several blocks are float32 at least.

    Returns:
        Outputs and, if the direction asks for them, gradients of the inputs, in ``dtype``.
    """
    with_gradients = problem.case.direction == BACKWARD
    wide = torch.promote_types(dtype, torch.float32)
    inputs = [x.to(dtype) for x in problem.inputs]
    gradients = [torch.zeros_like(x, dtype=wide) for x in inputs]
    outputs = []
    blocks = list(_blocks(problem))
    for (q, k, v), (dq, dk, dv), dout, of_direction in zip(
        directed(problem.case, inputs),
        directed(problem.case, gradients),
        problem.output_gradients,
        blocks,
        strict=True,
    ):
        out = torch.empty_like(dout, dtype=dtype)
        for queries, keys in of_direction:
            leaves = [
                x[:, :, place].detach().requires_grad_(with_gradients)
                for x, place in ((q, queries), (k, keys), (v, keys))
            ]
            block = softmax_attention(*leaves)
            out[:, :, queries] = block.detach()
            if not with_gradients:
                continue
            parts = torch.autograd.grad(block, leaves, dout[:, :, queries].to(dtype))
            for total, place, part in zip((dq, dk, dv), (queries, keys, keys), parts, strict=True):
                total[:, :, place] += part
        outputs.append(out)
    return (*outputs, *(x.to(dtype) for x in gradients)) if with_gradients else tuple(outputs)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention: (batch, heads, queries, head_dim) to (batch, heads, queries, value_dim)."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ v


def refusal(problem: Problem, truth: Truth, results: Sequence[Tensor], ours: bool) -> str | None:
    """Return why a result may not be timed, or None.

    Args:
        problem: What was to be computed.
        truth: What is right.
        results: What was computed.
        ours: Whether the error rule holds in full; peers are allowed more.
    """
    if problem.case.direction == BACKWARD and len(results) == truth.outputs:
        return "gave no gradients"
    try:
        error = truth.error(results)
    except ValueError as problem_with_shapes:
        return str(problem_with_shapes)
    limit = 1.0 if ours else PEER_LENIENCE
    if error <= limit:
        return None
    return f"wrong: error {error:.2g} x what the error rule allows, limit {limit:g}"


def _blocks(problem: Problem) -> Iterable[list[tuple[slice, slice]]]:
    shape = problem.case.shape
    if isinstance(shape, ChunkShape):
        yield list(shape.windows())
        return
    assert isinstance(shape, PairShape)
    for queries, keys in ((shape.time_a, shape.time_b), (shape.time_b, shape.time_a)):
        step = max(1, _LARGEST_BLOCK // (shape.batch * shape.heads * keys))
        yield [
            (slice(start, min(queries, start + step)), slice(0, keys))
            for start in range(0, queries, step)
        ]
