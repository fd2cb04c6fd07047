"""Triton kernels compiled for GPUs that are not there: attention, its gradients, random numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.error_rule import assert_within_error_rule, random_tensor
from tests.ptx import Counters, InOut, Output, compile_triton

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = (80, 86, 89, 90, 120)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEADS = 2


def kernels() -> Any:
    """The jitted functions, imported late."""
    from tests.ptx import triton_kernels

    return triton_kernels


def cases(quick: set[tuple[int, str]]) -> list[Any]:
    """Every target and dtype; those that are not ``quick`` are slow."""
    return [
        pytest.param(target, dtype, marks=() if (target, dtype) in quick else pytest.mark.slow)
        for target in TARGETS
        for dtype in DTYPES
    ]


def run_forward(
    inputs: list[Tensor], target: int, seed: int | None = None, ulps: int = 0, **options: Any
) -> tuple[Tensor, Tensor, Counters]:
    """Output, base-2 LSE and counters of the forward."""
    heads, steps, dim = inputs[0].shape
    precision = options.pop("precision", "tf32x3")
    is_wide = inputs[0].dtype == torch.float32
    out, lse = Output(torch.empty_like(inputs[0])), Output(torch.empty(heads, steps))
    block = 32 if is_wide else 64
    arguments = {
        "query": inputs[0], "key": inputs[1], "value": inputs[2], "out": out, "lse": lse,
        "scale_log2": math.log2(math.e) / math.sqrt(dim), "stride": dim, "steps": steps,
        "seed": 7, "dropout": options.pop("dropout", 0.0),
    }  # fmt: skip
    constants = {
        "BLOCK": block, "DIM": dim, "CAUSAL": options.pop("causal", False),
        "DROPOUT": arguments["dropout"] > 0, "PRECISION": precision,
    }  # fmt: skip
    kernel = compile_triton(
        kernels().attention_forward, arguments, constants, target=target,
        num_stages=1 if is_wide else 2, **options,
    )  # fmt: skip
    counters = kernel.launch((math.ceil(steps / block), heads), arguments, seed=seed, ulps=ulps)
    return out.array, lse.array, counters


def attention(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Plain attention, its weights times ``kept``, and its base-2 LSE."""
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1)
    if kept is not None:
        weights = weights * kept
    return weights @ value, torch.logsumexp(scores.double(), -1) / math.log(2)


def inputs_of(steps: int, dtype: str, count: int = 3) -> list[Tensor]:
    """Tensors of (heads, steps, 64)."""
    return [random_tensor(HEADS, steps, 64, dtype=DTYPES[dtype], seed=i) for i in range(count)]


@pytest.mark.parametrize(
    ("target", "dtype"),
    cases(
        {(80, "bfloat16"), (90, "bfloat16"), (90, "float16"), (120, "bfloat16"), (80, "float32")}
    ),
)
def test_forward(target: int, dtype: str) -> None:
    inputs = inputs_of(97, dtype)
    out, lse, counters = run_forward(inputs, target, causal=target == 90)
    options = {"causal": target == 90}
    plain = attention(*inputs, **options)[0]
    truth, true_lse = attention(*(x.double() for x in inputs), **options)
    assert_within_error_rule([out], [plain], [truth])
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-5, atol=1e-4)
    uses_wgmma = any(name.startswith("m64") for name in counters.mma)
    assert uses_wgmma == (target == 90 and dtype != "float32")


