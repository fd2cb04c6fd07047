"""A stream in pieces gives what the whole recording gives."""

from __future__ import annotations

import io
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from mmer.kernels import (
    ChunkedAttentionState,
    available_backends,
    chunk_summaries,
    chunked_attention,
    chunked_attention_step,
    cpu,
)
from tests.error_rule import assert_within_error_rule, random_mask, random_tensor


def recording(streams: int, time: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(
        random_tensor(streams, 2, time, dim, dtype=dtype, seed=n) for n, dim in enumerate((4, 4, 3))
    )


def whole(inputs: tuple[Tensor, ...], mask: Tensor | None = None, **options: Any) -> Tensor:
    q, k, v = inputs
    if options.pop("summaries", False):
        options["summaries"] = chunk_summaries(k, v, options["chunk_size"], mask=mask)
    out = chunked_attention(q, k, v, mask=mask, **options)
    assert isinstance(out, Tensor)
    return out


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    pieces=st.lists(st.integers(0, 13), min_size=1, max_size=8),
    chunk_size=st.integers(1, 5),
    lookback=st.integers(0, 3),
    lookahead=st.integers(0, 2),
    causal=st.booleans(),
    summaries=st.booleans(),
    max_summaries=st.sampled_from([None, 0, 1, 2]),
    masked=st.booleans(),
)
def test_pieces_of_any_length(pieces: list[int], masked: bool, **options: Any) -> None:
    time = sum(pieces)
    inputs = recording(2, time)
    mask = random_mask(2, time, seed=5) if masked and time else None
    state = ChunkedAttentionState(**options)
    outputs, start = [], 0
    for length in pieces:
        part = slice(start, start + length)
        piece = [x[:, :, part] for x in inputs]
        outputs.append(
            chunked_attention_step(*piece, state, mask=None if mask is None else mask[:, part])
        )
        start += length
        lookahead = 0 if options["causal"] else options["lookahead"]
        chunks = max(start // options["chunk_size"] - lookahead, 0)
        due = start if options["causal"] else chunks * options["chunk_size"]
        assert sum(x.shape[2] for x in outputs) == due
    outputs.append(state.flush())
    torch.testing.assert_close(torch.cat(outputs, dim=2), whole(inputs, mask, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    inputs = recording(1, 20, dtype)
    options = {"chunk_size": 4, "lookahead": 1, "summaries": True}
    state = ChunkedAttentionState(**options)
    outputs = [
        chunked_attention_step(*[x[:, :, n : n + 3] for x in inputs], state)
        for n in range(0, 20, 3)
    ]
    out = torch.cat([*outputs, state.flush()], dim=2)
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out, whole(inputs, **options), rtol=4 * eps, atol=4 * eps)


def test_streams_start_pause_and_end_on_their_own() -> None:
    options = {
        "chunk_size": 3,
        "lookback": 1,
        "lookahead": 1,
        "summaries": True,
        "max_summaries": 2,
    }
    generator = torch.Generator().manual_seed(1)
    first, second = recording(3, 31), recording(3, 31)
    state = ChunkedAttentionState(**options)
    collected: list[list[Tensor]] = [[], [], []]
    lengths = [[7, 0, 31], [20, 31, 31]]
    wanted = []
    for part, inputs in zip(lengths, (first, second), strict=True):
        position = [0, 0, 0]
        while any(position[n] < part[n] for n in range(3)):
            piece = [
                min(int(torch.randint(0, 6, (), generator=generator)), part[n] - position[n])
                for n in range(3)
            ]
            longest = max(piece)
            step = [
                torch.stack(
                    [
                        torch.nn.functional.pad(
                            x[n, :, position[n] : position[n] + piece[n]],
                            (0, 0, 0, longest - piece[n]),
                            value=float("nan"),
                        )
                        for n in range(3)
                    ]
                )
                for x in inputs
            ]
            out = chunked_attention_step(*step, state, lengths=torch.tensor(piece))
            for n in range(3):
                collected[n].append(out[n, :, : state.ready[n]])
                position[n] += piece[n]
        # The streams end one by one; the others are not disturbed.
        for n in range(3):
            out = state.flush(torch.arange(3) == n)
            assert state.ready.tolist() == [int(state.ready[n]) if m == n else 0 for m in range(3)]
            collected[n].append(out[n, :, : state.ready[n]])
        wanted.append(
            [
                whole(tuple(x[n : n + 1, :, : part[n]] for x in inputs), **options)[0]
                for n in range(3)
            ]
        )
    for n in range(3):
        expected = torch.cat([wanted[0][n], wanted[1][n]], dim=1)
        torch.testing.assert_close(torch.cat(collected[n], dim=1), expected)


def test_save_and_restore() -> None:
    inputs = recording(2, 30)
    options = {"chunk_size": 4, "lookahead": 1, "summaries": True, "max_summaries": 3}
    state = ChunkedAttentionState(**options)
    outputs = [chunked_attention_step(*[x[:, :, :17] for x in inputs], state)]
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    chunked_attention_step(*[x[:, :, 17:] for x in inputs], state)
    file.seek(0)
    restored = ChunkedAttentionState(**options)
    restored.load_state_dict(torch.load(file, weights_only=True))
    outputs.append(chunked_attention_step(*[x[:, :, 17:] for x in inputs], restored))
    outputs.append(restored.flush())
    torch.testing.assert_close(torch.cat(outputs, dim=2), whole(inputs, **options))


def streamed(
    inputs: tuple[Tensor, ...], pieces: list[int], mask: Tensor | None = None, **options: Any
) -> Tensor:
    """A whole recording in pieces of the given lengths, again and again."""
    state, outputs, start, n = ChunkedAttentionState(**options), [], 0, 0
    while start < inputs[0].shape[2]:
        part = slice(start, start + pieces[n % len(pieces)])
        piece_mask = None if mask is None else mask[:, part]
        outputs.append(
            chunked_attention_step(*[x[:, :, part] for x in inputs], state, mask=piece_mask)
        )
        start, n = part.stop, n + 1
    return torch.cat([*outputs, state.flush()], dim=2)


STREAMS = [
    {"chunk_size": 16, "causal": True},
    {"chunk_size": 16, "lookback": 2, "lookahead": 1},
    {"chunk_size": 5, "lookahead": 1, "summaries": True, "max_summaries": 7},
    {"chunk_size": 70, "causal": True, "summaries": True},
]
needs_kernels = pytest.mark.skipif("cpu" not in available_backends(), reason="no CPU kernels")


@needs_kernels
@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_follow_the_error_rule(
    options: dict[str, Any], masked: bool, dtype: torch.dtype
) -> None:
    inputs = recording(2, 150, dtype)
    mask = random_mask(2, 150, seed=3) if masked else None
    truth = whole(tuple(x.double() for x in inputs), mask, **options)
    plain = streamed(inputs, [13, 1, 40], mask, **options, backend="reference")
    # NaN in padded steps stays there.
    if mask is not None:
        inputs = tuple(x.masked_fill(~mask[:, None, :, None], float("nan")) for x in inputs)
    ours = streamed(inputs, [13, 1, 40], mask, **options, backend="cpu")
    assert ours.dtype == dtype
    assert_within_error_rule([ours], [plain], [truth])


@needs_kernels
@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [5, 24, 64])
def test_pieces_do_not_change_a_bit(options: dict[str, Any], dtype: torch.dtype, dim: int) -> None:
    if cpu.kernel_capability() in ("portable", "neon"):
        pytest.skip("the kernels for AVX2 and later are built so that this holds")
    inputs = tuple(random_tensor(1, 3, 300, dim, dtype=dtype, seed=n) for n in range(3))
    cuts = ([300], [1], [7, 50, 3], [64])
    first, *others = [streamed(inputs, pieces, **options, backend="cpu") for pieces in cuts]
    for other in others:
        assert torch.equal(first, other)


@needs_kernels
def test_window_operator_is_registered_well() -> None:
    q, k, v = (torch.randn(2, 2, steps, dim) for steps, dim in ((3, 4), (9, 4), (9, 5)))
    summaries = (torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 5), torch.tensor([[1, 2, 0, 3]] * 2))
    masks = (torch.rand(2, 3) < 0.8, torch.rand(2, 9) < 0.8)
    for namespace in ("mmer_cpu", "mmer_reference"):
        operator = getattr(torch.ops, namespace).chunked_attention_window.default
        for arguments in ((*summaries, *masks, 5, True, 0.5), (*[None] * 5, 0, False, 0.5)):
            torch.library.opcheck(operator, (q, k, v, *arguments))
    with pytest.raises(RuntimeError, match="positions do not fit"):
        torch.ops.mmer_cpu.chunked_attention_window(q, k, v, *[None] * 5, 7, True, 0.5)


