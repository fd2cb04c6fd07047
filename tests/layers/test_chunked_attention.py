"""Chunked temporal attention: its definition, positions in seconds, and streams."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmer.layers import ChunkedTemporalAttention
from mmer.layers.rotary import rotary_angles, rotate


def made(**options: object) -> ChunkedTemporalAttention:
    torch.manual_seed(0)
    layer = ChunkedTemporalAttention(
        **{"embed_dim": 8, "num_heads": 2, "chunk_size": 3, "dtype": torch.float64, **options}
    ).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def plain(layer: ChunkedTemporalAttention, x: Tensor, mask: Tensor, times: Tensor) -> Tensor:
    """The layer's definition with a time x time mask."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)

    sizes = [layer.num_heads * layer.head_dim] * 2 + [layer.num_heads * layer.value_dim]
    query, key, value = (heads(part) for part in layer.to_qkv(x).split(sizes, dim=-1))
    if layer.rotary:
        pairs = layer.head_dim // 2
        steps = torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1)
        wavelength = layer.min_wavelength * (layer.max_wavelength / layer.min_wavelength) ** steps
        phase = torch.polar(
            torch.ones(()).double(), 2 * math.pi * times[:, None, :, None] / wavelength
        )

        def turn(x: Tensor) -> Tensor:
            turned = torch.complex(x[..., :pairs], x[..., pairs : 2 * pairs]) * phase
            return torch.cat((turned.real, turned.imag, x[..., 2 * pairs :]), dim=-1)

        query, key = turn(query), turn(key)
    index = torch.arange(x.shape[1])
    chunk = index // layer.chunk_size
    lookahead = 0 if layer.causal else layer.lookahead
    distance = chunk[:, None] - chunk[None, :]
    visible = (distance <= layer.lookback) & (distance >= -lookahead)
    if layer.causal:
        visible &= index[None, :] <= index[:, None]
    scores = layer.scale * query @ key.transpose(-1, -2)
    scores = scores.masked_fill(~(visible & mask[:, None, None, :]), -math.inf)
    out = scores.softmax(dim=-1).nan_to_num(0.0) @ value
    return layer.to_out(out.transpose(1, 2).flatten(2)) * mask[..., None]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.integers(0, 14),
    chunk_size=st.integers(1, 5),
    lookback=st.integers(0, 2),
    lookahead=st.integers(0, 2),
    causal=st.booleans(),
    rotary=st.booleans(),
    head_dim=st.integers(1, 5),
)
def test_is_the_plain_definition(
    seed: int,
    time: int,
    chunk_size: int,
    lookback: int,
    lookahead: int,
    causal: bool,
    rotary: bool,
    head_dim: int,
) -> None:
    layer = made(
        chunk_size=chunk_size,
        lookback=lookback,
        lookahead=lookahead,
        causal=causal,
        rotary=rotary,
        head_dim=head_dim,
        value_dim=3,
    )
    torch.manual_seed(seed)
    x = torch.randn(2, time, 8, dtype=torch.float64)
    mask = torch.rand(2, time) < 0.7
    times = torch.rand(2, time, dtype=torch.float64).cumsum(dim=1)
    got = layer(x, mask=mask, times=times)
    torch.testing.assert_close(got, plain(layer, x, mask, times))


@pytest.mark.parametrize("summaries", [False, True])
def test_only_differences_of_times_matter(summaries: bool) -> None:
    layer = made(summaries=summaries, lookback=0, min_wavelength=1.5)
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    times = torch.rand(2, 13, dtype=torch.float64).cumsum(dim=1)
    here = layer(x, times=times)
    torch.testing.assert_close(layer(x, times=times + 123_456.789), here, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(layer(x, times=times * 1.5), here, rtol=1e-3)


def test_times_are_seconds_of_one_step_each_by_default() -> None:
    layer = made()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    times = torch.arange(7, dtype=torch.float64).expand(2, -1)
    torch.testing.assert_close(layer(x), layer(x, times=times), rtol=0, atol=0)


def test_without_rotary_times_do_not_matter() -> None:
    layer = made(rotary=False)
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x, times=torch.rand(1, 7)), layer(x), rtol=0, atol=0)


