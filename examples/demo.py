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
from pathlib import Path

# Each training run has one core to itself; two of them side by side are faster than one on two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from mmer.analysis.timeline import plot_timeline
from mmer.data import find_data_folder, load_dataset
from mmer.training.config import TrainingConfig, config_from_dict, read_settings
from mmer.training.display import ExperimentProgress, results_table, wide_console
from mmer.training.prediction import read_predictions
from mmer.training.protocol import Job, plan_jobs, run_experiment, shortcut_file
from mmer.training.run import PREDICTIONS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> int:
    """Train, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("demo_output"), help="folder to write to"
    )
    parser.add_argument("--folds", default="0", help="the fold kept unseen, or all")
    parser.add_argument("--generated", action="store_true", help="use generated recordings")
    arguments = parser.parse_args()
    console = wide_console()
    begun = time.monotonic()
    config = choose_config(console, arguments.generated)
    folds = "all" if arguments.folds == "all" else int(arguments.folds)
    config = dataclasses.replace(
        config,
        protocol=dataclasses.replace(
            config.protocol,
            folds=folds,
            seeds=1,
            each_modality=True,
            workers=min(2, os.cpu_count() or 1),
        ),
    )
    run_folder = new_folder(arguments.output)
    jobs = plan_jobs(config)
    with ExperimentProgress(console, len(jobs)) as progress:
        rows = run_experiment(
            config, run_folder, report=progress.report, finished=progress.finished
        )
    console.print(results_table(rows, "subject", config.name))
    picture = draw(config, jobs, run_folder, arguments.output / "timeline.png")
    console.print(f"picture: {picture}", highlight=False)
    console.print(f"all results: {run_folder}", highlight=False)
    console.print(f"{time.monotonic() - begun:.0f} s", highlight=False)
    return 0


def choose_config(console: Console, generated: bool) -> TrainingConfig:
    """The settings for the real recordings if they are there, else for generated ones."""
    name = "generated" if generated else "stress_predict"
    if not generated:
        try:
            file = find_data_folder() / "stress_predict.npz"
            if not file.is_file():
                raise FileNotFoundError(f"{file}: there is no such file.")
            console.print(f"recordings: {file}", highlight=False)
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


def draw(config: TrainingConfig, jobs: list[Job], run_folder: Path, path: Path) -> Path:
    """Draw the person whose score is in the middle of all who were kept out of training."""
    fused = [job for job in jobs if job.modalities is None]
    predictions = [
        p for job in fused for p in read_predictions(run_folder / job.name / PREDICTIONS)
    ]
    by_score = sorted(predictions, key=lambda prediction: prediction.macro_f1 or 0.0)
    chosen = by_score[len(by_score) // 2]
    by_time = {
        p.identifier: p
        for job in fused
        for p in read_predictions(shortcut_file(run_folder / job.name, "elapsed_time"))
    }
    recordings = load_dataset(config.data.dataset, folder=config.data.folder, **config.data.options)
    return plot_timeline(
        chosen,
        next(r for r in recordings if r.identifier == chosen.identifier),
        path,
        unseen=True,
        generated=config.data.dataset == "generated",
        note=f"elapsed time alone would score {by_time[chosen.identifier].macro_f1:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
