"""The operators seen from the rest of PyTorch: opcheck, compile, export, autocast, torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmer.kernels import chunk_summaries, chunked_attention
from tests.error_rule import random_tensor
from tests.kernels.cases import OPERATORS, backends_of_cpu_tensors, make_pair

BACKENDS = backends_of_cpu_tensors()
backends = pytest.mark.parametrize("backend", BACKENDS)
operators = pytest.mark.parametrize("operator", OPERATORS)


def registered(backend: str, operator: str) -> Any:
    return getattr(getattr(torch.ops, f"mmer_{backend}"), operator).default


@backends
@operators
def test_opcheck(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32, masks=True, times=True)
    options = case.options
    decay = options["decay"].requires_grad_()
    arguments = (
        *case.tensors,
        decay,
        *(options[name] for name in ("mask_a", "mask_b", "times_a", "times_b")),
        None,
        0.5,
        1.5,
        0.0,
        True,
    )
    forward = registered(backend, operator)
    torch.library.opcheck(forward, arguments)
    outputs = [x.detach() for x in forward(*arguments)]
    gradients = [torch.randn_like(x) for x in outputs]
    backward = registered(backend, f"{operator}_backward")
    torch.library.opcheck(backward, (*gradients, *arguments, *outputs))


@backends
def test_opcheck_chunked(backend: str) -> None:
    q, k, v = (torch.randn(2, 2, 11, dim, requires_grad=True) for dim in (4, 4, 3))
    mask = torch.rand(2, 11) < 0.8
    summaries = [x.detach().requires_grad_() for x in chunk_summaries(k, v, 3, mask=mask)]
    arguments = (q, k, v, *summaries, mask, None, 3, 1, 1, False, 2, 0.5, 0.0, True)
    forward = registered(backend, "chunked_attention")
    torch.library.opcheck(forward, arguments)
    outputs = [x.detach() for x in forward(*arguments)]
    gradients = [torch.randn_like(x) for x in outputs]
    backward = registered(backend, "chunked_attention_backward")
    torch.library.opcheck(backward, (*gradients, *arguments, *outputs))


@backends
@operators
def test_compiles_in_one_graph(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32, masks=True, times=True)
    options = {**case.options, "dropout_p": 0.2, "dropout_seed": 3, "backend": backend}

    def loss(*tensors: Tensor) -> Tensor:
        out_a, out_b = OPERATORS[operator](*tensors, **options)
        return (out_a**2).sum() + out_b.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(*case.tensors), case.tensors)
    for x, y in zip(
        torch.autograd.grad(compiled(*case.tensors), case.tensors), wanted, strict=True
    ):
        torch.testing.assert_close(x, y)


@backends
def test_chunked_compiles_for_any_length(backend: str) -> None:
    def out(q: Tensor, k: Tensor, v: Tensor) -> Any:
        summaries = chunk_summaries(k, v, 3)
        return chunked_attention(q, k, v, 3, summaries=summaries, dropout_p=0.0, backend=backend)

    compiled = torch.compile(out, fullgraph=True, backend="aot_eager", dynamic=True)
    for time in (11, 14, 21):
        inputs = [random_tensor(2, 2, time, 4, dtype=torch.float32, seed=n) for n in range(3)]
        torch.testing.assert_close(compiled(*inputs), out(*inputs))


def test_compiles_with_inductor() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32, masks=True)

    def loss(*tensors: Tensor) -> Tensor:
        out_a, out_b = OPERATORS["shared_cross_attention"](*tensors, **case.options)
        return (out_a**2).sum() + out_b.sum()

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(*case.tensors), loss(*case.tensors))


@backends
def test_exports(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            return OPERATORS["shared_cross_attention"](a, b, a, b, backend=backend)

    a, b = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 7, 4)
    time = torch.export.Dim("time", min=2, max=100)
    exported = torch.export.export(Module(), (a, b), dynamic_shapes=({2: time}, None))
    longer = torch.randn(1, 2, 12, 4)
    for x, y in zip(exported.module()(longer, b), Module()(longer, b), strict=True):
        torch.testing.assert_close(x, y)


@operators
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(operator: str, dtype: torch.dtype) -> None:
    case = make_pair(operator, dtype=torch.float32, times=True)
    with torch.autocast("cpu", dtype=dtype):
        outputs = case.run()
    halves = make_pair(operator, dtype=torch.float32, times=True).to(dtype)
    for x, y in zip(outputs, halves.run(), strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y)
    for gradient in torch.autograd.grad(outputs[0].sum(), case.tensors, allow_unused=True):
        assert gradient is None or gradient.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert make_pair(operator, dtype=torch.float64).run()[0].dtype == torch.float64


@operators
def test_torch_func(operator: str) -> None:
    case = make_pair(operator, masks=True)
    tensors = tuple(x.detach() for x in case.tensors)

    def loss(*tensors: Tensor) -> Tensor:
        return OPERATORS[operator](*tensors, **case.options)[0].sum()

    ours = torch.func.grad(loss)(*tensors)
    wanted = torch.autograd.grad(loss(*case.tensors), case.tensors[0])[0]
    torch.testing.assert_close(ours, wanted)
    stacked = torch.stack([tensors[0], 2 * tensors[0]])
    mapped = torch.func.vmap(lambda x: OPERATORS[operator](x, *tensors[1:])[0])(stacked)
    torch.testing.assert_close(mapped[1], OPERATORS[operator](2 * tensors[0], *tensors[1:])[0])


@operators
def test_checkpoint_draws_the_same_dropout_again(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32)

    def loss(*tensors: Tensor) -> Tensor:
        return OPERATORS[operator](*tensors, dropout_p=0.5)[0].pow(2).sum()

    gradients = []
    for function in (loss, lambda *x: checkpoint(loss, *x, use_reentrant=False)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(function(*case.tensors), case.tensors[0])[0])
    assert torch.equal(*gradients)


@backends
@operators
def test_meta_tensors(operator: str, backend: str) -> None:
    case = make_pair(operator, batch=(1, 3), value_dim=5, dtype=torch.bfloat16)
    tensors = [x.to("meta") for x in case.tensors]
    arguments = [*tensors, *[None] * 6, 0.5, 1.0, 0.0, True]
    outputs = registered(backend, operator)(*arguments)
    for x, y in zip(outputs, case.run(return_lse=True), strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())
