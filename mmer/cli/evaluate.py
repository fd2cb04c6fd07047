"""``mmer evaluate``: measure a trained model on recordings, beside what it must be read against."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmer.data import Recording
    from mmer.training.recognizer import TrainedRecognizer

PARTS = ("test", "validation", "train", "all")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a trained model on recordings it has not seen",
        description="Score a trained model on whole recordings, by default those of its own data "
        "set that were kept out of training. What can be scored without looking at anybody is "
        "printed beside it.",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a .ckpt file, or a run folder (its best epoch)"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="other recordings: the name of a data set, a file or a folder",
    )
    parser.add_argument(
        "--split",
        choices=PARTS,
        help="which of the recordings, by who was trained on; test by default, all with --data",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate.

    Args:
        arguments: ``checkpoint``, ``data`` and ``split``.

    Returns:
        0.

    Raises:
        ValueError: If the checkpoint or the recordings cannot be used.
    """
    from mmer._console import wide_console
    from mmer.training.display import results_table
    from mmer.training.protocol import SHORTCUT_NAMES, Row
    from mmer.training.recognizer import load_recognizer
    from mmer.training.scores import score_predictions
    from mmer.training.shortcuts import SHORTCUTS

    recognizer = load_recognizer(arguments.checkpoint)
    testing, training = choose_recordings(recognizer, arguments.data, arguments.split)
    config = recognizer.config
    predictions = recognizer.predict(testing)
    scores = score_predictions(predictions, config.evaluation)
    if not scores:
        raise ValueError(f"{testing[0].source}: nothing to score, the recordings have no labels")
    rows = [Row(config.data.split.key, "model", arguments.checkpoint, scores, {}, 1)]
    for name in config.evaluation.shortcuts if training else ():
        scores = score_predictions(SHORTCUTS[name](training, testing), config.evaluation)
        rows.append(Row(config.data.split.key, "shortcut", SHORTCUT_NAMES[name], scores, {}, 1))
    people = len({recording.subject for recording in testing})
    source = arguments.data or f"{config.data.dataset}, {arguments.split or 'test'}"
    table = results_table(rows, config.data.split.key)
    table.title = f"{source}: {len(testing)} recordings of {people} people"
    wide_console().print(table)
    return 0


def choose_recordings(
    recognizer: TrainedRecognizer, data: str | None, split: str | None
) -> tuple[list[Recording], list[Recording]]:
    """Read the recordings to score, and those that shortcuts may learn from.

    Args:
        recognizer: The trained model.
        data: Other recordings than those of its data set, or None.
        split: Which of them, by who was trained on; None is "test", or "all" of other recordings.

    Returns:
        Prepared recordings to score, and the prepared training recordings of the model's data set
        (none with other recordings).

    Raises:
        FileNotFoundError: If the recordings are not there.
        ValueError: If none is left.
    """
    from mmer.data import load_dataset

    settings = recognizer.config.data
    split = split or ("all" if data else "test")
    if data:
        recordings = recognizer.prepare(load_dataset(data))
    else:
        recordings = recognizer.prepare(
            load_dataset(settings.dataset, folder=settings.folder, **settings.options)
        )
    parts = {part: [r for r in recordings if recognizer.part(r) == part] for part in PARTS}
    chosen = recordings if split == "all" else parts[split]
    if not chosen:
        raise ValueError(
            f"--split {split}: no recording of {data or settings.dataset} belongs to it"
        )
    return chosen, [] if data else parts["train"] + parts["validation"]
