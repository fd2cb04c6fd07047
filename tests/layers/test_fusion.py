"""The fusion block: pre-norm, gates, and a side that may be missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmer.layers import FusionBlock

ATTENTIONS = ["bidirectional", "shared"]


def made(**options: object) -> FusionBlock:
    torch.manual_seed(0)
    layer = FusionBlock(**{"embed_dim": 8, "num_heads": 2, "dim_a": 6, "dim_b": 4, **options})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_is_the_documented_formula(attention: str) -> None:
    block = made(attention=attention)
    x_a, x_b = torch.randn(2, 5, 6), torch.randn(2, 7, 4)
    from_b, from_a = block.attention(block.side_a.norm(x_a), block.side_b.norm(x_b))
    for got, x, update, side in zip(
        block(x_a, x_b), (x_a, x_b), (from_b, from_a), (block.side_a, block.side_b), strict=True
    ):
        middle = x + side.gate * update
        forward = side.feed_forward.widen(side.feed_forward_norm(middle))
        wanted = middle + side.feed_forward.narrow(nn.functional.gelu(forward))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_missing_side_leaves_the_other_exactly_as_without_it(attention: str) -> None:
    block = made(attention=attention, time_decay=True, max_gap=50.0)
    x_a, x_b = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 7, 4)
    times_a, times_b = torch.rand(3, 5), torch.rand(3, 7)
    mask_b = torch.ones(3, 7, dtype=torch.bool)
    mask_b[1] = False
    x_b[1] = math.nan
    out_a, out_b = block(x_a, x_b, mask_b=mask_b, times_a=times_a, times_b=times_b)
    alone, nothing = block(x_a, None, times_a=times_a)
    assert nothing is None
    assert torch.equal(out_a[1], alone[1])
    assert not torch.allclose(out_a[0], alone[0])
    assert (out_b[1] == 0).all()
    (out_a.sum() + out_b.sum()).backward()
    for tensor in (x_a, *block.parameters()):
        assert tensor.grad.isfinite().all()
    _, only_b = block(None, x_b, mask_b=mask_b)
    assert only_b.shape == (3, 7, 4)
    assert torch.equal(only_b[1], out_b[1])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_does_not_matter(attention: str) -> None:
    block = made(attention=attention)
    x_a, x_b = torch.randn(1, 5, 6), torch.randn(1, 7, 4)
    hole = torch.full((1, 2, 6), math.nan)
    mask_a = torch.tensor([[False, False, True, True, True, True, True]])
    out_a, out_b = block(torch.cat((hole, x_a), dim=1), x_b, mask_a=mask_a)
    wanted_a, wanted_b = block(x_a, x_b)
    assert (out_a[:, :2] == 0).all()
    torch.testing.assert_close(out_a[:, 2:], wanted_a)
    torch.testing.assert_close(out_b, wanted_b)


def test_closed_gates_start_as_if_there_were_no_other_side_and_open_in_training() -> None:
    torch.manual_seed(0)
    block = FusionBlock(8, 2, gate_init=0.0)
    x_a, x_b = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    out_a, _ = block(x_a, x_b)
    torch.testing.assert_close(out_a, block(x_a, None)[0])
    out_a.sum().backward()
    assert (block.side_a.gate.grad != 0).any()


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"attention": "both"}, ValueError, "attention must be one of"),
        ({"attention_dropout": 1.0}, ValueError, "attention_dropout"),
        ({"gate_init": math.nan}, ValueError, "gate_init"),
        ({"gate_init": "0"}, TypeError, "gate_init"),
        ({"expansion": 0}, ValueError, "expansion"),
        ({"dropout": 2.0}, ValueError, "dropout"),
    ],
)
def test_constructor_errors_name_the_argument(
    arguments: dict, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        made(**arguments)


def test_forward_errors_name_the_argument() -> None:
    block = made()
    with pytest.raises(ValueError, match="x_a must have shape"):
        block(torch.zeros(2, 5, 4), None)
    with pytest.raises(ValueError, match="mask_b must have shape"):
        block(None, torch.zeros(2, 5, 4), mask_b=torch.ones(2, 4, dtype=torch.bool))
