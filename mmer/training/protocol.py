"""Cross-validation: every split, fold, seed and set of modalities, pooled, beside the shortcuts."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mmer.training.config import TrainingConfig, config_from_dict, read_settings
from mmer.training.data_module import modality_names, prepare_recordings
from mmer.training.files import replace_file
from mmer.training.prediction import Prediction, read_predictions
from mmer.training.run import PREDICTIONS, shortcut_file, train
from mmer.training.scores import score_predictions

CONFIG = "config.yaml"
RESULTS_JSON = "results.json"
RESULTS_CSV = "results.csv"
Key = Literal["subject", "group", "both", "given"]
SPLIT_TITLES = {
    "subject": "on people the model never saw",
    "group": "on videos (stimuli) the model never saw",
    "both": "on people and videos the model never saw",
    "given": "on the published test set",
}
SHORTCUT_NAMES = {
    "elapsed_time": "elapsed time alone",
    "group_identity": "name of the video alone",
    "majority": "most frequent answer",
}
# Settings that say how the work is done, not what comes out of it.
FREE_TO_CHANGE = ("protocol.workers", "trainer.progress", "data.folder", "data.workers")


@dataclass(frozen=True)
class Job:
    """One training run of an experiment.

    Attributes:
        split: What is never on both sides.
        modalities: The modalities trained on; None for all that the configuration names.
        seed: Seed of all randomness.
        fold: The fold held out.
    """

    split: Key
    modalities: tuple[str, ...] | None
    seed: int
    fold: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        modalities = "all" if self.modalities is None else "+".join(self.modalities)
        return f"{self.split}-{modalities}-seed{self.seed}-fold{self.fold}"

    def config(self, experiment: TrainingConfig) -> TrainingConfig:
        """The settings of this run alone."""
        data = experiment.data
        split = dataclasses.replace(data.split, key=self.split, fold=self.fold)
        modalities = (
            experiment.data.modalities if self.modalities is None else list(self.modalities)
        )
        return dataclasses.replace(
            experiment,
            seed=self.seed,
            data=dataclasses.replace(experiment.data, split=split, modalities=modalities),
            protocol=type(experiment.protocol)(),
        )


Report = Callable[[Job, int, int, "float | None"], None]


@dataclass(frozen=True)
class Row:
    """One line of the table of results.

    Attributes:
        split: What is never on both sides.
        kind: "model", "shortcut" or "published".
        name: What was scored.
        scores: Mean of each score over the seeds.
        spreads: Standard deviation of each score over the seeds; empty with one.
        seeds: Number of seeds.
    """

    split: str
    kind: str
    name: str
    scores: dict[str, float]
    spreads: dict[str, float]
    seeds: int


def plan_jobs(config: TrainingConfig) -> list[Job]:
    """List the runs that make up an experiment.

    Args:
        config: All settings.

    Returns:
        One job for each split, set of modalities, seed and fold, in the order in which they are
        run.

    Raises:
        ValueError: If a fold is outside the number of folds.
    """
    protocol, split = config.protocol, config.data.split
    splits = protocol.splits or [split.key]
    seeds = (
        [config.seed + index for index in range(protocol.seeds)]
        if isinstance(protocol.seeds, int)
        else protocol.seeds
    )
    sets: list[tuple[str, ...] | None] = [None]
    if protocol.each_modality:
        names = config.data.modalities or modality_names(prepare_recordings(config.data))
        # The longest run comes first, so that side by side no worker waits for it in the end.
        sets = [None, *((name,) for name in names)] if len(names) > 1 else [None]
    jobs = []
    for key in splits:
        total = dataclasses.replace(split, key=key, fold=0).total
        for fold in _folds(protocol.folds, split.fold, total):
            if not 0 <= fold < total:
                raise ValueError(f"protocol.folds: wanted 0 .. {total - 1} by {key}, got {fold}")
            jobs += [Job(key, names, seed, fold) for seed in seeds for names in sets]
    return jobs


def run_experiment(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    report: Report | None = None,
    finished: Callable[[Job, dict[str, Any]], None] | None = None,
) -> list[Row]:
    """Run every job of an experiment and write ``results.json`` and ``results.csv``.

    Args:
        config: All settings.
        folder: Run folder.
        resume: Go on in a folder that an interrupted experiment left: what is finished is kept,
            what was begun goes on from its last finished epoch.
        report: Called after every epoch with the job, the epochs done, all epochs, and the
            validation score if there is one. None shows Lightning's progress bar where runs follow
            one another.
        finished: Called with each job and its result.

    Returns:
        The lines of the table, models first, then shortcuts, then published figures, split by
        split.

    Raises:
        FileExistsError: If the folder is not empty and ``resume`` is False.
        FileNotFoundError: If ``resume`` is True and the folder holds no experiment.
        ValueError: If the folder's experiment has other settings.
    """
    jobs = plan_jobs(config)
    _claim(folder, config, resume)
    folders = {job: folder / job.name if len(jobs) > 1 else folder for job in jobs}
    results: dict[Job, dict[str, Any]] = {}
    for job, result in _run_jobs(config, folders, resume, report):
        results[job] = result
        if finished is not None:
            finished(job, result)
    rows = summarise(config, folders)
    write_results(folder, config, rows, [results[job] for job in jobs])
    return rows


def summarise(config: TrainingConfig, folders: dict[Job, Path]) -> list[Row]:
    """Pool predictions over folds, average scores over seeds, and put the shortcuts beside them.

    Args:
        config: All settings.
        folders: Where each finished job wrote its predictions.

    Returns:
        The lines of the table.
    """
    rows: list[Row] = []
    for split in dict.fromkeys(job.split for job in folders):
        jobs = {job: folder for job, folder in folders.items() if job.split == split}
        sets = sorted({job.modalities for job in jobs}, key=lambda names: _order(config, names))
        for modalities in sets:
            by_seed: dict[int, list[Prediction]] = {}
            for job, folder in jobs.items():
                if job.modalities == modalities:
                    by_seed.setdefault(job.seed, []).extend(read_predictions(folder / PREDICTIONS))
            scores = [score_predictions(pooled, config.evaluation) for pooled in by_seed.values()]
            name = model_name(next(iter(by_seed.values()))[0])
            rows.append(_row(split, "model", name, scores))
        # The shortcuts know nothing of seeds and modalities: one run of each fold tells them.
        folds = {job.fold: folder for job, folder in jobs.items()}
        for name in config.evaluation.shortcuts:
            pooled = [p for f in folds.values() for p in read_predictions(shortcut_file(f, name))]
            scores = [score_predictions(pooled, config.evaluation)]
            rows.append(_row(split, "shortcut", SHORTCUT_NAMES[name], scores))
        rows += [
            Row(split, "published", str(figure["name"]), dict(figure["scores"]), {}, 0)
            for figure in config.evaluation.published
            if figure.get("split", "subject") == split
        ]
    return rows


def model_name(prediction: Prediction) -> str:
    """What a model is called in a table, for example "EDA alone" or "EDA + BVP fused"."""
    names = list(prediction.contributions)
    return f"{names[0]} alone" if len(names) == 1 else f"{' + '.join(names)} fused"


def write_results(
    folder: Path, config: TrainingConfig, rows: Sequence[Row], runs: Sequence[dict[str, Any]]
) -> None:
    """Write ``results.json`` (all there is) and ``results.csv`` (the table).

    Args:
        folder: Run folder.
        config: All settings.
        rows: The lines of the table.
        runs: What each run returned.
    """
    everything = {
        "config": config.to_dict(),
        "rows": [dataclasses.asdict(row) for row in rows],
        "runs": list(runs),
    }
    with replace_file(folder / RESULTS_JSON) as temporary:
        temporary.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["split", "kind", "name", "seeds"] + [c for n in names for c in (n, f"{n} spread")]
    )
    for row in rows:
        cells = [[row.scores.get(name, ""), row.spreads.get(name, "")] for name in names]
        writer.writerow(
            [row.split, row.kind, row.name, row.seeds] + [c for pair in cells for c in pair]
        )
    with replace_file(folder / RESULTS_CSV) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def read_config(folder: Path) -> TrainingConfig:
    """Read the settings of an experiment from its run folder.

    Args:
        folder: Run folder.

    Returns:
        The settings.

    Raises:
        FileNotFoundError: If the folder holds no experiment.
        ValueError: If the file is broken.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run to resume, it has no {CONFIG}")
    return config_from_dict(read_settings(path), str(path))


