"""Tokens at their own times, brought to output times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmer.models.alignment import MIN_CELL, TimePooling, frame_cells, masked_softmax, to_frames
from mmer.models.stem import Tokens


def tokens(times: Tensor, values: Tensor, mask: Tensor | None = None) -> Tokens:
    if mask is None:
        mask = torch.ones_like(times, dtype=torch.bool)
    return Tokens(values.masked_fill(~mask[..., None], 0.0), mask, times.masked_fill(~mask, 0.0))


def mean_of_interpolant(
    knots: np.ndarray, values: np.ndarray, start: float, end: float
) -> np.ndarray:
    """Mean over [start, end] of the values, linear between knots, constant beyond them."""
    inner = knots[(knots > start) & (knots < end)]
    points = np.concatenate(([start], inner, [end]))
    sampled = np.stack([np.interp(points, knots, column) for column in values.T], axis=1)
    areas = 0.5 * np.diff(points)[:, None] * (sampled[1:] + sampled[:-1])
    return areas.sum(axis=0) / (end - start)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 12),
    frames=st.integers(1, 12),
    rate=st.floats(0.1, 10.0),
    offset=st.floats(-5.0, 5.0),
)
def test_is_the_mean_of_the_interpolant_over_the_frames_cell(
    seed: int, count: int, frames: int, rate: float, offset: float
) -> None:
    generator = np.random.default_rng(seed)
    knots = np.cumsum(generator.uniform(0.05, 1.0, count))
    values = generator.normal(size=(count, 3))
    times = offset + np.cumsum(generator.uniform(0.5, 1.5, frames)) / rate
    shuffled = generator.permutation(count)
    got = to_frames(
        tokens(torch.tensor(knots[shuffled])[None], torch.tensor(values[shuffled])[None]),
        torch.tensor(times)[None],
    )
    start, end = (edge[0].numpy() for edge in frame_cells(torch.tensor(times)[None]))
    wanted = [mean_of_interpolant(knots, values, *cell) for cell in zip(start, end, strict=True)]
    np.testing.assert_allclose(got[0].numpy(), np.stack(wanted), rtol=1e-6, atol=1e-9)


def test_many_tokens_are_averaged_and_few_are_interpolated() -> None:
    fast = torch.arange(0.05, 10.0, 0.1)[None]
    frames = torch.arange(0.5, 10.0)[None]
    ramp = fast[..., None].clone()
    torch.testing.assert_close(
        to_frames(tokens(fast, ramp), frames)[..., 0][:, 1:-1], frames[:, 1:-1]
    )
    alternating = torch.tensor([1.0, -1.0]).repeat(50)[None, :, None]
    assert to_frames(tokens(fast, alternating), frames).abs().max() < 0.06
    slow = torch.tensor([[0.0, 10.0]])
    got = to_frames(tokens(slow, slow[..., None].clone()), frames)
    torch.testing.assert_close(got[..., 0], frames)


def test_equal_rates_are_not_disturbed_by_rounding_at_the_cells_edges() -> None:
    """Tokens half-way between frames: on whichever side rounding puts them, little changes."""
    values, frames = torch.randn(1, 20, 4), torch.arange(1.0, 20.0)[None]
    exact = to_frames(tokens(torch.arange(20.0)[None] + 0.5, values), frames)
    neighbours = values[:, :-1] + values[:, 1:]
    torch.testing.assert_close(exact, 0.5 * neighbours)
    for noise in (1e-6, -1e-6):
        got = to_frames(tokens(torch.arange(20.0)[None] + 0.5 + noise, values), frames)
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)


def test_padding_of_tokens_and_frames_does_not_matter() -> None:
    times, values = torch.rand(1, 6).cumsum(dim=1), torch.randn(1, 6, 3)
    frames = torch.rand(1, 5).cumsum(dim=1)
    wanted = to_frames(tokens(times, values), frames)
    hole = torch.full((1, 2), math.nan)

    def stuffed(x: Tensor) -> Tensor:
        return torch.cat((hole, x[:, :2], hole, x[:, 2:], hole), dim=1)

    mask = ~stuffed(times).isnan()
    spread = torch.zeros(1, 12, 3).masked_scatter(mask[..., None].expand(-1, -1, 3), values)
    frame_mask = ~stuffed(frames).isnan()
    got = to_frames(tokens(stuffed(times), spread, mask), stuffed(frames), frame_mask)
    torch.testing.assert_close(got[frame_mask][None], wanted)
    assert got.isfinite().all()


def test_an_item_without_tokens_gives_zeros_and_finite_gradients() -> None:
    times, values = torch.rand(2, 4).cumsum(dim=1), torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    out = to_frames(tokens(times, values, mask), torch.arange(5.0).expand(2, -1))
    assert (out[1] == 0).all()
    out.square().sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[1] == 0).all()


def test_long_recordings_keep_their_precision() -> None:
    times = (torch.arange(40_000, dtype=torch.float64) / 10)[None].float()
    values = 100.0 + torch.randn(1, 40_000, 1)
    frames = torch.arange(0.0, 4000.0)[None]
    got = to_frames(tokens(times, values), frames)
    wanted = to_frames(tokens(times.double(), values.double()), frames.double())
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-3)


def test_values_are_held_beyond_the_last_token_however_far() -> None:
    frames = torch.tensor([[1e6, 1e6 + 1, 1e6 + 2]])
    values = torch.tensor([[[3.0], [7.0]]])
    got = to_frames(tokens(torch.tensor([[0.0, 1.0]]), values), frames)
    torch.testing.assert_close(got, torch.full((1, 3, 1), 7.0))
    torch.testing.assert_close(
        to_frames(tokens(torch.tensor([[0.0, 1.0]]), values), frames - 2e6),
        torch.full((1, 3, 1), 3.0),
    )


def test_equal_token_times_do_no_harm() -> None:
    values = torch.randn(1, 4, 2, requires_grad=True)
    out = to_frames(tokens(torch.tensor([[0.0, 1.0, 1.0, 1.0]]), values), torch.arange(3.0)[None])
    out.sum().backward()
    assert out.isfinite().all()
    assert values.grad.isfinite().all()


def test_cells_tile_time() -> None:
    times = torch.tensor([[0.0, 1.0, 3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False, False]])
    start, end = frame_cells(times, mask)
    assert start[0, :3].tolist() == [-0.5, 0.5, 2.0]
    assert end[0, :3].tolist() == [0.5, 2.0, 4.0]
    start, end = frame_cells(torch.tensor([[7.0]]))
    torch.testing.assert_close(end - start, torch.full((1, 1), MIN_CELL, dtype=torch.float64))


def test_masked_softmax_skips_and_never_divides_by_nothing() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1e30, -1e30, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    weights = masked_softmax(scores, mask, dim=1)
    torch.testing.assert_close(weights[0, [0, 2]], scores[0, [0, 2]].softmax(dim=0))
    assert (weights[~mask] == 0).all()
    weights[0, 0].backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("attention", [False, True])
def test_pooling_reads_real_tokens_only(attention: bool) -> None:
    pooling = TimePooling(3, attention=attention)
    values = torch.randn(2, 5, 3)
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    sequence = tokens(torch.zeros(2, 5), values, mask)
    out = pooling(sequence)
    assert out.shape == (2, 1, 3)
    assert (out[1] == 0).all()
    weights = torch.full((3, 1), 1 / 3)
    if attention:
        weights = pooling.score(values[0, :3]).softmax(dim=0)
    torch.testing.assert_close(out[0, 0], (weights * values[0, :3]).sum(dim=0))
