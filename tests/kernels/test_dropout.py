"""Dropout of attention weights by counter-based random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmer.kernels import chunk_summaries, chunked_attention
from mmer.kernels.philox import keep_threshold, philox4x32, uniform_bits
from tests.kernels.cases import OPERATORS, make_pair

operators = pytest.mark.parametrize("operator", OPERATORS)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Known answers of the authors' library, Random123, philox4x32 with 10 rounds.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    seed = np.array(key[0] | key[1] << 32, dtype=np.uint64).astype(np.int64)
    c0, c1, c2, c3 = (torch.tensor(x) for x in counter)
    assert [int(x) for x in philox4x32((c0, c1, c2, c3), torch.tensor(seed))] == list(words)


def test_bits_are_the_lanes_of_their_counter() -> None:
    seed = torch.tensor(-(2**62) + 12345)
    row, query, key = torch.tensor(3), torch.arange(5)[:, None], torch.arange(9)[None, :]
    bits = uniform_bits(seed, row, query, key, stream=1)
    for i in range(5):
        for j in range(9):
            counter = (torch.tensor(j // 4), torch.tensor(i), row, torch.tensor(1))
            assert int(bits[i, j]) == int(philox4x32(counter, seed)[j % 4])


@operators
def test_weights_are_dropped_and_scaled_in_each_direction(operator: str) -> None:
    # With equal scores and values that pick out a key, an output is the mask itself.
    time_a, time_b, dropout_p = 5, 6, 0.3
    case = make_pair(operator, batch=2, time_a=time_a, time_b=time_b, dtype=torch.float32)
    tensors = [torch.zeros_like(x) for x in case.tensors]
    values = (3, 2) if operator == "shared_cross_attention" else (5, 2)
    tensors[values[0]] = torch.eye(time_b).expand(2, 2, -1, -1)
    tensors[values[1]] = torch.eye(time_a).expand(2, 2, -1, -1)
    outputs = OPERATORS[operator](*tensors, dropout_p=dropout_p, dropout_seed=11)
    row = torch.arange(4).view(2, 2, 1, 1)
    for stream, (out, keys) in enumerate(zip(outputs, (time_b, time_a), strict=True)):
        queries = torch.arange(out.shape[2])[:, None]
        bits = uniform_bits(torch.tensor(11), row, queries, torch.arange(keys), stream)
        wanted = (bits >= keep_threshold(dropout_p)) / (keys * (1 - dropout_p))
        torch.testing.assert_close(out, wanted)


def test_chunked_weights_and_summaries() -> None:
    time, chunk_size, dropout_p = 8, 2, 0.4
    q = k = torch.zeros(1, 1, time, 1)
    v, chunks = torch.eye(time)[None, None], time // chunk_size
    values = torch.cat((v, torch.zeros(1, 1, time, chunks)), dim=-1)
    summary_v = torch.cat((torch.zeros(1, 1, chunks, time), torch.eye(chunks)[None, None]), dim=-1)
    summary_k, _ = chunk_summaries(k, values, chunk_size)
    options: dict[str, Any] = {"summaries": (summary_k, summary_v)}
    plain = chunked_attention(q, k, values, chunk_size, **options)
    out = chunked_attention(
        q, k, values, chunk_size, **options, dropout_p=dropout_p, dropout_seed=5
    )
    assert isinstance(plain, Tensor)
    seed, row, query = torch.tensor(5), torch.tensor(0), torch.arange(time)[:, None]
    bits = torch.cat(
        (
            uniform_bits(seed, row, query, torch.arange(time), 0),
            uniform_bits(seed, row, query, torch.arange(chunks), 1),
        ),
        dim=1,
    )
    wanted = torch.where(bits >= keep_threshold(dropout_p), plain / (1 - dropout_p), 0.0)
    torch.testing.assert_close(out, wanted)


@operators
def test_seed_decides(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    first, again = (case.run(dropout_p=0.5, dropout_seed=1) for _ in range(2))
    other = case.run(dropout_p=0.5, dropout_seed=2)
    as_tensor = case.run(dropout_p=0.5, dropout_seed=torch.tensor(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0], as_tensor[0])
    assert not torch.equal(first[0], other[0])


@operators
def test_torch_generator_decides_by_default(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(case.run(dropout_p=0.5)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@operators
def test_everything_and_nothing_dropped(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    out_a, out_b = case.run(dropout_p=1.0)
    assert (out_a == 0).all()
    assert (out_b == 0).all()
    for gradient in torch.autograd.grad(out_a.sum() + out_b.sum(), case.tensors):
        assert (gradient == 0).all()
    for x, y in zip(case.run(dropout_p=0.0, dropout_seed=1), case.run(), strict=True):
        assert torch.equal(x, y)


@operators
def test_log_sum_exp_is_that_of_all_weights(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32)
    dropped, plain = case.run(dropout_p=0.5, return_lse=True), case.run(return_lse=True)
    assert torch.equal(dropped[2], plain[2])
    assert torch.equal(dropped[3], plain[3])
