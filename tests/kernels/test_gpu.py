"""The GPU kernels on a GPU, by the error rule. `make gpu` runs these before it measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmer.kernels import available_backends, chunk_summaries, chunked_attention
from tests.error_rule import assert_within_error_rule, random_tensor
from tests.kernels import oracle
from tests.kernels.cases import OPERATORS, PairCase, make_pair
from tests.kernels.test_cross_attention import gradients

BACKENDS = [name for name in available_backends() if name in ("cuda", "triton")]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
backends = pytest.mark.parametrize("backend", BACKENDS or ["triton"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
PAIRS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"masks": True},
    "masks and times": {"masks": True, "times": True},
    "broadcast": {"batch": (1, 3), "value_dim": 5},
}


def on_gpu(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.detach().cuda().requires_grad_(x.requires_grad)


@backends
@dtypes
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("lengths", [(17, 63), (50, 375), (300, 300), (97, 1025)])
@pytest.mark.parametrize("variant", PAIRS)
def test_pairs(
    backend: str, dtype: torch.dtype, operator: str, lengths: tuple[int, int], variant: str
) -> None:
    time_a, time_b = lengths
    options = {"dtype": dtype, "time_a": time_a, "time_b": time_b, "head_dim": 64}
    case = make_pair(operator, **{**options, **PAIRS[variant]})
    there = PairCase(
        operator,
        tuple(map(on_gpu, case.tensors)),
        {name: on_gpu(value) for name, value in case.options.items()},
    )
    truth = case.to(torch.float64)
    ours = tuple(x.cpu() for x in there.run(backend=backend))
    plain, wanted = case.naive()[:2], truth.naive()[:2]
    assert_within_error_rule(ours, plain, wanted)
    assert_within_error_rule(
        [x.cpu() for x in gradients(ours, there.tensors)],
        gradients(plain, case.tensors),
        gradients(wanted, truth.tensors),
        factor=3.0,
    )


@backends
@dtypes
@pytest.mark.parametrize("causal", [False, True])
def test_chunks(backend: str, dtype: torch.dtype, causal: bool) -> None:
    time, chunk_size = 300, 64
    here = tuple(
        random_tensor(2, 2, time, 64, dtype=dtype, seed=n).requires_grad_() for n in range(3)
    )
    there = tuple(map(on_gpu, here))
    wide = tuple(x.detach().double().requires_grad_() for x in here)
    summaries = [chunk_summaries(k, v, chunk_size) for _, k, v in (there, here, wide)]
    ours = chunked_attention(
        *there, chunk_size, causal=causal, summaries=summaries[0], backend=backend
    )
    assert isinstance(ours, Tensor)
    ours = ours.cpu()
    plain, wanted = (
        oracle.chunked(*x, chunk_size, 1, 0, causal, summaries=y)[0]
        for x, y in zip((here, wide), summaries[1:], strict=True)
    )
    assert_within_error_rule([ours], [plain], [wanted])
    assert_within_error_rule(
        [x.cpu() for x in gradients((ours,), there)],
        gradients((plain,), here),
        gradients((wanted,), wide),
        factor=3.0,
    )