def test_a_backend_that_cannot_run_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="backend must be"):
        ChunkedAttentionState(4, backend="gpu")
    state = ChunkedAttentionState(4, causal=True, backend="cpu")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run chunked_attention_window"):
        chunked_attention_step(*recording(1, 6), state)
    assert not state.started


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_constant(causal: bool) -> None:
    state = ChunkedAttentionState(4, 2, 1, causal, summaries=True, max_summaries=5)
    sizes = []
    for n in range(60):
        piece = [random_tensor(1, 2, 7, 4, dtype=torch.float32, seed=n) for _ in range(3)]
        chunked_attention_step(*piece, state)
        tensors = state.state_dict()["tensors"].values()
        sizes.append(sum(x.numel() for x in tensors))
    assert max(sizes[30:]) <= max(sizes[:30])


def test_refused_steps_leave_the_state_as_it_was() -> None:
    inputs = recording(2, 10)
    state = ChunkedAttentionState(4)
    chunked_attention_step(*inputs, state)
    before = state.state_dict()
    q, k, v = inputs
    with pytest.raises(ValueError, match="q must have shape"):
        chunked_attention_step(q[:1], k[:1], v[:1], state)
    with pytest.raises(TypeError, match="q must have the dtype of the state's first step"):
        chunked_attention_step(q.float(), k.float(), v.float(), state)
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 10\]"):
        chunked_attention_step(q, k, v, state, lengths=torch.tensor([0, 11]))
    with pytest.raises(TypeError, match="lengths must be integers"):
        chunked_attention_step(q, k, v, state, lengths=torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match="mask must be bool"):
        chunked_attention_step(q, k, v, state, mask=torch.ones(2, 10))
    with pytest.raises(TypeError, match="streams must be bool"):
        state.flush(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="state must have chunk_size = 5, got 4"):
        ChunkedAttentionState(5).load_state_dict(before)
    after = state.state_dict()
    for name, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][name])
    with pytest.raises(ValueError, match="state must have had a step before flush"):
        ChunkedAttentionState(4).flush()
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        ChunkedAttentionState(0)
