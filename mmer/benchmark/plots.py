"""Pictures of results: bars beside the peers, and the roofline of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmer.benchmark.implementations import OURS
from mmer.benchmark.results import Results, Row, bytes_moved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEERS = "#0072B2", "#B0B0B0"
_BEST_PEER = "#D55E00"


def plot_results(results: Results, folder: Path) -> list[Path]:
    """Draw ``bars.png`` and ``roofline.png``.

    Args:
        results: What to draw; nothing is drawn if no row has a time.
        folder: Where to.

    Returns:
        The files.
    """
    if not any(row.timing for row in results.rows):
        return []
    import matplotlib.figure  # noqa: F401 - a missing extra is told before anything is drawn

    paths = [folder / "bars.png", folder / "roofline.png"]
    _save(_bars(results), paths[0])
    _save(_roofline(results), paths[1])
    return paths


def _bars(results: Results) -> Any:
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((case.dtype, case.direction) for case in results.cases))
    groups = [
        [
            [row for row in results.of(case) if row.timing is not None]
            for case in results.cases
            if (case.dtype, case.direction) == kind
        ]
        for kind in kinds
    ]
    heights = [sum(len(rows) + 1.5 for rows in group) for group in groups]
    figure = Figure(figsize=(6.5 * len(kinds), max(3.0, 0.17 * max(heights))), dpi=120)
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axis, (dtype, direction), group in zip(axes, kinds, groups, strict=True):
        _draw_bars(axis, results, group)
        axis.set_title(f"{dtype}, {direction}", fontsize=10)
        axis.set_xlabel("GF/s of useful work")
    figure.suptitle(_machine(results), fontsize=9)
    return figure


def _draw_bars(axis: Axes, results: Results, group: list[list[Row]]) -> None:
    place, places, names = 0.0, [], []
    for rows in group:
        if not rows:
            continue
        case = rows[0].case
        best = results.best_peer(case)
        axis.text(0, place - 0.9, f" {case.operator} {case.shape.name}", fontsize=7, weight="bold")
        for row in sorted(rows, key=lambda row: (row.kind != OURS, -(row.speed or 0))):
            assert row.timing is not None
            first, third = row.timing.quartiles
            speed = case.operations / 1e9
            color = _OURS if row.kind == OURS else _BEST_PEER if row is best else _PEERS
            axis.barh(place, speed / row.timing.median, color=color, height=0.85)
            axis.plot([speed / third, speed / first], [place, place], color="black", linewidth=1)
            places.append(place)
            names.append(row.implementation)
            place += 1
        place += 1.5
    axis.set_yticks(places, names, fontsize=7)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def _roofline(results: Results) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120)
    axis = figure.subplots()
    measured = [row for row in results.rows if row.speed is not None]
    intensities = [row.case.operations / bytes_moved(row.case) for row in measured]
    low, high = min(intensities) / 2, max(intensities) * 2
    memory = results.peaks["memory"]
    for name, speed in sorted(results.peaks.items()):
        if name in ("memory", "bfloat16"):
            continue
        knee = speed / memory
        line = [x for x in (low, knee, high) if low <= x <= high]
        axis.plot(line, [min(speed, x * memory) / 1e9 for x in line], color="black", linewidth=1)
        axis.text(high, speed / 1e9, f" {name}", fontsize=8, va="center")
    best = [results.best_peer(case) for case in results.cases]
    for label, color, rows in (
        ("mmer", _OURS, [row for row in measured if row.kind == OURS]),
        ("best peer", _BEST_PEER, [row for row in best if row is not None]),
    ):
        for dtype, marker in (("float32", "o"), ("bfloat16", "x"), ("float16", "+")):
            chosen = [row for row in rows if row.case.dtype == dtype]
            axis.scatter(
                [row.case.operations / bytes_moved(row.case) for row in chosen],
                [(row.speed or 0) / 1e9 for row in chosen],
                marker=marker,
                s=28,
                color=color,
                label=f"{label}, {dtype}" if chosen else None,
            )
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel("useful operations for each byte of inputs and results")
    axis.set_ylabel("GF/s of useful work")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.set_title(f"roofline of measured peaks; {_machine(results)}", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _machine(results: Results) -> str:
    machine = results.machine
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    commit = machine["commit"] or machine["mmer"]
    return f"{where}, {machine['threads']} threads, mmer {commit}, {machine['date'][:10]}"


def _save(figure: Any, path: Path) -> None:
    from mmer.training.files import replace_file

    with replace_file(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")
