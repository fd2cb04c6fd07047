"""A pair of ``nn.MultiheadAttention`` and the one layer that it becomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.replacement import merge_multihead_attention
from tests.error_rule import assert_within_error_rule, random_tensor
from tests.replacement.parity import randomise, results

REAL_A = torch.arange(17) < torch.tensor([[17], [9]])
REAL_B = torch.arange(40) < torch.tensor([[31], [40]])


class Pair(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.a_from_b = nn.MultiheadAttention(24, 3, batch_first=True, **options)
        self.b_from_a = nn.MultiheadAttention(24, 3, batch_first=True, **options)

    def forward(
        self, a: Tensor, b: Tensor, real_a: Tensor, real_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (
            self.a_from_b(a, b, b, key_padding_mask=~real_b)[0],
            self.b_from_a(b, a, a, key_padding_mask=~real_a)[0],
        )


@pytest.mark.parametrize("bias", [False, True])
def test_the_same_numbers(bias: bool) -> None:
    pair = randomise(Pair(bias=bias))
    layer = merge_multihead_attention(pair.a_from_b, pair.b_from_a)
    inputs = [random_tensor(2, n, 24, dtype=torch.float32, seed=n) for n in (17, 40)]

    def theirs(module: nn.Module, x: list[Tensor]) -> list[Tensor]:
        out_a, out_b = module(*x, REAL_A, REAL_B)
        return [out_a[REAL_A], out_b[REAL_B]]

    def ours(module: nn.Module, x: list[Tensor]) -> list[Tensor]:
        out_a, out_b = module(*x, mask_a=REAL_A, mask_b=REAL_B)
        return [out_a[REAL_A], out_b[REAL_B]]

    got = results(layer, ours, inputs)
    plain = results(pair, theirs, inputs)
    oracle = results(randomise(Pair(bias=bias)).double(), theirs, [x.double() for x in inputs])
    assert_within_error_rule(got[0], plain[0], oracle[0])
    # The parameters come in another order: those of the inputs are compared.
    assert_within_error_rule(got[1][:2], plain[1][:2], oracle[1][:2], factor=3.0)


def test_mode_dtype_and_dropout_are_kept() -> None:
    pair = Pair(dropout=0.25, dtype=torch.float64).eval()
    layer = merge_multihead_attention(pair.a_from_b, pair.b_from_a, backend="reference")
    assert not layer.training
    assert layer.dropout == 0.25
    assert layer.backend == "reference"
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 12}, "embed_dim"),
        ({"num_heads": 2}, "num_heads"),
        ({"dropout": 0.1}, "dropout"),
        ({"bias": False}, "biases"),
        ({"add_bias_kv": True}, "add_bias_kv"),
        ({"add_zero_attn": True}, "add_zero_attn"),
        ({"kdim": 8, "vdim": 8}, "kdim"),
    ],
)
def test_what_cannot_be_merged(options: dict[str, Any], message: str) -> None:
    other = nn.MultiheadAttention(**{"embed_dim": 24, "num_heads": 3, **options})
    with pytest.raises(ValueError, match=message):
        merge_multihead_attention(nn.MultiheadAttention(24, 3), other)


def test_no_attention_at_all() -> None:
    with pytest.raises(TypeError, match="b_from_a"):
        merge_multihead_attention(nn.MultiheadAttention(24, 3), nn.Linear(2, 2))


def test_a_model_with_such_a_pair_is_told_of_it() -> None:
    with pytest.warns(UserWarning, match="merge_multihead_attention"):
        replacement = replace_attention(Pair())
    assert list(replacement.left_alone) == ["a_from_b", "b_from_a"]