def test_rotation_turns_once_per_wavelength_and_keeps_lengths() -> None:
    times = torch.tensor([[0.0, 2.0, 50.0, 1.0]])
    angles = rotary_angles(times, 5, 2.0, 50.0)
    assert angles.shape == (1, 1, 4, 2)
    assert angles.dtype == torch.float32
    torch.testing.assert_close(angles[0, 0, 3], torch.tensor([math.pi, 2 * math.pi / 50]))
    x = torch.randn(1, 3, 4, 5)
    turned = rotate(x, angles)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[..., 4], x[..., 4], rtol=0, atol=0)
    torch.testing.assert_close(turned[:, :, 1, [0, 2]], x[:, :, 1, [0, 2]])
    torch.testing.assert_close(turned[:, :, 2, [1, 3]], x[:, :, 2, [1, 3]])


def test_an_hour_into_a_recording_angles_are_still_exact() -> None:
    late = torch.tensor([[3600.0 + 1.0]])
    torch.testing.assert_close(
        rotary_angles(late, 2, 3.0, 3.0), rotary_angles(late % 3.0, 2, 3.0, 3.0), rtol=0, atol=1e-6
    )


def test_what_sits_in_padding_does_not_matter() -> None:
    layer = made(summaries=True, lookback=0)
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    times = torch.arange(9, dtype=torch.float64)[None]
    mask = torch.tensor([[True, True, False, True, True, True, True, False, False]])
    clean = layer(x.masked_fill(~mask[..., None], 0.0), mask=mask, times=times)
    for junk in (math.nan, math.inf):
        dirty = x.masked_fill(~mask[..., None], junk).requires_grad_()
        out = layer(dirty, mask=mask, times=times.masked_fill(~mask, junk))
        torch.testing.assert_close(out, clean, rtol=0, atol=0)
        assert (out[~mask] == 0).all()
        out.sum().backward()
        for tensor in (dirty, *layer.parameters()):
            assert tensor.grad.isfinite().all()
    torch.testing.assert_close(layer(x[:, :7], mask=mask[:, :7], times=times[:, :7]), clean[:, :7])


STREAMS = [
    {"causal": True},
    {"causal": True, "lookback": 2, "chunk_size": 1},
    {"lookback": 1, "lookahead": 0},
    {"lookback": 2, "lookahead": 1},
    {"lookback": 0, "lookahead": 1, "summaries": True},
    {"causal": True, "lookback": 1, "summaries": True, "max_summaries": 2},
]


@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("pieces", [[1] * 17, [5, 0, 1, 11], [17]])
def test_a_stream_gives_what_the_recording_gives(options: dict, pieces: list[int]) -> None:
    layer = made(**options)
    x = torch.randn(2, 17, 8, dtype=torch.float64)
    mask = torch.rand(2, 17) < 0.8
    times = torch.rand(2, 17, dtype=torch.float64).cumsum(dim=1)
    state = layer.init_state(2)
    outputs = []
    for piece in zip(*(tensor.split(pieces, dim=1) for tensor in (x, mask, times)), strict=True):
        outputs.append(layer.step(piece[0], state, mask=piece[1], times=piece[2]))
        assert (state.ready == outputs[-1].shape[1]).all()
        if layer.causal:
            assert outputs[-1].shape[1] == piece[0].shape[1]
        state = pickle.loads(pickle.dumps(state))
    outputs.append(layer.flush(state))
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x, mask=mask, times=times))
    assert (state.waiting == 0).all()


@pytest.mark.parametrize("options", STREAMS)
def test_streams_of_a_batch_start_pause_and_end_on_their_own(options: dict) -> None:
    layer = made(**options)
    torch.manual_seed(1)
    x = torch.randn(3, 17, 8, dtype=torch.float64)
    mask = torch.rand(3, 17) < 0.8
    state = layer.init_state(3)
    given, outputs = torch.zeros(3, dtype=torch.int64), [[], [], []]
    steps = [[4, 0, 1], [0, 9, 3], [2, 1, 0], [7, 7, 7]]
    for lengths in map(torch.tensor, steps):
        longest = int(lengths.max())
        index = (given[:, None] + torch.arange(longest)).clamp(max=16)
        piece = x.gather(1, index[..., None].expand(-1, -1, 8))
        piece = piece.masked_fill((torch.arange(longest) >= lengths[:, None])[..., None], math.nan)
        out = layer.step(piece, state, mask=mask.gather(1, index), lengths=lengths)
        given = given + lengths
        for stream, ready in enumerate(state.ready.tolist()):
            outputs[stream].append(out[stream, :ready])
            assert (out[stream, ready:] == 0).all()
    for stream in (1, 0, 2):
        out = layer.flush(state, torch.arange(3) == stream)
        outputs[stream].append(out[stream])
    for stream, length in enumerate(given.tolist()):
        wanted = layer(x[stream : stream + 1, :length], mask=mask[stream : stream + 1, :length])
        torch.testing.assert_close(torch.cat(outputs[stream])[None], wanted)


