"""Calls that go past the dispatcher, and those that something has to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from mmer.kernels import available_backends, chunked_attention, shared_cross_attention
from tests.error_rule import random_mask
from tests.kernels.cases import OPERATORS, make_pair

operators = pytest.mark.parametrize("operator", OPERATORS)
needs_kernels = pytest.mark.skipif("cpu" not in available_backends(), reason="no CPU kernels")


class Seen(TorchDispatchMode):
    """Remembers the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def results(case: Any, **options: Any) -> list[Tensor]:
    outputs = case.run(**options)
    return [*outputs, *torch.autograd.grad([x.sum() for x in outputs], case.tensors)]


@needs_kernels
@operators
@pytest.mark.parametrize("masks", [False, True])
def test_both_ways_give_the_same_bits(operator: str, masks: bool) -> None:
    case = make_pair(operator, dtype=torch.float32, batch=(1, 3), masks=masks)
    with Seen() as seen:
        dispatched = results(case)
    assert f"mmer_cpu.{operator}.default" in seen.names
    assert f"mmer_cpu.{operator}_backward.default" in seen.names
    for direct in (results(case), results(case, backend="cpu"), results(case, scale=8**-0.5)):
        assert all(torch.equal(x, y) for x, y in zip(direct, dispatched, strict=True))
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(case.run(), dispatched, strict=False))


@needs_kernels
def test_the_profiler_sees_the_operators() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results(case)
    names = {event.key for event in profile.key_averages()}
    assert {f"mmer_cpu::{x}" for x in (case.operator, f"{case.operator}_backward")} <= names


@operators
def test_forward_mode_takes_the_reference(operator: str) -> None:
    case = make_pair(operator)
    tangents = [torch.randn_like(x) for x in case.tensors]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, y) for x, y in zip(case.tensors, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(OPERATORS[operator](*duals)[0]).tangent
    wanted = torch.func.jvp(
        lambda *x: OPERATORS[operator](*x)[0],
        tuple(x.detach() for x in case.tensors),
        tuple(tangents),
    )[1]
    torch.testing.assert_close(tangent, wanted)


@needs_kernels
@operators
@pytest.mark.parametrize("return_lse", [False, True])
def test_second_derivatives_of_what_the_kernels_computed(operator: str, return_lse: bool) -> None:
    case = make_pair(operator, dtype=torch.float32, masks=True)

    def second(case: Any, backend: str) -> list[Tensor]:
        outputs = case.run(backend=backend, return_lse=return_lse)
        loss = sum(torch.where(x.isfinite(), x, 0.0).pow(2).sum() for x in outputs)
        first = torch.autograd.grad(loss, case.tensors, create_graph=True)
        return list(torch.autograd.grad(sum(x.pow(2).sum() for x in first), case.tensors))

    for x, y in zip(second(case, "cpu"), second(case, "reference"), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_changed_inputs_are_noticed_in_the_backward() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32, masks=True)
    out_a, _ = case.run()
    case.options["mask_a"].logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out_a.sum().backward()


class Tagged(Tensor):
    """A subclass that takes part in everything."""


def test_subclasses_stay_what_they_are() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32)
    tagged = [x.detach().as_subclass(Tagged) for x in case.tensors]
    out_a, _ = shared_cross_attention(*tagged)
    assert type(out_a) is Tagged
    assert torch.equal(out_a.as_subclass(Tensor), case.run()[0])


