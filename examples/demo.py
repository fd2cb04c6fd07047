"""The main job: from recordings of people to a picture of the state of one the model never saw.

Trains on Stress-Predict (EDA, TEMP, BVP and ACC of a wrist sensor, each at its own rate), once with
each modality alone and once with all of them fused; prints what each scores on people who were kept
out of training, beside what the elapsed time alone scores; and draws the timeline of one of them.

The recordings are looked for in the folder that MMER_DATA names, then in ../shared/data. Without
them the same is done on generated recordings, which prove nothing but that the way is open.

    python examples/demo.py [--output FOLDER] [--folds all] [--generated]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Each training run has one core to itself; two of them side by side are faster than one on two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from mmer._console import wide_console
from mmer.analysis.timeline import plot_timeline
from mmer.data import load_dataset
from mmer.training.config import TrainingConfig, config_from_dict, read_settings
from mmer.training.display import ExperimentProgress, results_table
from mmer.training.prediction import read_predictions
from mmer.training.protocol import Job, plan_jobs, run_experiment, shortcut_file
from mmer.training.run import PREDICTIONS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(words: Sequence[str] | None = None) -> int:
    """Train, print the table, draw the picture."""
    parser = argparse.ArgumentParser(
        description="From recordings to a picture of a person's state."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--folds", default="0", help="which fold is kept unseen, or all in turn")
    parser.add_argument("--generated", action="store_true", help="use generated recordings")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="at once")
    arguments = parser.parse_args(words)
    begun = time.monotonic()
    console = wide_console()
    config = choose_config(console, arguments.generated)
    protocol = dataclasses.replace(
        config.protocol,
        folds="all" if arguments.folds == "all" else int(arguments.folds),
        seeds=1,
        each_modality=True,
        workers=arguments.workers,
    )
    config = dataclasses.replace(config, protocol=protocol)
    folder = new_folder(arguments.output)
    jobs = plan_jobs(config)
    with ExperimentProgress(console, len(jobs)) as progress:
        rows = run_experiment(config, folder, report=progress.report, finished=progress.finished)
    console.print(results_table(rows, "subject", config.name))
    picture = draw(config, jobs, folder, arguments.output / "timeline.png")
    console.print(f"picture: {picture}", highlight=False)
    console.print(f"all results: {folder}", highlight=False)
    console.print(f"done in {time.monotonic() - begun:.0f} s", highlight=False)
    return 0


def choose_config(console: Console, generated: bool) -> TrainingConfig:
    """The settings for the real recordings if they are there, else for generated ones."""
    name = "generated" if generated else "stress_predict"
    if not generated:
        try:
            source = load_dataset(name)[0].source
            console.print(f"recordings: {source}", highlight=False)
        except FileNotFoundError as error:
            console.print(f"{error}\n", highlight=False, markup=False)
            name = "generated"
    if name == "generated":
        console.print(
            "GENERATED RECORDINGS: no real person, the scores prove nothing.", style="red"
        )
    path = CONFIGS / f"{name}.yaml"
    return config_from_dict(read_settings(path), str(path))


def new_folder(output: Path) -> Path:
    """The first of run-1, run-2, ... that is not there yet."""
    number = 1
    while (folder := output / f"run-{number}").exists():
        number += 1
    return folder


def draw(config: TrainingConfig, jobs: list[Job], folder: Path, path: Path) -> Path:
    """Draw the person whose score is in the middle of all who were kept out of training."""
    runs = [folder / job.name for job in jobs if job.modalities is None]
    predictions = [p for run in runs for p in read_predictions(run / PREDICTIONS)]
    predictions.sort(key=lambda prediction: prediction.macro_f1 or 0.0)
    chosen = predictions[len(predictions) // 2]
    by_time = [p for run in runs for p in read_predictions(shortcut_file(run, "elapsed_time"))]
    other = next(p for p in by_time if p.identifier == chosen.identifier)
    recordings = load_dataset(config.data.dataset, folder=config.data.folder, **config.data.options)
    return plot_timeline(
        chosen,
        next(r for r in recordings if r.identifier == chosen.identifier),
        path,
        unseen=True,
        generated=config.data.dataset == "generated",
        note=f"elapsed time alone would score {other.macro_f1:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
