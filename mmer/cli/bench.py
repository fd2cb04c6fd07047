"""``mmer bench``: measure the operators beside their peers on this machine."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmer.benchmark.cases import BACKWARD, DTYPES, FORWARD, OPERATORS, SUITES

if TYPE_CHECKING:
    from rich.console import Console

    from mmer.benchmark.cases import Case
    from mmer.benchmark.implementations import Implementation
    from mmer.benchmark.results import Results

STREAMING = "chunked_attention_step"
DIRECTIONS = {"forward": (FORWARD,), "backward": (BACKWARD,), "both": (FORWARD, BACKWARD)}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the operators beside their peers on this machine",
        description="Measure time and memory of the operators beside their peers, in one process "
        "and in turns. What differs from float64 by more than the error rule allows gets no time. "
        "Writes bench.csv, bench.json, bars.png and roofline.png.",
    )
    parser.add_argument(
        "--suite", choices=SUITES, default="quick", help="which shapes; quick by default"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="B,H,N,M,D",
        help="this shape instead of the suite's, or B,H,T,D,CHUNK,LOOKBACK; may be repeated",
    )
    parser.add_argument("--dtype", help=f"of {', '.join(DTYPES)}; float32,bfloat16 by default")
    parser.add_argument(
        "--operator", help=f"of {', '.join((*OPERATORS, STREAMING))}; all by default"
    )
    parser.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="both",
        help="backward means forward + backward in one measurement; both by default",
    )
    parser.add_argument("--device", default="cpu", help="cpu by default, or cuda")
    parser.add_argument("--threads", type=int, help="of torch and of the engines; torch's default")
    parser.add_argument(
        "--peers",
        help="of these names; by default all, but those that compile for every shape only in "
        "the suite all",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of timing for each implementation and case; 0.5"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write; runs/bench-DATE-TIME by default"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables and write the files.

    Args:
        arguments: See :func:`add_parser`.

    Returns:
        0, or 1 if one of ours did not pass the gate or its memory is not linear.

    Raises:
        ValueError: An argument is wrong.
    """
    from mmer._console import wide_console
    from mmer.benchmark.machine import describe_machine, measure_peaks
    from mmer.benchmark.memory import is_linear
    from mmer.benchmark.plots import plot_results
    from mmer.benchmark.results import Results, write_results
    from mmer.benchmark.tables import all_tables, machine_line

    if not arguments.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {arguments.seconds}")
    cases, dtypes, streaming = _choose(arguments)
    chosen, left_out = _implementations(arguments)
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: torch sees no GPU")
    console = wide_console()
    with _threads(arguments.threads):
        results = Results(describe_machine(arguments.device), measure_peaks(arguments.device))
        _measure_cases(results, cases, chosen, left_out, arguments, console)
        if not arguments.no_memory and arguments.device == "cpu" and not arguments.shape:
            _measure_growth(results, cases, console)
        if streaming:
            _measure_streaming(results, dtypes, arguments, console)
        # Whatever else runs can only lower a peak: the better of before and after counts.
        for name, speed in measure_peaks(arguments.device).items():
            results.peaks[name] = max(speed, results.peaks.get(name, 0.0))
    console.print(machine_line(results), highlight=False)
    for table in all_tables(results):
        console.print(table)
    for note in results.notes:
        console.print(f"not measured: {note}", highlight=False)
    folder = Path(arguments.output or f"runs/bench-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    for path in (*write_results(results, folder), *plot_results(results, folder)):
        console.print(f"written {path}", highlight=False)
    growth_is_linear = all(is_linear(growth) for growth in results.growth.values())
    return 1 if results.refused or not growth_is_linear else 0


def _choose(arguments: argparse.Namespace) -> tuple[list[Case], list[str], bool]:
    from mmer.benchmark.cases import parse_shape, select_cases

    dtypes = _words("--dtype", arguments.dtype or "float32,bfloat16", tuple(DTYPES))
    operators = _words("--operator", arguments.operator, (*OPERATORS, STREAMING))
    streaming = STREAMING in operators or (not operators and not arguments.shape)
    kernels = [name for name in operators if name != STREAMING]
    if operators and not kernels:
        return [], dtypes, streaming
    shapes = [parse_shape(text) for text in arguments.shape]
    directions = DIRECTIONS[arguments.direction]
    cases = select_cases(arguments.suite, kernels, shapes, dtypes, directions)
    return cases, dtypes, streaming


def _words(option: str, text: str | None, known: tuple[str, ...]) -> list[str]:
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise ValueError(f"{option} must be of {', '.join(known)}, got {word!r}")
    return words


def _implementations(
    arguments: argparse.Namespace,
) -> tuple[list[Implementation], dict[str, str]]:
    from mmer.benchmark.implementations import PEERS, choose_peers, our_implementations

    ours = our_implementations(arguments.device)
    if arguments.peers is not None:
        names = [name.strip() for name in arguments.peers.split(",") if name.strip()]
        return [*ours, *choose_peers(names)], {}
    left_out = {
        name: "compiles for every shape: --suite all or --peers takes it in"
        for name, peer in PEERS.items()
        if peer.compiles and arguments.suite != "all"
    }
    return [*ours, *PEERS.values()], left_out


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"--threads must be at least 1, got {count}")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_cases(
    results: Results,
    cases: list[Case],
    implementations: list[Implementation],
    left_out: dict[str, str],
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mmer.benchmark.gate import Truth
    from mmer.benchmark.problem import make_problem
    from mmer.benchmark.run import run_case

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        inputs, truth = None, None
        # With backward, the truth holds what is right forward too.
        direction = DIRECTIONS[arguments.direction][-1]
        for number, case in enumerate(cases):

            def report(what: str, share: float, case: Case = case, number: int = number) -> None:
                # The bar shows parts of cases, the count whole ones.
                progress.update(task, description=f"{case}: {what}", completed=int(number + share))

            if (same := (case.operator, case.shape, case.dtype)) != inputs:
                report("float64", 0.0)
                whole = replace(case, direction=direction)
                inputs, truth = same, Truth(make_problem(whole, arguments.device))
            results.rows += run_case(
                case,
                implementations,
                truth=truth,
                left_out=left_out,
                budget=arguments.seconds,
                device=arguments.device,
                memory=not arguments.no_memory,
                report=report,
            )


def _measure_growth(results: Results, cases: list[Case], console: Console) -> None:
    from mmer.benchmark.implementations import our_implementations
    from mmer.benchmark.memory import measure_growth
    from mmer.benchmark.problem import Unavailable

    ours = our_implementations()[0]
    if ours.name == "mmer reference" or not cases:
        return
    with console.status("growth of memory"):
        for direction in dict.fromkeys(case.direction for case in cases):
            try:
                results.growth[direction] = measure_growth(ours.name, "float32", direction)
            except Unavailable as reason:
                results.notes.append(f"growth of memory, {direction}: {reason}")


def _measure_streaming(
    results: Results, dtypes: list[str], arguments: argparse.Namespace, console: Console
) -> None:
    from mmer.benchmark.problem import Unavailable
    from mmer.benchmark.streaming import measure_latency

    count = max(10, int(600 * arguments.seconds))
    with console.status("streaming"):
        for dtype in dtypes:
            try:
                results.latencies += measure_latency(dtype, count=count, device=arguments.device)
            except Unavailable as reason:
                results.notes.append(str(reason))