BAD_CALLS: dict[str, tuple[str, list[tuple[int, Any]]]] = {
    "another length": ("tensors", [(2, torch.zeros(2, 2, 16, 8))]),
    "another dtype": ("tensors", [(1, torch.zeros(2, 2, 33, 8, dtype=torch.bfloat16))]),
    "another head_dim": (
        "head dimensions",
        [(1, torch.zeros(2, 2, 33, 7)), (3, torch.zeros(2, 2, 33, 8))],
    ),
    "other heads": ("tensors", [(1, torch.zeros(2, 1, 33, 8))]),
    "another batch": (
        "batch sizes",
        [(1, torch.zeros(3, 2, 33, 8)), (3, torch.zeros(3, 2, 33, 8))],
    ),
    "three dimensions": ("tensors", [(0, torch.zeros(2, 17, 8))]),
    "a mask of floats": ("masks", [(5, torch.zeros(2, 17))]),
    "a short mask": ("masks", [(6, torch.ones(2, 32, dtype=torch.bool))]),
    "times of one side": ("times", [(7, torch.zeros(2, 17))]),
    "times in float64": ("times", [(7, torch.zeros(2, 17).double()), (8, torch.zeros(2, 33))]),
    "slopes": ("slopes", [(4, torch.zeros(3))]),
    "a seed of several": ("seeds", [(9, torch.zeros(2, dtype=torch.int64))]),
}


@needs_kernels
@pytest.mark.parametrize("bad", BAD_CALLS)
def test_registered_operators_refuse_what_does_not_fit(bad: str) -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32)
    arguments: list[Any] = [x.detach() for x in case.tensors] + [None] * 6 + [0.3, 1.0, 0.0, True]
    operator = torch.ops.mmer_cpu.shared_cross_attention
    outputs = operator(*arguments)
    what, changes = BAD_CALLS[bad]
    for place, value in changes:
        arguments[place] = value
    with pytest.raises(RuntimeError, match=f"shared_cross_attention: {what} do not fit"):
        operator(*arguments)
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.mmer_cpu.shared_cross_attention_backward(
            *outputs[:2], None, None, *arguments, *outputs
        )


@needs_kernels
def test_registered_backward_refuses_results_of_another_call() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32)
    arguments = [*(x.detach() for x in case.tensors), *[None] * 6, 0.3, 1.0, 0.0, True]
    outputs = list(torch.ops.mmer_cpu.shared_cross_attention(*arguments))
    backward = torch.ops.mmer_cpu.shared_cross_attention_backward
    for place in range(4):
        changed = list(outputs)
        changed[place] = outputs[place][:, :, 1:]
        with pytest.raises(RuntimeError, match="do not fit"):
            backward(*outputs[:2], None, None, *arguments, *changed)
        gradients = [*outputs[:2], *outputs[2:]]
        gradients[place] = changed[place]
        with pytest.raises(RuntimeError, match="do not fit"):
            backward(*gradients, *arguments, *outputs)


@needs_kernels
def test_registered_chunked_attention_refuses_what_does_not_fit() -> None:
    q, k, v = (torch.zeros(1, 2, 9, 4) for _ in range(3))
    for chunk_size, lookback, summary, mask in (
        (0, 1, None, None),
        (3, -1, None, None),
        (3, 1, torch.zeros(1, 2, 4, 4), None),
        (3, 1, None, random_mask(1, 8, seed=0)),
    ):
        with pytest.raises(RuntimeError, match=r"chunked_attention: .* do not fit"):
            torch.ops.mmer_cpu.chunked_attention(
                q,
                k,
                v,
                summary,
                summary,
                mask,
                None,
                chunk_size,
                lookback,
                0,
                False,
                9,
                1.0,
                0.0,
                True,
            )


@pytest.mark.parametrize("arguments", [{"chunk_size": True}, {"lookback": 1.0}, {"causal": 1}])
def test_the_quick_way_lets_no_wrong_option_through(arguments: dict[str, Any]) -> None:
    q = torch.zeros(1, 1, 5, 4)
    with pytest.raises(TypeError):
        chunked_attention(q, q, q, **{"chunk_size": 2, **arguments})


def test_a_chunk_larger_than_64_bits_is_no_surprise() -> None:
    q = torch.zeros(1, 1, 5, 4)
    with pytest.raises((RuntimeError, OverflowError, TypeError)):
        chunked_attention(q, q, q, 2**80)
