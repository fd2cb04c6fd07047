"""A launch of a Triton kernel as a value: run here, compiled for another GPU, or emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from ..philox import keep_scale, keep_threshold
from .configuration import Configuration
from .target import Target
from .tiles import Matrix, Scoring, Steps

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid and its arguments.

    Attributes:
        name: the kernel's name.
        kernel: the jitted function.
        programs: size of the one-dimensional grid.
        arguments: tensors, tuples of them and numbers by parameter name.
        constants: compile-time parameters by name.
        configuration: the row of the table it runs with.
        outputs: those of the tensors that the kernel writes, all of each.
    """

    name: str
    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    configuration: Configuration
    outputs: tuple[Tensor, ...]

    @property
    def options(self) -> dict[str, int]:
        """Options of Triton's compiler."""
        row = self.configuration
        options = {"num_warps": row.warps, "num_stages": row.stages}
        if row.registers is not None and torch.version.hip is None:
            options["maxnreg"] = row.registers
        return options

    def run(self) -> None:
        """Launch on the tensors' device, or interpret."""
        if self.programs:
            grid = (self.programs,)
            self.kernel[grid](**self.arguments, **self.constants, **self.options)

    def compile(self, target: Target) -> Compiled:
        """Compile for a GPU that need not be here, specialised as a launch there would be."""
        gpu = GPUTarget("cuda", target.capability, 32)
        backend = make_backend(gpu)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = bind(**self.arguments, **self.constants, **self.options)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, options, bound, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=gpu, options=options.__dict__)
        return Compiled(compiled, list(_leaves(tuple(bound.values()), (), constants)))


class Compiled(NamedTuple):
    """A kernel compiled for a GPU, and the values of the parameters that are no constants."""

    kernel: Any
    values: list[Any]


def _leaves(value: Any, path: tuple[int, ...], constants: Mapping[Any, Any]) -> Iterator[Any]:
    if path in constants:
        return
    if isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, (*path, number), constants)
    else:
        yield value


@dataclass
class Plan:
    """What an operator computes on a device: its results, and the launches that fill them.

    ``finish`` turns the buffers into the results when all launches have run.
    """

    results: tuple[Tensor | None, ...]
    launches: list[Launch] = field(default_factory=list)
    finish: Callable[..., tuple[Tensor | None, ...]] | None = None

    def run(self) -> tuple[Tensor | None, ...]:
        """Launch everything and return the results."""
        for launch in self.launches:
            launch.run()
        return self.outcome()

    def outcome(self) -> tuple[Tensor | None, ...]:
        """The results, once the launches have run."""
        return self.results if self.finish is None else self.finish(*self.results)


def present(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Return those that are there."""
    return tuple(x for x in tensors if x is not None)


# Offsets inside of a tile, at most 128 rows, are 32 bits wide.
_MAX_STRIDE = 2**23


def readable(x: Tensor) -> Tensor:
    """Return ``x``, copied unless its last dimension is contiguous and its steps are near."""
    is_contiguous = x.stride(3) == 1 or x.shape[3] == 1
    return x if is_contiguous and x.stride(2) <= _MAX_STRIDE else x.contiguous()


def matrix(x: Tensor) -> Matrix:
    """Describe (batch, heads, time, dim); a batch of 1 is broadcast."""
    stride_batch, stride_head = (0 if x.shape[n] == 1 else x.stride(n) for n in (0, 1))
    stride_time = x.shape[3] if x.shape[2] == 1 else x.stride(2)
    return Matrix(x, stride_batch, stride_head, tl.constexpr(stride_time))


def steps(mask: Tensor | None, times: Tensor | None) -> Steps:
    """Describe a side's mask and times, (batch, time) each, a batch of 1 broadcast."""
    return Steps(mask, *_step_strides(mask), times, *_step_strides(times))


def _step_strides(x: Tensor | None) -> tuple[int | None, int | None]:
    if x is None:
        return None, None
    return (0 if x.shape[0] == 1 else x.stride(0)), (0 if x.shape[1] == 1 else x.stride(1))


def both_masks(mask_a: Tensor | None, mask_b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both masks or none: a side without one beside a side that has one is all real."""
    if mask_a is None and mask_b is not None:
        return mask_b.new_ones(1, 1), mask_b
    if mask_b is None and mask_a is not None:
        return mask_a, mask_a.new_ones(1, 1)
    return mask_a, mask_b


def describe_scoring(
    options: Any, *, decay: Tensor | None, max_gap: float, signed: bool
) -> Scoring:
    """Describe how scores are formed and which weights are dropped.

    Args:
        options: ``scale``, ``dropout_p`` and ``dropout_seed`` are read.
        decay: (heads,) slopes per second, or None.
        max_gap: seconds.
        signed: whether the scale keeps its sign; forward kernels negate the queries instead, so
            that the largest product gives the largest score.
    """
    factor = options.scale if signed else abs(options.scale)
    # The smallest normal number stands for 0, so that masks stay -inf.
    scale_log2 = factor * LOG2_E if factor else 1.1754944e-38
    dropped = options.dropout_seed is not None and options.dropout_p > 0
    if not dropped:
        return Scoring(scale_log2, decay, max_gap, None, 0, 1.0)
    threshold = min(keep_threshold(options.dropout_p), 2**32 - 1) - 2**31
    scale = keep_scale(options.dropout_p)
    return Scoring(scale_log2, decay, max_gap, options.dropout_seed, threshold, scale)


def blocks(time: int, block: int) -> int:
    """Number of blocks that cover the time."""
    return -(-time // block)


def padded_dim(*dims: int) -> int:
    """The power of two, at least 16, that the widest of the dimensions is padded to."""
    return max(16, 1 << (max(dims) - 1).bit_length())


def reduce_to(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over the batch if the input was broadcast along it."""
    if gradient.shape[0] != like.shape[0]:
        gradient = gradient.sum(dim=0, keepdim=True)
    return gradient.to(like.dtype)


def new_gradients(tensors: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Empty gradients for each batch element; in float32 where a batch is to be summed.

    All have one dtype: kernels choose between the sides at run time.
    """
    broadcast = any(x.shape[0] != batch for x in tensors)
    dtype = torch.float32 if broadcast else tensors[0].dtype
    return [x.new_empty((batch, *x.shape[1:]), dtype=dtype) for x in tensors]
