"""Bad arguments are refused before anything runs, by an error that names the argument."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmer.kernels import chunk_summaries, chunked_attention, explain, shared_cross_attention
from tests.kernels.cases import OPERATORS, make_pair

operators = pytest.mark.parametrize("operator", OPERATORS)
ONES = torch.ones

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask_a": ONES(2, 17)}, TypeError, "mask_a must be bool"),
    ({"mask_a": [True]}, TypeError, "mask_a must be a torch.Tensor, got list"),
    ({"mask_b": ONES(2, 17, dtype=torch.bool)}, ValueError, r"mask_b must have shape \(2, 33\)"),
    ({"mask_b": ONES(3, 33, dtype=torch.bool)}, ValueError, r"mask_b .* got \(3, 33\)"),
    ({"mask_a": ONES(2, 17, dtype=torch.bool, device="meta")}, ValueError, "mask_a must be on cpu"),
    ({"times_a": ONES(2, 17)}, ValueError, "times_b must be given with times_a"),
    ({"times_b": ONES(2, 33)}, ValueError, "times_a must be given with times_b"),
    (
        {"times_a": ONES(2, 17).long(), "times_b": ONES(2, 33)},
        TypeError,
        "times_a must be floating",
    ),
    ({"times_a": ONES(2, 16), "times_b": ONES(2, 33)}, ValueError, "times_a must have shape"),
    (
        {"times_a": ONES(2, 17).requires_grad_(), "times_b": ONES(2, 33)},
        ValueError,
        "times_a must not require a gradient",
    ),
    ({"decay": ONES(2)}, ValueError, "times_a and times_b must be given with decay"),
    ({"max_gap": 1.0}, ValueError, "times_a and times_b must be given with max_gap"),
    (
        {"times_a": ONES(2, 17), "times_b": ONES(2, 33), "decay": ONES(3)},
        ValueError,
        r"decay must have shape \(2,\), got \(3,\)",
    ),
    (
        {"times_a": ONES(2, 17), "times_b": ONES(2, 33), "max_gap": -1.0},
        ValueError,
        r"max_gap must be in \[0, inf\], got -1",
    ),
    ({"scale": math.nan}, ValueError, "scale must be finite"),
    ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    ({"dropout_p": 1.5}, ValueError, r"dropout_p must be in \[0, 1\], got 1.5"),
    ({"dropout_p": math.nan}, ValueError, "dropout_p must be in"),
    ({"dropout_p": 0.5, "dropout_seed": 1.0}, TypeError, "dropout_seed must be an int"),
    ({"dropout_p": 0.5, "dropout_seed": 2**64}, ValueError, "dropout_seed must fit in 64 bits"),
    ({"dropout_p": 0.5, "dropout_seed": ONES(2).long()}, ValueError, "dropout_seed must be 0-dim"),
    ({"deterministic": 1}, TypeError, "deterministic must be a bool"),
    ({"backend": "fast"}, ValueError, 'backend must be "auto" or one of'),
]


@operators
@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_options(
    operator: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    case = make_pair(operator, dtype=torch.float32)
    with pytest.raises(error, match=message):
        case.run(**options)


@operators
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: None, TypeError, "must be a torch.Tensor, got NoneType"),
        (lambda x: x[0], ValueError, r"must have shape \(batch, heads, time, dim\)"),
        (lambda x: x.int(), TypeError, "must be float32, float16, bfloat16 or float64"),
        (
            lambda x: x.repeat(1, 1, 1, 40),
            ValueError,
            "must have a last dimension from 1 to 256, got 320",
        ),
        (lambda x: x[..., :0], ValueError, "must have a last dimension from 1 to 256, got 0"),
        (lambda x: x.to_sparse(), TypeError, r"must be a dense \(strided\) tensor"),
    ],
)
def test_tensors(
    operator: str, place: int, change: Any, error: type[Exception], message: str
) -> None:
    tensors: list[Any] = list(make_pair(operator, dtype=torch.float32).tensors)
    names = OPERATORS[operator].__code__.co_varnames
    tensors[place] = change(tensors[place].detach())
    with pytest.raises(error, match=f"{names[place]} {message}"):
        OPERATORS[operator](*tensors)


@operators
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.double(), TypeError, "must have the dtype of"),
        (lambda x: x.to("meta"), ValueError, "must be on the device of"),
        (lambda x: x[:, :1], ValueError, "must have as many heads as"),
        (lambda x: torch.cat((x, x, x)), ValueError, "must have the batch size of"),
        (lambda x: x[:, :, 1:], ValueError, "must have the time of"),
    ],
)
def test_last_value_must_fit(
    operator: str, change: Any, error: type[Exception], message: str
) -> None:
    tensors = list(make_pair(operator, dtype=torch.float32).tensors)
    tensors[-1] = change(tensors[-1].detach())
    with pytest.raises(error, match=f"v_b {message}"):
        OPERATORS[operator](*tensors)


def test_sides_must_fit() -> None:
    a, b = torch.randn(2, 1, 4, 8), torch.randn(3, 1, 5, 8)
    with pytest.raises(
        ValueError, match="qk_b must have the batch size of qk_a, 2, or one of them 1"
    ):
        shared_cross_attention(a, b, a, b)
    with pytest.raises(ValueError, match="qk_b must have the head_dim of qk_a, 8, got 7"):
        shared_cross_attention(a, b[:2, ..., :7], a, b[:2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size must be an int, got float"),
        ({"chunk_size": True}, TypeError, "chunk_size must be an int, got bool"),
        ({"lookback": -1}, ValueError, "lookback must be at least 0"),
        ({"lookahead": -1}, ValueError, "lookahead must be at least 0"),
        ({"causal": 1}, TypeError, "causal must be a bool"),
        ({"max_summaries": -1}, ValueError, "max_summaries must be at least 0"),
        ({"summaries": 1}, TypeError, r"summaries must be a pair \(k_s, v_s\), got int"),
        (
            {"summaries": (ONES(2, 1, 4, 4), ONES(2, 1, 3, 4))},
            ValueError,
            r"summaries\[0\] must have shape \(batch, heads, chunks, dim\) = \(2, 1, 3, 4\)",
        ),
        ({"mask": ONES(2, 12)}, TypeError, "mask must be bool"),
        ({"mask": ONES(1, 12, dtype=torch.bool)}, ValueError, r"mask must have shape \(2, 12\)"),
    ],
)
def test_chunked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    q = torch.randn(2, 1, 12, 4)
    with pytest.raises(error, match=message):
        chunked_attention(q, q, q, **{"chunk_size": 4, **options})


def test_chunked_tensors() -> None:
    q = torch.randn(2, 1, 12, 4)
    with pytest.raises(ValueError, match="k must have the time of q, 12, got 11"):
        chunked_attention(q, q[:, :, 1:], q, 4)
    with pytest.raises(ValueError, match="k must have the head_dim of q, 4, got 3"):
        chunked_attention(q, q[..., 1:], q, 4)
    with pytest.raises(ValueError, match="v must have the time of k, 12, got 11"):
        chunk_summaries(q, q[:, :, 1:], 4)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@operators
def test_an_explicit_backend_never_falls_back(operator: str, backend: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=f"backend '{backend}' cannot run {operator}: "):
        case.run(backend=backend)


def test_explain() -> None:
    case = make_pair("shared_cross_attention", dtype=torch.float32)
    explanation = explain(shared_cross_attention, *case.tensors, backend="reference")
    assert explanation.reasons[explanation.chosen] == "chosen"
    assert set(explanation.reasons) == {"cuda", "triton", "cpu", "reference"}
    assert all(reason for reason in explanation.reasons.values())
    assert "reference" in str(explanation)
    assert set(explain("chunked_attention").reasons) == set(explanation.reasons)
    with pytest.raises(ValueError, match="op must be one of"):
        explain("softmax")
    with pytest.raises(TypeError, match="mask_a must be bool"):
        explain("shared_cross_attention", *case.tensors, mask_a=torch.ones(2, 17))
