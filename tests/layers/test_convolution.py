"""The temporal convolutional network: reach, causality, and padding that never leaks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmer.layers import TemporalConvNet


def made(**options: object) -> TemporalConvNet:
    torch.manual_seed(0)
    arguments = {"in_features": 3, "channels": [4, 4], "kernel_size": 3, "dtype": torch.float64}
    layer = TemporalConvNet(**{**arguments, **options}).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def test_one_block_is_what_the_paper_draws() -> None:
    layer = made(channels=[5])
    block = layer.blocks[0]
    x = torch.randn(2, 9, 3, dtype=torch.float64)

    def half(x: torch.Tensor, convolution: nn.Module, norm: nn.LayerNorm) -> torch.Tensor:
        out = nn.functional.conv1d(x.mT, convolution.weight, convolution.bias, padding=1).mT
        return nn.functional.layer_norm(out, (5,), norm.weight, norm.bias).relu()

    hidden = half(half(x, block.convolution_1, block.norm_1), block.convolution_2, block.norm_2)
    wanted = block.shortcut(x) + hidden
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation_base", [1, 2, 3])
def test_reaches_exactly_its_receptive_field(causal: bool, dilation_base: int) -> None:
    layer = made(causal=causal, dilation_base=dilation_base)
    reach = layer.receptive_field - 1
    before, after = (reach, 0) if causal else (reach // 2, reach // 2)
    # Many items, for a rectifier lets nothing through half of the time.
    x = torch.randn(64, 2 * reach + 5, 3, dtype=torch.float64, requires_grad=True)
    middle = reach + 2
    layer(x)[:, middle].sum().backward()
    touched = x.grad.abs().sum(dim=(0, 2)).nonzero().flatten()
    assert touched.min() == middle - before
    assert touched.max() == middle + after


@pytest.mark.parametrize("causal", [False, True])
@given(lead=st.integers(0, 4), tail=st.integers(0, 4), junk=st.sampled_from([0.0, 7.0, math.nan]))
def test_a_padded_batch_gives_what_each_recording_gives(
    causal: bool, lead: int, tail: int, junk: float
) -> None:
    layer = made(causal=causal)
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    padded = torch.full((2, lead + 6 + tail, 3), junk, dtype=torch.float64)
    mask = torch.zeros(2, lead + 6 + tail, dtype=torch.bool)
    padded[0, lead : lead + 6] = x
    mask[0, lead : lead + 6] = True
    out = layer(padded, mask=mask)
    torch.testing.assert_close(out[:1, lead : lead + 6], layer(x))
    assert (out[~mask] == 0).all()


def test_holes_count_as_zeros_and_gradients_stay_finite() -> None:
    layer = made()
    mask = torch.tensor([[True, True, False, True, True]])
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    dirty = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
    out = layer(dirty, mask=mask)
    torch.testing.assert_close(out, layer(x, mask=mask))
    out.sum().backward()
    for tensor in (dirty, *layer.parameters()):
        assert tensor.grad.isfinite().all()
    assert (dirty.grad[0, 2] == 0).all()


def test_other_items_of_the_batch_do_not_matter() -> None:
    layer = made().train()
    layer.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout1d) else None)
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_dropout_drops_whole_channels_in_training_only() -> None:
    layer = made(in_features=4, channels=[4], dropout=0.5)
    x = torch.zeros(64, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.blocks[0].norm_2.bias.fill_(1.0)
        layer.blocks[0].norm_2.weight.zero_()
    kept = layer.train()(x)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()
    assert (layer.eval()(x) == 1.0).all()


def test_an_empty_sequence_stays_empty() -> None:
    assert made(channels=[4, 6])(torch.zeros(2, 0, 3, dtype=torch.float64)).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"in_features": 0}, ValueError, "in_features"),
        ({"channels": []}, ValueError, "channels"),
        ({"channels": [4, 0]}, ValueError, r"channels\[1\]"),
        ({"kernel_size": 4}, ValueError, "kernel_size"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"dilation_base": 0}, ValueError, "dilation_base"),
        ({"dropout": 1}, ValueError, "dropout"),
    ],
)
def test_constructor_errors_name_the_argument(
    arguments: dict, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        made(**arguments)


def test_an_even_kernel_is_fine_when_causal() -> None:
    assert made(kernel_size=4, causal=True).receptive_field == 1 + 2 * 3 * 3


def test_forward_errors_name_the_argument() -> None:
    layer = made()
    with pytest.raises(ValueError, match="x must have shape"):
        layer(torch.zeros(2, 5, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match="mask must be bool"):
        layer(torch.zeros(2, 5, 3, dtype=torch.float64), mask=torch.ones(2, 5))
