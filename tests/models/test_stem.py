"""Folding samples into tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmer.models.stem import PatchEmbedding


def test_a_token_is_one_projection_of_its_samples_in_order() -> None:
    stem = PatchEmbedding(3, 5, patch=2)
    x = torch.randn(2, 6, 3)
    times = torch.arange(6.0).expand(2, -1)
    tokens = stem(x, torch.ones(2, 6, dtype=torch.bool), times)
    wanted = torch.cat((x[:, 2], x[:, 3]), dim=-1) @ stem.projection.weight.T
    torch.testing.assert_close(tokens.values[:, 1], wanted + stem.projection.bias)
    torch.testing.assert_close(tokens.times, torch.tensor([[0.5, 2.5, 4.5]]).expand(2, -1))
    assert tokens.mask.all()


@given(
    time=st.integers(1, 11), patch=st.integers(1, 4), seed=st.integers(0, 99), hide=st.floats(0, 1)
)
def test_masks_and_times_of_tokens(time: int, patch: int, seed: int, hide: float) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(2, time) > hide
    times = torch.rand(2, time)
    stem = PatchEmbedding(2, 3, patch=patch)
    junk = torch.randn(2, time, 2).masked_fill(~mask[..., None], math.nan)
    tokens = stem(junk, mask, times.masked_fill(~mask, math.inf))
    assert tokens.values.shape == (2, -(-time // patch), 3)
    for item in range(2):
        for token in range(tokens.mask.shape[1]):
            inside = slice(token * patch, (token + 1) * patch)
            real = mask[item, inside]
            assert tokens.mask[item, token] == real.any()
            if real.any():
                wanted = times[item, inside][real].mean()
                torch.testing.assert_close(tokens.times[item, token], wanted)
            else:
                assert (tokens.values[item, token] == 0).all()
                assert tokens.times[item, token] == 0
    assert tokens.values.isfinite().all()


def test_a_constant_signal_gives_the_same_token_however_many_samples_it_lost() -> None:
    stem = PatchEmbedding(2, 3, patch=4)
    mask = torch.tensor([[True] * 4, [True, False, False, True], [False, True, False, False]])
    level = torch.tensor([1.5, -2.0]).expand(3, 4, 2)
    tokens = stem(level.masked_fill(~mask[..., None], math.inf), mask, torch.zeros(3, 4))
    torch.testing.assert_close(tokens.values, tokens.values[:1].expand(3, -1, -1))


def test_padding_gets_no_gradient_and_leaks_none() -> None:
    stem = PatchEmbedding(2, 3, patch=3, normalize=True)
    mask = torch.tensor([[True, False, True, True, False]])
    x = torch.randn(1, 5, 2).masked_fill(~mask[..., None], math.nan).requires_grad_()
    stem(x, mask, torch.zeros(1, 5)).values.square().sum().backward()
    for tensor in (x, *stem.parameters()):
        assert tensor.grad.isfinite().all()
    assert (x.grad[~mask] == 0).all()


def test_normalize_takes_each_samples_scale_away() -> None:
    stem = PatchEmbedding(8, 3, normalize=True)
    x, mask, times = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4)
    wanted = nn.functional.linear(
        nn.functional.layer_norm(x, (8,)), stem.projection.weight, stem.projection.bias
    )
    torch.testing.assert_close(stem(x, mask, times).values, wanted)
    torch.testing.assert_close(stem(100 * x, mask, times).values, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("patch", [1, 3])
def test_no_samples_give_no_tokens(patch: int) -> None:
    empty = torch.zeros(2, 0, dtype=torch.bool)
    tokens = PatchEmbedding(2, 3, patch=patch)(torch.zeros(2, 0, 2), empty, torch.zeros(2, 0))
    assert tokens.values.shape == (2, 0, 3)