def differences(before: TrainingConfig, after: TrainingConfig) -> list[str]:
    """List the settings that differ, as ``section.setting: before -> after``.

    Args:
        before: Some settings.
        after: Other settings.

    Returns:
        One text per setting, sorted by name.
    """
    old, new = _flatten(before.to_dict()), _flatten(after.to_dict())
    names = sorted(old.keys() | new.keys())
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]


def _claim(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """Write the settings into a new folder, or check that an old one was begun with the same."""
    if resume:
        changed = differences(read_config(folder), config)
        changed = [text for text in changed if not text.startswith(FREE_TO_CHANGE)]
        if changed:
            raise ValueError(
                f"{folder}: was begun with other settings ({'; '.join(changed)}); "
                "leave CONFIG and the options out to go on with those it was begun with"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder}: is there already; --resume {folder} goes on with it, --output takes another"
        )
    else:
        with replace_file(folder / CONFIG) as temporary:
            temporary.write_text(
                yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8"
            )


def _run_jobs(
    config: TrainingConfig, folders: dict[Job, Path], resume: bool, report: Report | None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run the jobs one by one, or in worker processes, and yield each result as it is finished."""
    workers = min(config.protocol.workers, len(folders))
    if workers <= 1:
        for job, folder in folders.items():
            progress = None if report is None else functools.partial(report, job)
            yield job, train(job.config(config), folder, resume=resume, progress=progress)
        return
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, _begin_worker, (news,)) as pool:
        waiting = {
            pool.submit(_run_in_worker, job, job.config(config).to_dict(), folder, resume): job
            for job, folder in folders.items()
        }
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not news.empty():
                    told = news.get()
                    if report is not None:
                        report(*told)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()


# What a worker process tells the experiment, set when it begins.
_news: Any = None


def _begin_worker(news: Any) -> None:
    """Take the queue, and end with the experiment: no worker writes into a folder being resumed."""
    global _news
    _news = news
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_worker(
    job: Job, settings: dict[str, Any], folder: Path, resume: bool
) -> dict[str, Any]:
    return train(
        config_from_dict(settings, CONFIG),
        folder,
        resume=resume,
        progress=lambda epoch, epochs, score: _news.put((job, epoch, epochs, score)),
    )


def _row(split: str, kind: str, name: str, scores: Sequence[dict[str, float]]) -> Row:
    names = list(dict.fromkeys(key for score in scores for key in score))
    columns = {key: [score[key] for score in scores if key in score] for key in names}
    return Row(
        split,
        kind,
        name,
        {key: float(np.mean(column)) for key, column in columns.items()},
        {key: float(np.std(column, ddof=1)) for key, column in columns.items() if len(column) > 1},
        len(scores),
    )


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _folds(wanted: str | int | list[int] | None, fold: int, total: int) -> Iterable[int]:
    if wanted is None:
        return [fold]
    if isinstance(wanted, int):
        return [wanted]
    return range(total) if isinstance(wanted, str) else wanted


def _order(config: TrainingConfig, modalities: tuple[str, ...] | None) -> tuple[int, int]:
    """Single modalities first, in the order of the configuration, then all together."""
    if modalities is None:
        return (1, 0)
    names = config.data.modalities or list(modalities)
    return (0, names.index(modalities[0]))