def test_forward_with_coarse_exponentials() -> None:
    """ex2 and division may be two units in the last place off: the error rule still holds."""
    inputs = inputs_of(63, "bfloat16")
    out, lse, _ = run_forward(inputs, 80, seed=0, ulps=2)
    exact = run_forward(inputs, 80)
    truth, true_lse = attention(*(x.double() for x in inputs))
    assert_within_error_rule([out], [attention(*inputs)[0]], [truth])
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-5, atol=1e-4)
    assert not torch.equal(lse, exact[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", TARGETS)
def test_forward_under_any_schedule(target: int, seed: int) -> None:
    inputs = inputs_of(97, "bfloat16")
    assert torch.equal(
        run_forward(inputs, target, seed=seed)[0], run_forward(inputs, target, seed=None)[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "ieee"])
@pytest.mark.parametrize("target", TARGETS)
def test_precisions_of_float32(target: int, precision: str) -> None:
    """tf32 keeps 11 bits of each factor; tf32x3 and ieee keep to the error rule."""
    inputs = inputs_of(63, "float32")
    out = run_forward(inputs, target, precision=precision)[0]
    truth = attention(*(x.double() for x in inputs))[0]
    if precision == "tf32":
        error = (out - truth).abs().max()
        assert 2e-5 < error < 2e-2
    else:
        assert_within_error_rule([out], [attention(*inputs)[0]], [truth])


def run_backward(
    inputs: list[Tensor], grad_out: Tensor, target: int, seed: int | None = None
) -> list[Tensor]:
    """The gradients of query, key and value."""
    heads, steps, dim = inputs[0].shape
    out, lse = attention(*(x.double() for x in inputs))
    delta = (out * grad_out.double()).sum(-1).float()
    gradients = [InOut(torch.zeros(heads, steps, dim))]
    gradients += [Output(torch.empty(heads, steps, dim)) for _ in range(2)]
    is_wide = inputs[0].dtype == torch.float32
    block = 32 if is_wide else 64
    arguments = {
        "query": inputs[0], "key": inputs[1], "value": inputs[2], "grad_out": grad_out,
        "lse": lse.float(), "delta": delta, "grad_query": gradients[0], "grad_key": gradients[1],
        "grad_value": gradients[2], "scale_log2": math.log2(math.e) / math.sqrt(dim),
        "scale": 1 / math.sqrt(dim), "steps": steps,
    }  # fmt: skip
    constants = {"BLOCK": block, "DIM": dim, "PRECISION": "tf32x3"}
    kernel = compile_triton(
        kernels().attention_backward, arguments, constants, target=target,
        num_stages=1 if is_wide else 2,
    )  # fmt: skip
    counters = kernel.launch((math.ceil(steps / block), heads), arguments, seed=seed)
    assert counters.atomics > 0
    return [buffer.array for buffer in gradients]


@pytest.mark.parametrize(
    ("target", "dtype"), cases({(80, "float16"), (90, "bfloat16"), (120, "bfloat16")})
)
def test_backward(target: int, dtype: str) -> None:
    inputs = inputs_of(97, dtype)
    grad_out = random_tensor(HEADS, 97, 64, dtype=DTYPES[dtype], seed=9)
    ours = run_backward(inputs, grad_out, target, seed=0)

    def gradients(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        return list(torch.autograd.grad(attention(*leaves)[0], leaves, upstream))

    plain = gradients(inputs, grad_out)
    truth = gradients([x.double() for x in inputs], grad_out.double())
    rounded = [x.to(DTYPES[dtype]) for x in ours]
    assert_within_error_rule(rounded, plain, truth, factor=3)


@pytest.mark.parametrize("target", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_dropout(target: int) -> None:
    """The mask of Triton's Philox, computed again by ours: uint32 -> float as tl.rand does it."""
    steps, rate = 65, 0.3
    inputs = inputs_of(steps, "bfloat16")
    out = run_forward(inputs, target, dropout=rate)[0]
    words = torch.empty(steps * steps, 4, dtype=torch.int32)
    run_philox(words, 7, target)
    first = words[:, 0].numpy().astype(np.int64)
    uniform = np.where(first < 0, -first - 1, first).astype(np.float32) * np.float32(
        4.6566127342e-10
    )
    kept = torch.from_numpy(uniform >= np.float32(rate)).reshape(steps, steps)
    weights = kept.double() / (1 - rate)
    assert 0.6 < kept.float().mean() < 0.8
    truth = attention(*(x.double() for x in inputs), kept=weights)[0]
    plain = attention(*inputs, kept=weights.bfloat16())[0]
    assert_within_error_rule([out], [plain], [truth])


def run_philox(words: Tensor, seed: int, target: int) -> None:
    """Fill (count, 4) by the Philox of Triton."""
    arguments = {"out": Output(words), "seed": seed, "count": len(words)}
    kernel = compile_triton(kernels().philox, arguments, {"BLOCK": 256}, target=target)
    kernel.launch((math.ceil(len(words) / 256),), arguments)


@pytest.mark.parametrize("target", [80, 90])
def test_philox(target: int) -> None:
    """The published generator: Philox 4x32-10 of Salmon et al. 2011, in Python integers."""
    words = torch.empty(50, 4, dtype=torch.int32)
    run_philox(words, 12345, target)
    for counter in range(50):
        state, key = [counter, 0, 0, 0], [12345, 0]
        for _ in range(10):
            a, b = 0xD2511F53 * state[0], 0xCD9E8D57 * state[2]
            state = [
                b >> 32 ^ state[1] ^ key[0], b & 0xFFFFFFFF,
                a >> 32 ^ state[3] ^ key[1], a & 0xFFFFFFFF,
            ]  # fmt: skip
            key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
        assert [int(x) & 0xFFFFFFFF for x in words[counter]] == state


@pytest.mark.parametrize(
    "target", [80, 120, *(pytest.param(t, marks=pytest.mark.slow) for t in (86, 89, 90))]
)
def test_reductions(target: int) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal(512).astype(np.float32))
    counts = torch.from_numpy(rng.integers(-100, 100, 512).astype(np.int32))
    flags = torch.from_numpy(rng.random(512) < 0.5)
    outputs = {
        "floats": Output(torch.empty(2)),
        "integers": Output(torch.empty(3, dtype=torch.int32)),
        "scanned": Output(torch.empty(512)),
        "kept": Output(torch.zeros(512, dtype=torch.bool)),
    }
    arguments = {"x": x, "counts": counts, "flags": flags, **outputs}
    kernel = compile_triton(kernels().reductions, arguments, {"BLOCK": 512}, target=target)
    for seed in (None, 0):
        kernel.launch((1,), arguments, seed=seed)
        floats, integers, scanned, kept = (outputs[name].array for name in outputs)
        torch.testing.assert_close(floats, torch.stack([x.sum(), x.max()]), rtol=1e-5, atol=1e-5)
        wanted = [int(counts.sum()), int(counts.min()), int(x.argmax())]
        assert integers.tolist() == wanted
        wide, turned = x.double(), x.double().roll(-1)
        mixed = (-turned.abs()).exp() + (wide.abs() + 1).log() + wide.sigmoid()
        mixed += turned.abs().sqrt() + wide.floor() + (wide.abs() + 1).rsqrt()
        torch.testing.assert_close(scanned.double(), mixed.cumsum(0), rtol=1e-4, atol=1e-4)
        quotient = torch.div(counts, 50, rounding_mode="trunc")
        remainder = counts - torch.div(counts, 7, rounding_mode="trunc") * 7
        assert torch.equal(kept, flags & (remainder > quotient))
