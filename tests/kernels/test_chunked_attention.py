"""Chunked temporal attention against a dense oracle, on every backend of this machine."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmer.kernels import chunk_summaries, chunked_attention
from tests.error_rule import assert_within_error_rule, random_mask, random_tensor
from tests.kernels import oracle
from tests.kernels.cases import backends_of_cpu_tensors

BACKENDS = backends_of_cpu_tensors()
backends = pytest.mark.parametrize("backend", BACKENDS)
# The others compute in float32; test_cpu_backend.py checks that they refuse float64.
float64_backends = pytest.mark.parametrize("backend", ["reference"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "causal and summaries": {"causal": True, "summarised": True},
    "lookahead": {"lookahead": 2},
    "own chunk": {"lookback": 0},
    "everything": {"lookback": 99, "lookahead": 99},
    "masks": {"masked": True, "lookahead": 1},
    "summaries": {"summarised": True, "masked": True},
    "newest summaries": {"summarised": True, "max_summaries": 2, "lookback": 0},
    "no summary": {"summarised": True, "max_summaries": 0},
    "chunk 1": {"chunk_size": 1, "lookback": 3},
    "chunk longer than time": {"chunk_size": 64, "summarised": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_inputs(
    time: int, dtype: torch.dtype, head_dim: int = 6, value_dim: int = 5, batch: int = 2
) -> tuple[Tensor, ...]:
    dims = (head_dim, head_dim, value_dim)
    return tuple(
        random_tensor(batch, 2, time, dim, dtype=dtype, seed=n).requires_grad_()
        for n, dim in enumerate(dims)
    )


def make_options(time: int, batch: int = 2, **options: Any) -> dict[str, Any]:
    options = {"chunk_size": 4, "lookback": 1, "lookahead": 0, "causal": False, **options}
    if options.pop("masked", False):
        options["mask"] = random_mask(batch, time, seed=11)
    return options


def call(function: Any, inputs: tuple[Tensor, ...], **options: Any) -> Any:
    q, k, v = inputs
    if options.pop("summarised", False):
        chunk_size, mask = options["chunk_size"], options.get("mask")
        options["summaries"] = chunk_summaries(k, v, chunk_size, mask=mask)
    return function(q, k, v, **options)


def check_error_rule(inputs: tuple[Tensor, ...], options: dict[str, Any], backend: str) -> None:
    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    ours = call(chunked_attention, inputs, **options, backend=backend)
    plain, truth = (call(oracle.chunked, x, **options)[0] for x in (inputs, wide))
    assert_within_error_rule([ours], [plain], [truth])
    direction = torch.randn(ours.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((out.double() * direction).sum(), x)
        for out, x in ((ours, inputs), (plain, inputs), (truth, wide))
    ]
    assert_within_error_rule(*gradients, factor=3.0)


@float64_backends
@variants
def test_float64_is_exact(backend: str, variant: str) -> None:
    inputs, options = make_inputs(23, torch.float64), make_options(23, **VARIANTS[variant])
    ours = call(chunked_attention, inputs, **options, backend=backend, return_lse=True)
    for x, y in zip(ours, call(oracle.chunked, inputs, **options), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@backends
@dtypes
@variants
def test_error_rule(backend: str, dtype: torch.dtype, variant: str) -> None:
    check_error_rule(make_inputs(23, dtype), make_options(23, **VARIANTS[variant]), backend)


@backends
@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_random_shapes_and_options(backend: str, data: st.DataObject) -> None:
    draw = data.draw
    time = draw(st.integers(0, 30))
    options = make_options(
        time,
        chunk_size=draw(st.integers(1, 9)),
        lookback=draw(st.integers(0, 4)),
        lookahead=draw(st.integers(0, 3)),
        causal=draw(st.booleans()),
        masked=draw(st.booleans()),
        summarised=draw(st.booleans()),
        max_summaries=draw(st.sampled_from([None, 0, 1, 3])),
    )
    inputs = make_inputs(time, torch.float32, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    if time == 0:
        out = call(chunked_attention, inputs, **options, backend=backend)
        assert out.shape == (2, 2, 0, inputs[2].shape[3])
        assert all(
            x.shape == y.shape
            for x, y in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True)
        )
    else:
        check_error_rule(inputs, options, backend)


@backends
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nothing_leaks_from_padding(backend: str, poison: float) -> None:
    options = make_options(23, masked=True, lookahead=1, summarised=True)
    mask = options["mask"][:, None, :, None]
    clean = make_inputs(23, torch.float32)
    dirty = tuple(x.detach().masked_fill(~mask, poison).requires_grad_() for x in clean)
    wanted = call(chunked_attention, clean, **options, backend=backend)
    out = call(chunked_attention, dirty, **options, backend=backend)
    assert torch.equal(out, wanted)
    assert (out.masked_select(~mask) == 0).all()
    upstream = torch.ones_like(out).masked_fill(~mask, poison)
    for gradient in torch.autograd.grad(out, dirty, upstream):
        assert gradient.isfinite().all()
        assert (gradient.masked_select(~mask) == 0).all()


@backends
def test_summary_of_an_empty_chunk_is_not_seen(backend: str) -> None:
    q, k, v = make_inputs(12, torch.float32)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[:, :4] = False
    k_s, v_s = chunk_summaries(k, v, 4, mask=mask)
    poisoned = [x.detach().clone() for x in (k_s, v_s)]
    for x in poisoned:
        x[:, :, 0] = math.nan
    wanted = chunked_attention(q, k, v, 4, 0, mask=mask, summaries=(k_s, v_s), backend=backend)
    out = chunked_attention(q, k, v, 4, 0, mask=mask, summaries=tuple(poisoned), backend=backend)
    assert torch.equal(out, wanted)


def test_summaries_are_means_of_real_tokens() -> None:
    _, k, v = make_inputs(10, torch.float64)
    mask = random_mask(2, 10, seed=3)
    k_s, v_s = chunk_summaries(k, v, 4, mask=mask)
    for x, summary in ((k, k_s), (v, v_s)):
        for b in range(2):
            for c in range(3):
                tokens = x[b, :, 4 * c : 4 * c + 4][:, mask[b, 4 * c : 4 * c + 4]]
                mean = tokens.mean(dim=1) if tokens.shape[1] else torch.zeros(2, x.shape[3])
                torch.testing.assert_close(summary[b, :, c], mean.double())


class _LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_flatten(result)[0]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@backends
def test_memory_is_linear_in_time(backend: str) -> None:
    largest = []
    for time in (2048, 8192):
        inputs = make_inputs(time, torch.float32, batch=1)
        with _LargestTensor() as mode:
            out = call(
                chunked_attention,
                inputs,
                chunk_size=16,
                summarised=True,
                max_summaries=4,
                backend=backend,
            )
            out.sum().backward()
        largest.append(mode.elements)
    assert largest[1] <= 4 * largest[0] + 4096
    assert largest[1] < 8192**2 // 8
