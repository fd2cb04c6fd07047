"""The boundary between PyTorch and a backend: registered operators with their derivatives.

Every backend registers the same two operators for each attention operator, in a namespace of its
own::

    mmer_<backend>::<operator>(tensors, options) -> (outputs, log-sum-exps)
    mmer_<backend>::<operator>_backward(gradients, tensors, options, outputs, log-sum-exps) ->
    gradients

so that ``torch.compile``, ``torch.export`` and ``torch.library.opcheck`` see one node with a known
shape. The schema, the fake kernels and the derivatives are those of the
:class:`OperatorDefinition`; a backend brings the two functions. Second derivatives of every backend
go through the reference's written-out derivative, which autograd can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .attend import compute_dtype
from .direct import DirectCall, call_backward

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    bool: "bool",
}


@dataclass(frozen=True)
class OperatorDefinition:
    """What is the same for all backends of one attention operator.

    Attributes:
        name: name of the public function.
        tensors: names of the required tensors, all differentiable.
        options_type: NamedTuple of the options in schema order: tensors first, and of these the
            differentiable ones first.
        differentiable_options: how many of the options are differentiable optional tensors.
        outputs: number of outputs; there are as many log-sum-exps.
        output_shapes: from the required tensors to the shapes of the outputs.
        forward: the reference, ``(*tensors, options) -> (*outputs, *log_sum_exps)``.
        backward: its derivative, ``(*grad_outputs, *grad_lses, *tensors, options) ->
            (*gradients)``; None for an operator that has none and is called without gradients.
    """

    name: str
    tensors: tuple[str, ...]
    options_type: type[Any]
    differentiable_options: int
    outputs: int
    output_shapes: Callable[[Sequence[Tensor]], list[tuple[int, ...]]]
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor | None, ...]] | None

    @property
    def tensor_arguments(self) -> int:
        """Number of leading arguments that are tensors or None."""
        types = get_type_hints(self.options_type).values()
        return len(self.tensors) + sum(kind == Tensor | None for kind in types)

    @property
    def differentiable(self) -> int:
        """Number of leading arguments that have a gradient."""
        return len(self.tensors) + self.differentiable_options

    def _arguments_schema(self) -> str:
        tensors = [f"Tensor {name}" for name in self.tensors]
        types = get_type_hints(self.options_type)
        options = [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in types.items()]
        return ", ".join(tensors + options)

    def forward_schema(self) -> str:
        """Schema of the forward operator."""
        results = ", ".join(["Tensor"] * (2 * self.outputs))
        return f"{self.name}({self._arguments_schema()}) -> ({results})"

    def backward_schema(self) -> str:
        """Schema of the backward operator; the gradient of an absent option is an empty tensor."""
        gradients = [f"Tensor grad_{n}" for n in range(self.outputs)]
        gradients += [f"Tensor? grad_lse_{n}" for n in range(self.outputs)]
        saved = [f"Tensor out_{n}" for n in range(self.outputs)]
        saved += [f"Tensor lse_{n}" for n in range(self.outputs)]
        arguments = ", ".join([*gradients, self._arguments_schema(), *saved])
        results = ", ".join(["Tensor"] * self.differentiable)
        return f"{self.name}_backward({arguments}) -> ({results})"

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Tensor], Any]:
        """Separate a flat argument list into the required tensors and the options."""
        count = len(self.tensors)
        return arguments[:count], self.options_type(*arguments[count:])


Function = Callable[..., Any]
_direct_calls: dict[tuple[str, str], DirectCall] = {}


def direct_call(definition: OperatorDefinition, namespace: str) -> DirectCall:
    """Return the operator of ``namespace`` as it is called past the dispatcher."""
    return _direct_calls[namespace, definition.name]


def attach(definition: OperatorDefinition, namespace: str) -> None:
    """Give the operators of ``namespace``, defined by now, fake kernels and derivatives."""
    forward_name = f"{namespace}::{definition.name}"
    backward_name = f"{forward_name}_backward"
    overload = getattr(torch.ops, namespace)
    forward_operator = getattr(overload, definition.name).default
    outputs, differentiable = definition.outputs, definition.differentiable
    tensors_count = definition.tensor_arguments
    derive = definition.backward

    def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, _ = definition.split(arguments)
        first, shapes = tensors[0], definition.output_shapes(tensors)
        lse_dtype = compute_dtype(first.dtype)
        results = [first.new_empty(shape) for shape in shapes]
        return *results, *(first.new_empty(shape[:-1], dtype=lse_dtype) for shape in shapes)

    torch.library.register_fake(forward_name, fake_forward)
    if derive is None:
        _direct_calls[namespace, definition.name] = DirectCall(forward_operator, tensors_count)
        return
    backward_operator = getattr(overload, f"{definition.name}_backward").default

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        inputs = arguments[2 * outputs : 2 * outputs + differentiable]
        return tuple(
            arguments[0].new_empty(0)
            if x is None
            else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in inputs
        )

    def save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:tensors_count], *output)
        ctx.others = inputs[tensors_count:]

    def forward_derivative(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, results = (*saved[:tensors_count], *ctx.others), saved[tensors_count:]
        grad_lses = gradients[outputs:] or (None,) * outputs
        # One of the outputs may be unused; which log-sum-exp is used decides what the kernel
        # computes.
        grad_outputs = [
            torch.zeros_like(out) if gradient is None else gradient
            for gradient, out in zip(gradients[:outputs], results[:outputs], strict=True)
        ]
        computed = call_backward(
            backward_operator,
            (*grad_outputs, *saved),
            (*grad_outputs, *grad_lses, *inputs, *results),
        )
        kept = [
            gradient if needed else None
            for gradient, needed in zip(computed, ctx.needs_input_grad, strict=False)
        ]
        return *kept, *[None] * (len(inputs) - differentiable)

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        _save(ctx, inputs)

    def backward_derivative(ctx: Any, *grad_gradients: Tensor | None) -> tuple[Any, ...]:
        saved = _saved(ctx)
        first = 2 * outputs
        arguments = saved[: len(saved) - 2 * outputs]
        tensors, options = definition.split(arguments[first:])
        wanted = [n for n in range(first + differentiable) if ctx.needs_input_grad[n]]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views give autograd nodes of their own to inputs that were passed twice.
            leaves = [
                x.view_as(x) if isinstance(x, Tensor) and ctx.needs_input_grad[n] else x
                for n, x in enumerate(arguments)
            ]
            tensors, options = definition.split(leaves[first:])
            gradients = derive(*leaves[:first], *tensors, options)
            used = [
                (gradient, grad_gradient)
                for gradient, grad_gradient in zip(gradients, grad_gradients, strict=True)
                if gradient is not None and grad_gradient is not None and gradient.requires_grad
            ]
            results: list[Any] = [None] * len(saved)
            if used and wanted:
                second = torch.autograd.grad(
                    [gradient for gradient, _ in used],
                    [leaves[n] for n in wanted],
                    [grad_gradient for _, grad_gradient in used],
                    create_graph=create_graph,
                    allow_unused=True,
                )
                for n, gradient in zip(wanted, second, strict=True):
                    results[n] = gradient
        return tuple(results)

    torch.library.register_fake(backward_name, fake_backward)
    torch.library.register_autograd(forward_name, forward_derivative, setup_context=save_forward)
    torch.library.register_autograd(backward_name, backward_derivative, setup_context=save_backward)
    _direct_calls[namespace, definition.name] = DirectCall(
        forward_operator,
        tensors_count,
        differentiable,
        save_forward,
        forward_derivative,
    )


def _save(ctx: Any, values: Sequence[Any]) -> None:
    ctx.is_tensor = [isinstance(x, Tensor) for x in values]
    ctx.others = [x for x in values if not isinstance(x, Tensor)]
    ctx.save_for_backward(*(x for x in values if isinstance(x, Tensor)))


def _saved(ctx: Any) -> list[Any]:
    tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
    return [next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor]


# A torch.library.Library unregisters its operators when it is collected.
_libraries: dict[str, torch.library.Library] = {}


def define(
    definition: OperatorDefinition, namespace: str, forward: Function, backward: Function | None
) -> None:
    """Register a backend written in Python.

    Args:
        definition: the operator.
        namespace: ``mmer_<backend>``.
        forward: like ``definition.forward``.
        backward: ``(*grad_outputs, *grad_lses, *tensors, options, *outputs, *lses) ->
            (*gradients)``; None if the operator has none.
    """
    library = _libraries.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    outputs = definition.outputs

    def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = definition.split(arguments)
        return tuple(x.contiguous() for x in forward(*tensors, options))

    library.define(definition.forward_schema())
    library.impl(definition.name, run_forward, "CompositeExplicitAutograd")
    if backward is None:
        attach(definition, namespace)
        return

    def run_backward(*arguments: Any) -> tuple[Tensor, ...]:
        gradients, rest = arguments[: 2 * outputs], arguments[2 * outputs :]
        tensors, options = definition.split(rest[: -2 * outputs])
        computed = backward(*gradients, *tensors, options, *rest[-2 * outputs :])
        empty = gradients[0].new_empty(0)
        return tuple(empty if x is None else x.contiguous() for x in computed)

    library.define(definition.backward_schema())
    library.impl(f"{definition.name}_backward", run_backward, "CompositeExplicitAutograd")
    attach(definition, namespace)
