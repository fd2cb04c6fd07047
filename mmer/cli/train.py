"""``mmer train``: train a model as a YAML file describes, on one fold or a whole protocol."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from mmer.training.config import TrainingConfig

DESCRIPTION = (
    "Train a model as a configuration file describes. Every setting of the file can be overridden "
    "by an option of its name, for example --trainer.max_epochs 3. The run folder receives the "
    "settings, checkpoints, logs, predictions, and the results as json and csv."
)
RUNS = Path("runs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; its own words, options and help are read by jsonargparse in :func:`run`."""
    parser = subparsers.add_parser(
        "train",
        help="train a model as a configuration file describes",
        add_help=False,
        prefix_chars="\\0",
    )
    parser.add_argument("words", nargs="*")


def run(arguments: argparse.Namespace) -> int:
    """Train.

    Args:
        arguments: ``words``, all that was written after ``mmer train``.

    Returns:
        0.

    Raises:
        FileExistsError: If the run folder is not empty.
        ValueError: If a word or a setting is wrong.
    """
    config, folder, resume = read_arguments(arguments.words)
    from mmer._console import wide_console
    from mmer.training.display import ExperimentProgress, results_table
    from mmer.training.protocol import plan_jobs, run_experiment

    console = wide_console()
    jobs = len(plan_jobs(config))
    try:
        if jobs == 1:
            rows = run_experiment(config, folder, resume=resume)
        else:
            with ExperimentProgress(console, jobs) as progress:
                rows = run_experiment(
                    config,
                    folder,
                    resume=resume,
                    report=progress.report,
                    finished=progress.finished,
                )
    except KeyboardInterrupt:
        console.print(f"interrupted; mmer train --resume {folder} goes on", highlight=False)
        raise
    for split in dict.fromkeys(row.split for row in rows):
        console.print(results_table(rows, split, config.name))
    console.print(f"written to {folder}", highlight=False)
    return 0


def read_arguments(words: Sequence[str]) -> tuple[TrainingConfig, Path, bool]:
    """Read the command line of ``mmer train``.

    Args:
        words: All that was written after ``mmer train``.

    Returns:
        All settings, the run folder, and whether to go on with what is in it.

    Raises:
        ValueError: If a word or a setting is wrong, or there is no such file.
    """
    parser = build_parser()
    from mmer.training.config import config_from_namespace, read_settings

    shorthand = _parse(parser, words)
    resume = shorthand.resume is not None
    if resume and shorthand.output is not None:
        raise ValueError("--output: cannot be given with --resume, which goes on in its own folder")
    path = (
        Path(shorthand.resume) / "config.yaml" if resume and not shorthand.file else shorthand.file
    )
    if path is None:
        raise ValueError(
            "CONFIG: a configuration file is needed, for example configs/generated.yaml"
        )
    read_settings(Path(path))
    # The file comes first, so that whatever is written in words has the last one.
    namespace = _parse(parser, ["--config", str(path), *words])
    config = config_from_namespace(parser, namespace)
    protocol, data = config.protocol, config.data
    if namespace.folds is not None:
        protocol = dataclasses.replace(protocol, folds=namespace.folds)
    if namespace.seeds is not None:
        protocol = dataclasses.replace(protocol, seeds=namespace.seeds)
    if namespace.jobs is not None:
        protocol = dataclasses.replace(protocol, workers=namespace.jobs)
    if namespace.modalities is not None:
        data = dataclasses.replace(data, modalities=namespace.modalities.split(","))
    config = dataclasses.replace(config, protocol=protocol, data=data)
    if resume:
        return config, Path(shorthand.resume), True
    return config, Path(namespace.output) if namespace.output else _new_folder(config.name), False


def build_parser() -> ArgumentParser:
    """Build the parser of the words: a file, a few shorthands, and every setting."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    from mmer.training.config import add_settings

    parser = ArgumentParser(
        prog="mmer train",
        usage="mmer train CONFIG [options] [--section.setting VALUE ...]",
        description=DESCRIPTION,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", metavar="CONFIG", help="YAML file of settings")
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="further YAML files, each overriding what came before",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="run folder; a new one in runs/ by default"
    )
    parser.add_argument("--resume", metavar="FOLDER", help="go on in an interrupted run's folder")
    parser.add_argument(
        "--folds", type=Literal["all"] | int | list[int] | None, help="same as --protocol.folds"
    )
    parser.add_argument("--seeds", type=int | list[int] | None, help="same as --protocol.seeds")
    parser.add_argument("--jobs", type=int | None, help="same as --protocol.workers")
    parser.add_argument(
        "--modalities", metavar="NAME[,NAME]", help="train on these only; same as --data.modalities"
    )
    add_settings(parser)
    return parser


def _parse(parser: ArgumentParser, words: Sequence[str]) -> Any:
    try:
        return parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


def _new_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that is not there yet."""
    number = 1
    while (folder := RUNS / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder
