from __future__ import annotations

import pytest
import torch

from mmer.benchmark.cases import (
    BACKWARD,
    FORWARD,
    OPERATORS,
    SUITES,
    Case,
    ChunkShape,
    PairShape,
    parse_shape,
    select_cases,
)
from mmer.benchmark.machine import bfloat16_peak
from mmer.benchmark.memory import is_linear
from mmer.benchmark.timing import Timing, measure, rounds_for


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("time", [1, 64, 150])
def test_pairs_of_chunks_are_those_of_the_dense_mask(time: int, lookahead: int) -> None:
    shape = ChunkShape("x", 2, 3, time, 8, chunk_size=32, lookback=2, lookahead=lookahead)
    chunk = torch.arange(time) // 32
    age = chunk[:, None] - chunk[None, :]
    assert shape.pairs == 6 * int(((age <= 2) & (age >= -lookahead)).sum())


def test_useful_operations() -> None:
    shape = PairShape("x", 2, 3, 5, 7, 11)
    pairs = 2 * 3 * 5 * 7 * 11
    assert Case("shared_cross_attention", shape, "float32", FORWARD).operations == 6 * pairs
    assert Case("shared_cross_attention", shape, "float32", BACKWARD).operations == 20 * pairs
    separate = Case("bidirectional_cross_attention", shape, "float32", BACKWARD)
    assert separate.operations == 28 * pairs


def test_shapes_are_read() -> None:
    assert parse_shape("1,2,3,4,5") == PairShape("1x2x3x4x5", 1, 2, 3, 4, 5)
    assert parse_shape("1,2,300,8,64,0") == ChunkShape("1x2x300x8x64x0", 1, 2, 300, 8, 64, 0)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,x", "1,2,0,4,5", "1,2,3,4,-5"])
def test_wrong_shapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--shape must"):
        parse_shape(text)


def test_suites_grow_and_know_every_operator() -> None:
    quick, standard, everything = (set(select_cases(name)) for name in SUITES)
    assert quick < standard < everything
    assert {case.operator for case in standard} == set(OPERATORS)


def test_given_shapes_replace_those_of_the_suite() -> None:
    shapes = [parse_shape("1,2,3,4,5")]
    cases = select_cases("quick", shapes=shapes, dtypes=["float32"], directions=[FORWARD])
    assert cases == [Case("shared_cross_attention", shapes[0], "float32", FORWARD)]
    with pytest.raises(ValueError, match="chunked_attention"):
        select_cases("quick", ["chunked_attention"], shapes)


def test_measure_takes_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure(calls, budget=0.0)
    assert {len(timing.seconds) for timing in timings.values()} == {11}
    timed = order[6:][1::2]
    assert len(timed) == 33
    assert all(set(timed[start : start + 3]) == set("abc") for start in range(0, 33, 3))
    assert len({tuple(timed[start : start + 3]) for start in range(0, 33, 3)}) > 2


def test_rounds() -> None:
    assert rounds_for(0.001, 1.0) == 25
    assert rounds_for(0.09, 0.0) == 11
    assert rounds_for(0.2, 1.0) == 5
    assert rounds_for(100.0, 1.0) == 3


def test_timing() -> None:
    timing = Timing((5.0, 1.0, 2.0, 3.0, 4.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)


def test_linear_growth() -> None:
    mebibyte = 2**20
    assert is_linear([(1_000, 10 * mebibyte), (4_000, 40 * mebibyte)])
    assert is_linear([(1_000, 0), (4_000, mebibyte)])
    assert not is_linear([(1_000, 3 * mebibyte), (4_000, 48 * mebibyte)])


def test_best_bfloat16_peak() -> None:
    assert bfloat16_peak({"float32": 5.0, "avx512_bf16": 2.0, "amx_bf16": 7.0}) == {"bfloat16": 7.0}
    assert bfloat16_peak({"float32": 5.0}) == {}