def test_a_flushed_stream_begins_anew() -> None:
    layer = made(summaries=True, lookback=0)
    x = torch.randn(2, 8, 8, dtype=torch.float64)
    state = layer.init_state(2)
    layer.step(torch.randn(2, 5, 8, dtype=torch.float64), state)
    layer.flush(state)
    out = torch.cat((layer.step(x, state), layer.flush(state)), dim=1)
    torch.testing.assert_close(out, layer(x))


def test_a_state_can_be_saved_and_restored(tmp_path) -> None:
    layer = made(lookahead=1)
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    state = layer.init_state(2)
    first = layer.step(x[:, :5], state)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    restored = layer.init_state(2)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = torch.cat((layer.step(x[:, 5:], restored), layer.flush(restored)), dim=1)
    torch.testing.assert_close(torch.cat((first, rest), dim=1), layer(x))
    torch.testing.assert_close(
        torch.cat((layer.step(x[:, 5:], state), layer.flush(state)), dim=1), rest, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="streams"):
        layer.init_state(3).load_state_dict(restored.state_dict())
    with pytest.raises(ValueError, match="pending"):
        layer.init_state(2).load_state_dict({"attention": {}})
    with pytest.raises(ValueError, match="chunk_size"):
        made(chunk_size=4).init_state(2).load_state_dict(restored.state_dict())


def test_a_stream_carries_no_graph_and_does_not_grow() -> None:
    layer = made(summaries=True, max_summaries=2)
    state = layer.init_state(1)
    sizes = []
    for _ in range(12):
        out = layer.step(torch.randn(1, 3, 8, dtype=torch.float64), state)
        assert not out.requires_grad
        sizes.append(len(pickle.dumps(state)))
    assert max(sizes[8:]) <= max(sizes[4:8])


def test_a_failed_step_leaves_the_state_unchanged() -> None:
    layer = made()
    state = layer.init_state(2)
    layer.step(torch.randn(2, 4, 8, dtype=torch.float64), state)
    before = copy.deepcopy(state.state_dict())
    for arguments, error, name in (
        ({"x": torch.zeros(3, 4, 8)}, ValueError, "x must have the streams"),
        ({"x": torch.zeros(2, 4, 7)}, ValueError, "x must"),
        ({"lengths": [1, 2]}, TypeError, "lengths"),
        ({"lengths": torch.tensor([[1, 2]])}, ValueError, "lengths"),
        ({"lengths": torch.tensor([1, 5])}, ValueError, "lengths"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "mask"),
        ({"times": torch.ones(2, 3)}, ValueError, "times"),
    ):
        valid = {"x": torch.zeros(2, 4, 8, dtype=torch.float64)}
        with pytest.raises(error, match=name):
            layer.step(state=state, **{**valid, **arguments})
    after = state.state_dict()
    torch.testing.assert_close(after["pending"], before["pending"])
    for name, tensor in before["attention"]["tensors"].items():
        torch.testing.assert_close(after["attention"]["tensors"][name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"embed_dim": 9}, ValueError, "embed_dim"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size"),
        ({"lookback": -1}, ValueError, "lookback"),
        ({"lookahead": -1}, ValueError, "lookahead"),
        ({"causal": 1}, TypeError, "causal"),
        ({"summaries": None}, TypeError, "summaries"),
        ({"max_summaries": 3}, ValueError, "max_summaries"),
        ({"min_wavelength": 0.0}, ValueError, "min_wavelength"),
        ({"max_wavelength": 1.0}, ValueError, "max_wavelength"),
        ({"value_dim": 0}, ValueError, "value_dim"),
        ({"dropout": -0.1}, ValueError, "dropout"),
    ],
)
def test_constructor_errors_name_the_argument(
    arguments: dict, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        made(**arguments)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_stream_needs_a_batch(batch: int) -> None:
    with pytest.raises(ValueError, match="batch"):
        made().init_state(batch)
