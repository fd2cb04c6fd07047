"""What is wrapped around modules: checkpointing, functional calls, autocast, meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mmer
from mmer import replace_attention
from mmer.kernels import decompositions
from tests.ecosystem.cases import NAMES, inputs, loss_of, make, set_dropout, tensors, total


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
        return checkpoint(self.module, *arguments, use_reentrant=False, **options)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    module = make(name)
    wanted = gradients(module, loss_of(module, name))
    got = gradients(module, loss_of(Checkpointed(module), name))
    for x, y in zip(got, wanted, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kornia"])
def test_checkpointing_draws_the_same_dropout_again(name: str) -> None:
    module = make(name)
    set_dropout(module, 0.4)
    assert not torch.equal(loss_of(module, name), loss_of(make(name), name))
    torch.manual_seed(5)
    loss = loss_of(Checkpointed(module), name)
    got = gradients(module, loss)
    torch.manual_seed(5)
    plain = loss_of(module, name)
    assert torch.equal(loss, plain)
    for x, y in zip(got, gradients(module, plain), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_functional_call_takes_other_weights(name: str) -> None:
    module, other = make(name), make(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    arguments, options = inputs(name)
    got = torch.func.functional_call(module, dict(other.named_parameters()), arguments, options)
    wanted = other(*arguments, **options)
    for x, y in zip(tensors(got), tensors(wanted), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torch_func(name: str) -> None:
    """Inside its transforms the reference runs: the same up to rounding."""
    module = make(name)
    arguments, options = inputs(name)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        def call(*arguments: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
            return torch.func.functional_call(module, parameters, arguments, options)

        return total(call, arguments, options)

    parameters = {name: x.detach() for name, x in module.named_parameters()}
    got = torch.func.grad(loss)(parameters)
    for x, y in zip(got.values(), gradients(module, loss_of(module, name)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_a_replaced_module_made_on_the_meta_device() -> None:
    lightglue = pytest.importorskip("kornia.feature.lightglue")
    with torch.device("meta"):
        block = lightglue.CrossBlock(16, 2)
        replace_attention(block)
        out, _ = block(torch.empty(2, 5, 16), torch.empty(2, 6, 16))
    assert out.is_meta
    assert out.shape == (2, 5, 16)
    twin = make("kornia")
    block.to_empty(device="cpu").load_state_dict(twin.state_dict())
    arguments, _ = inputs("kornia")
    assert torch.equal(block(*arguments)[0], twin(*arguments)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    module = make(name)
    wanted = gradients(module, loss_of(module, name))
    largest = max(float(x.abs().max()) for x in wanted)
    with torch.autocast("cpu", dtype):
        loss = loss_of(module, name)
    for x, y in zip(gradients(module, loss), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0.1, atol=0.02 * largest)


def fake_sides(*kinds: str) -> list[Tensor]:
    return [torch.empty(2, 3, {"a": 5, "b": 6}[kind], 8, device="cuda") for kind in kinds]


# A CPU build of PyTorch has the operators' fake kernels only: nn.Linear aborts it, fake or not.
@pytest.mark.parametrize(
    ("operator", "sides"),
    [
        (mmer.shared_cross_attention, "abab"),
        (mmer.bidirectional_cross_attention, "aaabbb"),
        (partial(mmer.chunked_attention, chunk_size=2), "aaa"),
    ],
)
@pytest.mark.parametrize("on", [False, True])
def test_autocast_on_cuda_reaches_the_operators(
    operator: Callable[..., Any], sides: str, on: bool
) -> None:
    """With fake tensors: the dtype that a GPU would be given, where there is none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        torch.set_autocast_enabled("cuda", on)
        torch.set_autocast_dtype("cuda", torch.float16)
        with FakeTensorMode(), torch.no_grad():
            for out in tensors(operator(*fake_sides(*sides))):
                assert out.dtype == (torch.float16 if on else torch.float32)
                assert out.device.type == "cuda"
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class Called(TorchDispatchMode):
    """Collects the names of the operators that run, those inside of the definitions of ours too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.definitions = decompositions()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func in self.definitions:
            with self:
                return self.definitions[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


# What waits for a value of the device, or gives a result whose size depends on one: neither can be
# part of a CUDA graph.
SYNCHRONISING = {"_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero", "masked_select"}


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read_on_the_host(name: str) -> None:
    """CUDA graphs, by construction."""
    module = make(name)
    set_dropout(module, 0.3)
    with Called() as called:
        loss_of(module, name).backward()
    assert {"exp", "where"} <= called.names
    assert any(operator.endswith("attention_backward") for operator in called.names)
    assert not called.names & SYNCHRONISING
