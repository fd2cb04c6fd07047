"""One case and implementation of ``mmer bench`` under pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmer.benchmark.cases import BACKWARD, FORWARD, SUITES, Case
from mmer.benchmark.gate import Truth, refusal
from mmer.benchmark.implementations import OURS, PEERS, our_implementations
from mmer.benchmark.problem import Unavailable, make_problem

IMPLEMENTATIONS = {x.name: x for x in (*our_implementations(), *PEERS.values())}


def every_case(operator: str) -> Any:
    """Parametrize a benchmark with the standard suite and every implementation."""

    def decorate(function: Any) -> Any:
        for name, values in (
            ("implementation", list(IMPLEMENTATIONS)),
            ("direction", [FORWARD, BACKWARD]),
            ("dtype", ["float32", "bfloat16"]),
        ):
            function = pytest.mark.parametrize(name, values)(function)
        shapes = SUITES["standard"][operator]
        return pytest.mark.parametrize("shape", shapes, ids=[x.name for x in shapes])(function)

    return decorate


def run(benchmark: Any, case: Case, name: str) -> None:
    """Time an implementation, after its results agreed with float64."""
    problem = make_problem(case)
    try:
        call = IMPLEMENTATIONS[name].prepare(problem)
    except Unavailable as reason:
        pytest.skip(str(reason))
    wrong = refusal(problem, Truth(problem), call(), ours=IMPLEMENTATIONS[name].kind == OURS)
    assert wrong is None, wrong
    benchmark.group = str(case)
    benchmark.extra_info.update(
        case.shape._asdict(),
        dtype=case.dtype,
        operations=case.operations,
        threads=torch.get_num_threads(),
    )
    benchmark.pedantic(call, rounds=11, warmup_rounds=1)
