"""A library's module and the same module replaced, by the error rule, forward and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmer import replace_attention
from tests.error_rule import assert_within_error_rule, random_tensor

Call = Callable[[nn.Module, Sequence[Tensor]], Sequence[Tensor]]


def randomise(module: nn.Module, std: float = 0.15) -> nn.Module:
    """Give every parameter, biases too, a value that matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def fused(module: nn.Module) -> nn.Module:
    """A copy of a module, replaced."""
    twin = copy.deepcopy(module)
    assert replace_attention(twin).replaced
    return twin


def results(
    module: nn.Module, call: Call, inputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of inputs and parameters of a weighted sum of them."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = list(call(module, leaves))
    weighted = [
        (out * random_tensor(*out.shape, dtype=out.dtype, seed=n)).sum()
        for n, out in enumerate(outputs)
    ]
    wanted = leaves + list(module.parameters())
    gradients = torch.autograd.grad(sum(weighted), wanted, allow_unused=True)
    return (
        [out.detach() for out in outputs],
        [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)],
    )


def assert_parity(
    module: nn.Module,
    call: Call,
    inputs: Sequence[Tensor],
    *,
    library_call: Call | None = None,
    gradients: bool = True,
) -> None:
    """Hold the replaced module to the error rule, with the library in float64 as the oracle.

    Args:
        module: the library's, in float32.
        call: takes a module and inputs, returns what is compared: outputs at real steps.
        inputs: float32 leaves.
        library_call: how the library is called to give the same; like ``call`` by default.
        gradients: compare them too.
    """
    library_call = library_call or call
    ours = results(fused(module), call, inputs)
    plain = results(module, library_call, inputs)
    oracle = results(copy.deepcopy(module).double(), library_call, [x.double() for x in inputs])
    assert_within_error_rule(ours[0], plain[0], oracle[0])
    if gradients:
        assert_within_error_rule(ours[1], plain[1], oracle[1], factor=3.0)
