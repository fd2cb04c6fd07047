"""Run cases: first the gate, then the clock, then memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mmer.benchmark.cases import Case
from mmer.benchmark.gate import Truth, refusal
from mmer.benchmark.implementations import OURS, Implementation
from mmer.benchmark.memory import measure_memory
from mmer.benchmark.problem import Call, Problem, Unavailable, make_problem
from mmer.benchmark.results import Row
from mmer.benchmark.timing import measure

# Called with what is being done, and the share of the case that is done.
Report = Callable[[str, float], None]


def run_case(
    case: Case,
    implementations: Sequence[Implementation],
    *,
    truth: Truth | None = None,
    left_out: Mapping[str, str] | None = None,
    budget: float = 1.0,
    device: str = "cpu",
    memory: bool = True,
    report: Report = lambda what, share: None,
) -> list[Row]:
    """Measure implementations of a case against each other.

    Args:
        case: What to compute.
        implementations: Who computes it.
        truth: The right results of this operator, shape and dtype, if they are known already.
        left_out: Name -> reason of implementations that are not asked for.
        budget: Seconds of timing for each implementation.
        device: Where.
        memory: Whether to measure memory too.
        report: Hears of the progress.

    Returns:
        A row for each implementation, with a time if what it computes is right, else with the
        reason why there is none.
    """
    problem = make_problem(case, device)
    if truth is None:
        report("float64", 0.0)
        truth = Truth(problem)
    rows = [Row(case, x.name, x.kind, x.version) for x in implementations]
    calls: dict[str, Call] = {}
    for row, implementation in zip(rows, implementations, strict=True):
        if left_out and row.implementation in left_out:
            row.reason = left_out[row.implementation]
            continue
        report(f"gate: {row.implementation}", 0.1)
        call = _pass_gate(row, implementation, problem, truth)
        if call is not None:
            calls[row.implementation] = call
    report("timing", 0.3)
    timings = measure(
        calls,
        budget=budget,
        device=device,
        progress=lambda share: report("timing", 0.3 + 0.5 * share),
    )
    calls.clear()
    for row in rows:
        row.timing = timings.get(row.implementation)
        if memory and row.timing is not None:
            report(f"memory: {row.implementation}", 0.9)
            try:
                row.memory = measure_memory(row.implementation, case, device)
            except Unavailable as reason:
                row.memory_reason = str(reason)
    report("done", 1.0)
    return rows


def _pass_gate(
    row: Row, implementation: Implementation, problem: Problem, truth: Truth
) -> Call | None:
    try:
        call = implementation.prepare(problem)
        results = call()
        row.error = truth.error(results)
        row.reason = refusal(problem, truth, results, ours=implementation.kind == OURS)
    except Unavailable as reason:
        row.reason = str(reason)
    except Exception as error:
        # A peer that cannot run a case is a finding, and no reason to lose the others.
        lines = str(error).strip().splitlines() or [""]
        row.reason = f"failed: {type(error).__name__}: {lines[0]}"
    return call if row.reason is None else None
