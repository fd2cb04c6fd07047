"""Calls of registered operators past the dispatcher, for what lasts a few microseconds.

PyTorch takes a registered operator with derivatives through several layers of Python, which costs
more than a small call computes. Where only plain tensors are in play, and nothing that has to see
the operator (a compiler, a transform, a mode, a profiler), its kernel is called at once, and one
autograd function records the derivative if there is to be one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state
_is_profiling = torch._C._autograd._profiler_enabled
_transforms = torch._C._are_functorch_transforms_active
_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_CUDA_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))


def transforms_are_active() -> bool:
    """Whether ``torch.func`` or forward-mode automatic differentiation is at work."""
    return forward_ad._current_level >= 0 or _transforms()


def nothing_watches() -> bool:
    """Whether nothing is active that has to see the operators that are called."""
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _tracing_state() is not None
        or _is_profiling()
        or _transforms()
        or forward_ad._current_level >= 0
    )


def _keys(tensors: Sequence[Tensor | None]) -> Any:
    """Return the dispatch key of the kernels for plain tensors, or None for other ones."""
    if not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return None
    first = tensors[0]
    assert first is not None
    return _CPU_KEYS if first.is_cpu else _CUDA_KEYS if first.is_cuda else None


def call_backward(operator: Any, tensors: Sequence[Tensor | None], arguments: Sequence[Any]) -> Any:
    """Call a backward operator, past the dispatcher unless its derivative is to be recorded.

    Args:
        operator: its overload.
        tensors: the arguments that decide how; the first is a tensor.
        arguments: all arguments.
    """
    if not torch.is_grad_enabled() and nothing_watches():
        keys = _keys(tensors)
        if keys is not None:
            return operator._handle.redispatch_boxed(keys, *arguments)
    return operator(*arguments)


class DirectCall:
    """The kernels of one operator of one backend, with their derivative.

    Args:
        operator: overload of the forward operator.
        tensors: how many leading arguments are tensors or None.
        differentiable: how many leading arguments have a derivative; without any, what follows is
            not needed.
        save: ``(ctx, arguments, outputs)``, what the derivative needs.
        derivative: ``(ctx, *gradients) -> (*gradients)``, from those of the first outputs or of all
            to those of the arguments.
    """

    def __init__(
        self,
        operator: Any,
        tensors: int,
        differentiable: int = 0,
        save: Callable[..., None] | None = None,
        derivative: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        # OpOverload.redispatch, without a further call.
        kernel = operator._handle.redispatch_boxed

        # Every argument and every output costs a part of a microsecond: arguments without a
        # derivative come as one tuple, and outputs that nobody asked for stay here.
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *packed: Any) -> tuple[Tensor, ...]:
                *leading, others, wanted = packed
                arguments = (*leading, *others)
                keys = _CPU_KEYS if arguments[0].is_cpu else _CUDA_KEYS
                outputs: tuple[Tensor, ...] = kernel(keys, *arguments)
                assert save is not None
                save(ctx, arguments, outputs)
                return outputs[:wanted]

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
                assert derivative is not None
                return *derivative(ctx, *gradients)[:differentiable], None, None

        self._kernel = kernel
        self._tensors = tensors
        self._differentiable = differentiable
        # What torch.autograd.Function.apply adds to this is for transforms; none is active here.
        self._record: Callable[..., Any] = super(torch.autograd.Function, Function).apply

    def __call__(self, arguments: tuple[Any, ...], wanted: int) -> tuple[Tensor, ...] | None:
        """Run a call while nothing watches, and return the first outputs.

        Args:
            arguments: in the order of the schema.
            wanted: how many outputs are returned.

        Returns:
            The outputs, or None if a tensor is not of a plain kind: then nothing was run.
        """
        keys = _keys(arguments[: self._tensors])
        if keys is None:
            return None
        outputs: tuple[Tensor, ...]
        if torch.is_grad_enabled():
            leading = arguments[: self._differentiable]
            for x in leading:
                if x is not None and x.requires_grad:
                    outputs = self._record(*leading, arguments[self._differentiable :], wanted)
                    return outputs
        outputs = self._kernel(keys, *arguments)
        return outputs[:wanted]
