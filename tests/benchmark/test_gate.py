"""The gate: right for what is right, and closed to what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmer.benchmark import gate
from mmer.benchmark.cases import BACKWARD, FORWARD, Case, ChunkShape, PairShape
from mmer.benchmark.implementations import OURS, Implementation, our_implementations
from mmer.benchmark.problem import Call, Problem, make_problem
from mmer.benchmark.run import run_case

PAIR = PairShape("tiny", 2, 2, 17, 30, 8)
CHUNKS = ChunkShape("tiny", 2, 2, 50, 8, chunk_size=16, lookback=1, lookahead=1)
CASES = [
    Case("shared_cross_attention", PAIR, "float32", BACKWARD),
    Case("bidirectional_cross_attention", PAIR, "float32", BACKWARD),
    Case("chunked_attention", CHUNKS, "float32", BACKWARD),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_truth_is_that_of_the_reference(case: Case) -> None:
    problem = make_problem(case)
    double = replace(
        problem,
        inputs=tuple(x.double() for x in problem.inputs),
        output_gradients=tuple(x.double() for x in problem.output_gradients),
    )
    from mmer.benchmark.implementations import _ours

    reference = _ours(double, "reference")()
    for x, y in zip(gate.results_in_blocks(problem, torch.float64), reference, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_blocks_give_what_the_whole_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(case)
    whole = gate.results_in_blocks(problem, torch.float64)
    monkeypatch.setattr(gate, "_LARGEST_BLOCK", 5 * 4 * 30)
    for x, y in zip(gate.results_in_blocks(problem, torch.float64), whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ours_pass(case: Case, dtype: str) -> None:
    case = replace(case, dtype=dtype)
    rows = run_case(case, our_implementations(), budget=0.001, memory=False)
    for row in rows:
        assert row.reason is None
        assert row.error is not None
        assert row.error <= 1
        assert row.timing is not None


def _spoil(how: str) -> Implementation:
    right = our_implementations()[0]

    def make(problem: Problem) -> Call:
        call = right.make(problem)

        def spoiled() -> tuple[Tensor, ...]:
            results = [x.clone() for x in call()]
            last = results[-1].flatten()
            if how == "one element":
                last[3] += 1e-3 * last.abs().max()
            elif how == "nan":
                last[0] = float("nan")
            elif how == "shape":
                results[-1] = results[-1][..., :-1]
            elif how == "one result less":
                results.pop()
            elif how == "raises":
                raise RuntimeError("out of luck\nand more")
            return tuple(results)

        return spoiled

    return Implementation("spoiled", OURS, make)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("one element", "wrong: error"),
        ("nan", "wrong: error inf"),
        ("shape", "must have shapes"),
        ("one result less", "must have shapes"),
        ("raises", "failed: RuntimeError: out of luck"),
    ],
)
def test_a_wrong_implementation_gets_no_time(how: str, reason: str, direction: str) -> None:
    case = replace(CASES[0], direction=direction)
    right, wrong = run_case(
        case, [our_implementations()[0], _spoil(how)], budget=0.001, memory=False
    )
    assert right.timing is not None
    assert wrong.timing is None
    assert wrong.speed is None
    assert reason in str(wrong.reason)


def test_outputs_alone_are_no_backward() -> None:
    problem = make_problem(CASES[0])
    truth = gate.Truth(problem)
    outputs = [x.float() for x in truth.results[:2]]
    assert gate.refusal(problem, truth, outputs, ours=True) == "gave no gradients"
    forward = replace(problem, case=replace(problem.case, direction=FORWARD))
    assert gate.refusal(forward, truth, outputs, ours=True) is None


def test_gradients_are_known_only_where_they_are_asked_for() -> None:
    problem = make_problem(CASES[0])
    forward = replace(problem, case=replace(problem.case, direction=FORWARD))
    whole, outputs = gate.Truth(problem), gate.Truth(forward)
    assert len(whole.results) == len(outputs.results) + len(problem.inputs)
    for x, y in zip(outputs.results, whole.results, strict=False):
        assert torch.equal(x, y)


def test_peers_are_allowed_more_than_we_are() -> None:
    problem = make_problem(replace(CASES[0], direction=FORWARD))
    truth = gate.Truth(problem)
    off = [x + 4 * a for x, a in zip(truth.results[:2], truth.allowances, strict=False)]
    assert "wrong: error 2 x" in str(gate.refusal(problem, truth, off, ours=True))
    assert gate.refusal(problem, truth, off, ours=False) is None
