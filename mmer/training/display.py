"""What is shown on the terminal: the progress of an experiment, and tables of its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from mmer.training.protocol import SPLIT_TITLES, Job, Row

HEADINGS = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "person_macro_f1": "macro-F1 per person",
    "ccc": "CCC",
    "mae": "MAE",
}
SECTIONS = {"model": "", "shortcut": "shortcut: ", "published": "others: "}


def results_table(rows: Sequence[Row], split: str, title: str = "") -> Table:
    """Lay out the results of one split: models, then shortcuts, then published figures.

    Args:
        rows: The lines of all splits.
        split: The split to show.
        title: Put before what the split means.

    Returns:
        A table to print with rich.
    """
    rows = [row for row in rows if row.split == split]
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    # A table has only so much room; the files have all scores.
    crowded = any(name.endswith("/accuracy") for name in names)
    hidden = ("person_spread", "mae" if crowded else "")
    names = [name for name in names if name.rpartition("/")[2] not in hidden]
    heading = SPLIT_TITLES.get(split, split)
    table = Table(title=f"{title}, {heading}" if title else heading, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(column_heading(name), justify="right")
    kind = rows[0].kind if rows else "model"
    for row in rows:
        if row.kind != kind:
            table.add_section()
            kind = row.kind
        table.add_row(SECTIONS[row.kind] + row.name, *(_cell(row, name) for name in names))
    return table


def column_heading(name: str) -> str:
    """The words for a score, for example "valence CCC" for "valence/ccc"."""
    subject, _, kind = name.rpartition("/")
    return f"{subject} {HEADINGS.get(kind, kind)}".strip()


class ExperimentProgress:
    """One line for each run under way, one for the whole, and a lasting one for each that is done.

    Args:
        console: Where to.
        jobs: Number of runs.
    """

    def __init__(self, console: Console, jobs: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.all_runs = self.progress.add_task("all runs", total=jobs, note="")
        self.running: dict[Job, TaskID] = {}

    def __enter__(self) -> ExperimentProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def report(self, job: Job, epoch: int, epochs: int, score: float | None) -> None:
        """Move the line of a run."""
        if job not in self.running:
            self.running[job] = self.progress.add_task(job.name, total=epochs, note="")
        note = "" if score is None else f"validation {score:.3f}"
        self.progress.update(self.running[job], completed=epoch, note=note)

    def finished(self, job: Job, result: dict[str, Any]) -> None:
        """Replace the line of a run by its scores."""
        if job in self.running:
            self.progress.remove_task(self.running.pop(job))
        self.progress.advance(self.all_runs)
        scores = ", ".join(
            f"{column_heading(n)} {result['scores'][n]:.3f}" for n in result["selected_by"]
        )
        self.console.print(
            f"{job.name}: {scores}, {result['epochs']} epochs, {result['seconds']:.0f} s",
            highlight=False,
        )


def _cell(row: Row, name: str) -> str:
    if name not in row.scores:
        return ""
    text = f"{row.scores[name]:.3f}"
    if name in row.spreads:
        text += f" ± {row.spreads[name]:.3f}"
    if name == "person_macro_f1" and "person_spread" in row.scores:
        text += f" (people ± {row.scores['person_spread']:.3f})"
    return text
