"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from mmer.benchmark.cases import Case
from mmer.benchmark.implementations import ENGINE
from mmer.benchmark.memory import is_linear
from mmer.benchmark.results import PLAIN_TORCH, Results, Row


def all_tables(results: Results) -> Iterator[Table]:
    """Every table that there is something for, in the order to show them."""
    if results.rows:
        yield details_table(results)
        if any(row.reason for row in results.rows):
            yield missing_table(results)
    if results.growth:
        yield growth_table(results)
    if results.latencies:
        yield latency_table(results)
    if results.rows:
        yield summary_table(results)


def machine_line(results: Results) -> str:
    """One line that says what was measured on, and what it reaches at best."""
    machine = results.machine
    peaks = ", ".join(
        f"{name} {value / 1e9:,.0f} {'GB/s' if name == 'memory' else 'GF/s'}"
        for name, value in results.peaks.items()
        if name != "bfloat16"
    )
    return (
        f"{machine['cpu']}, kernels {machine['capability']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, mmer {machine['mmer']} {machine['commit'] or ''}\n"
        f"measured peaks: {peaks}"
    )


def summary_table(results: Results) -> Table:
    """One line a case: ours, and how many times faster than each kind of peer."""
    table = _table("ours beside the best of each kind of peer")
    for column in ("case", "dtype", "direction"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "GF/s", "% f32 peak", "% bf16 peak", "x sdpa, eager", "x engines"):
        table.add_column(column, justify="right")
    table.add_column("x best peer", no_wrap=True)
    for case in results.cases:
        for row in results.of(case):
            if row.kind != "ours":
                continue
            table.add_row(*_case_cells(case), *_speed_cells(results, row))
    return table


def details_table(results: Results) -> Table:
    """Every row that has a time.

    The error is a share of what the error rule allows, the memory is beyond inputs and results.
    """
    table = _table("every implementation that passed the gate")
    for column in ("case", "dtype", "direction", "implementation"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "quartiles", "rounds", "GF/s", "error", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in results.cases:
        measured = [row for row in results.of(case) if row.timing is not None]
        for row in sorted(measured, key=lambda row: -(row.speed or 0)):
            assert row.timing is not None
            assert row.speed is not None
            first, third = row.timing.quartiles
            table.add_row(
                *_case_cells(case),
                row.implementation,
                f"{row.timing.median * 1e3:.3g}",
                f"{first * 1e3:.3g}-{third * 1e3:.3g}",
                str(len(row.timing.seconds)),
                f"{row.speed / 1e9:.0f}",
                f"{row.error:.2g}",
                "" if row.memory is None else f"{row.memory / 2**20:.1f}",
            )
        table.add_section()
    return table


def missing_table(results: Results) -> Table:
    """Who has no time, why, and in how many cases."""
    table = _table("not timed")
    for column in ("implementation", "reason", "cases"):
        table.add_column(column)
    counts: dict[tuple[str, str], int] = {}
    for row in results.rows:
        if row.reason is not None:
            key = (row.implementation, row.reason)
            counts[key] = counts.get(key, 0) + 1
    for (implementation, reason), count in sorted(counts.items()):
        table.add_row(implementation, reason, str(count))
    return table


def growth_table(results: Results) -> Table:
    """How our memory grows with the lengths."""
    table = _table("ours: memory beyond inputs and results, 1 head, N = M, d = 64, MiB")
    table.add_column("direction")
    lengths = [length for length, _ in next(iter(results.growth.values()))]
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    table.add_column("linear")
    for direction, growth in results.growth.items():
        cells = [f"{size / 2**20:.1f}" for _, size in growth]
        table.add_row(direction, *cells, "yes" if is_linear(growth) else "NO")
    squares = [f"{4 * length**2 / 2**20:,.0f}" for length in lengths]
    table.add_row("one float32 matrix of scores", *squares, "")
    return table


def latency_table(results: Results) -> Table:
    """Latency of streaming."""
    table = _table("streaming: chunked_attention_step, B 1, H 8, d 64, causal, 50 steps a second")
    for column in ("dtype", "piece, ms", "steps", "p50, ms", "p99, ms"):
        table.add_column(column, justify="right")
    for x in results.latencies:
        times = (f"{x.p50 * 1e3:.3f}", f"{x.p99 * 1e3:.3f}")
        table.add_row(x.dtype, f"{x.seconds * 1e3:.0f}", str(x.steps), *times)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _case_cells(case: Case) -> tuple[str, str, str]:
    operator = case.operator.removesuffix("_attention").removesuffix("_cross")
    direction = case.direction.replace("forward", "fwd").replace("backward", "bwd")
    return f"{operator} {case.shape.name}", case.dtype, direction


def _speed_cells(results: Results, row: Row) -> tuple[str, ...]:
    if row.timing is None or row.speed is None:
        return ("", "", "", "", "", "", row.reason or "")
    best = results.best_peer(row.case)
    ratios = [
        results.times_faster(row, peer)
        for peer in (
            results.best(row.case, names=PLAIN_TORCH),
            results.best(row.case, kinds=(ENGINE,)),
            best,
        )
    ]
    shares = [results.share_of_peak(row, name) for name in ("float32", "bfloat16")]
    plain, engines, peer = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return (
        f"{row.timing.median * 1e3:.3g}",
        f"{row.speed / 1e9:.0f}",
        *("" if share is None else f"{share:.0%}" for share in shares),
        plain,
        engines,
        f"{peer} {best.implementation}" if best else "",
    )
