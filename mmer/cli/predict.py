"""``mmer predict``: write what a trained model says of a recording as a table, and draw it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmer.data import Recording
    from mmer.training.config import DataConfig
    from mmer.training.prediction import Prediction

FORMATS = ("parquet", "csv")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "predict",
        help="write a trained model's predictions for a recording, and draw them",
        description="Predict one recording and write PREFIX.parquet (or .csv), one row per output "
        "time, and PREFIX.png, the timeline. Nothing is overwritten without --force.",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a .ckpt file, or a run folder (its best epoch)"
    )
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="a file of recordings, or the name of a recording of the model's data set, for "
        "example S09; FILE:NAME takes one of several in a file",
    )
    parser.add_argument(
        "--output", metavar="PREFIX", help="where to write; the name of the recording by default"
    )
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="parquet by default")
    parser.add_argument("--no-picture", action="store_true", help="write the table alone")
    parser.add_argument("--force", action="store_true", help="replace files that are there already")


def run(arguments: argparse.Namespace) -> int:
    """Predict.

    Args:
        arguments: ``checkpoint``, ``recording``, ``output``, ``format``, ``no_picture`` and
            ``force``.

    Returns:
        0.

    Raises:
        FileExistsError: If a file to write is there already.
        ValueError: If the checkpoint or the recording cannot be used.
    """
    from mmer.training.recognizer import load_recognizer

    recognizer = load_recognizer(arguments.checkpoint)
    recording = find_recording(arguments.recording, recognizer.config.data)
    prefix = Path(arguments.output or recording.identifier.replace("/", "-"))
    table = prefix.with_name(f"{prefix.name}.{arguments.format}")
    picture = prefix.with_name(f"{prefix.name}.png")
    for path in (table, *(() if arguments.no_picture else (picture,))):
        if path.exists() and not arguments.force:
            raise FileExistsError(
                f"{path}: is there already; --force replaces it, --output takes another"
            )
    predictions = recognizer.predict(recognizer.prepare([recording]))
    write_table(predictions[0], table)
    print(f"written {table}")
    if not arguments.no_picture:
        from mmer.analysis.timeline import plot_timeline

        plot_timeline(
            predictions[0],
            recording,
            picture,
            unseen=recognizer.unseen(recording),
            generated=recording.source == "generated",
            modalities=list(recognizer.model.config.modalities),
            threshold=recognizer.config.evaluation.threshold,
        )
        print(f"written {picture}")
    return 0


def find_recording(words: str, data: DataConfig) -> Recording:
    """Find the recording that is asked for.

    Args:
        words: A file, ``FILE:NAME`` for one of several in it, or the name of one of the data set.
        data: The data set that the model was trained on.

    Returns:
        The recording.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a recording.
        ValueError: If the file holds several recordings and none is named.
    """
    from mmer.data import load_dataset

    path, colon, name = words.rpartition(":")
    if Path(words).exists():
        path, name = words, ""
    elif not (colon and Path(path).exists()):
        path, name = "", words
    recordings = (
        load_dataset(path)
        if path
        else load_dataset(data.dataset, folder=data.folder, **data.options)
    )
    if not name and len(recordings) == 1:
        return recordings[0]
    for recording in recordings:
        if recording.identifier == name:
            return recording
    names = ", ".join(recording.identifier for recording in recordings[:10])
    there = f"{path or data.dataset} holds {names}" + (", ..." if len(recordings) > 10 else "")
    if not name:
        raise ValueError(
            f"{path}: holds {len(recordings)} recordings, choose one by {path}:NAME; {there}"
        )
    raise FileNotFoundError(f"{words}: neither a file nor a recording; {there}")


def write_table(prediction: Prediction, path: Path) -> None:
    """Write a prediction as a table, one row per output time.

    Columns: time (seconds), probability_CLASS, predicted, uncertainty (entropy, 0 sure .. 1 even
        odds), value_VALUE, contribution_MODALITY, and, where the truth is known, true_class and
        true_VALUE.

    Args:
        prediction: What to write.
        path: File to write; its ending, .parquet or .csv, says how. Replaced in one move.
    """
    import pyarrow
    from pyarrow import csv, parquet

    from mmer.training.files import replace_file

    columns: dict[str, Any] = {"time": prediction.times}
    names = np.array([*prediction.class_names, None], dtype=object)
    if prediction.probabilities is not None:
        for index, name in enumerate(prediction.class_names):
            columns[f"probability_{name}"] = prediction.probabilities[:, index]
        columns["predicted"] = names[prediction.predicted]
        columns["uncertainty"] = prediction.uncertainty
    for index, name in enumerate(prediction.value_names):
        if prediction.values is not None:
            columns[f"value_{name}"] = prediction.values[:, index]
    for name, share in prediction.contributions.items():
        columns[f"contribution_{name}"] = share
    if prediction.classes is not None:
        columns["true_class"] = names[prediction.classes]
    if prediction.targets is not None:
        for index, name in enumerate(prediction.value_names):
            columns[f"true_{name}"] = prediction.targets[:, index]
    table = pyarrow.table(columns)
    with replace_file(path) as temporary:
        if path.suffix == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)
