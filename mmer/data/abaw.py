"""Reader of ABAW (Affective Behaviour Analysis in-the-Wild): a text file of labels per video."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmer.data.arrays import ArrayFile, check_array, check_duration, read_npy
from mmer.data.errors import RecordingError, reading
from mmer.data.recording import Labels, Recording, Stream

EXPRESSIONS = (
    "Neutral",
    "Anger",
    "Disgust",
    "Fear",
    "Happiness",
    "Sadness",
    "Surprise",
    "Other",
)
VALUES = ("valence", "arousal")
# In the valence and arousal files an unlabelled frame has -5.
UNLABELLED_VALUE = -5.0
ANNOTATION_ENDINGS = (".csv", ".txt")
FEATURE_ENDINGS = (".npy", ".npz")
# A second person in one video.
PERSON_ENDINGS = ("_left", "_right")


def read_abaw(
    annotations: str | os.PathLike[str],
    features: str | os.PathLike[str],
    *,
    frame_rate: float = 30.0,
    rates: Mapping[str, float] | None = None,
    tolerance: float = 1.0,
) -> list[Recording]:
    """Read the videos of an ABAW folder.

    Args:
        annotations: Folder with ``VIDEO.csv`` or ``VIDEO.txt``, one line per frame below an
            optional header: the expression 0 to 7, -1 = unlabelled; or ``valence,arousal`` from -1
            to 1, -5 = unlabelled.
        features: Folder with one folder per modality that holds ``VIDEO.npy`` of shape ``(time,
            features)``, or ``VIDEO.npz`` with ``values`` and, if it knows better, ``rate`` or
            ``times`` (seconds). A row that is wholly NaN (no face was found) is masked. A video
            without a file lacks the modality.
        frame_rate: Frames per second of the labels.
        rates: Rows per second of each modality; ``frame_rate`` by default.
        tolerance: Seconds by which the features may be longer or shorter than the labels.

    Returns:
        One recording per video, in order of name. Subject is the video (ABAW names no people);
        group too, without the ending that tells two people in one video apart.

    Raises:
        RecordingError: If a file is broken or does not last as long as its labels; it names file
            and field.
        FileNotFoundError: If a folder is missing or holds nothing.
    """
    annotations, features = Path(annotations), Path(features)
    for folder in (annotations, features):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder")
    files = sorted(p for p in annotations.iterdir() if p.suffix.lower() in ANNOTATION_ENDINGS)
    if not files:
        raise FileNotFoundError(
            f"{annotations}: no {' or '.join(ANNOTATION_ENDINGS)} file is in it"
        )
    modalities = sorted(folder for folder in features.iterdir() if folder.is_dir())
    if not modalities:
        raise FileNotFoundError(f"{features}: no folder of a modality is in it")
    unknown = set(rates or {}) - {folder.name for folder in modalities}
    if unknown:
        raise ValueError(f"rates: {features} has no modality {', '.join(sorted(unknown))}")
    recordings = []
    for file in files:
        labels, class_names, value_names = _read_labels(file, frame_rate)
        streams = {}
        for folder in modalities:
            found = [folder / f"{file.stem}{end}" for end in FEATURE_ENDINGS]
            found = [path for path in found if path.is_file()]
            if len(found) > 1:
                raise RecordingError(found[0], "file", f"there is {found[1].name} too")
            if found:
                rate = (rates or {}).get(folder.name, frame_rate)
                streams[folder.name] = _read_features(
                    found[0], rate, len(labels) / frame_rate, tolerance
                )
        if not streams:
            raise RecordingError(file, "features", f"there are none for {file.stem} in {features}")
        with reading(file, "file"):
            recordings.append(
                Recording(
                    identifier=file.stem,
                    subject=file.stem,
                    group=_video(file.stem),
                    streams=streams,
                    labels=labels,
                    class_names=class_names,
                    value_names=value_names,
                    source=str(file),
                )
            )
    return recordings


def _read_labels(file: Path, frame_rate: float) -> tuple[Labels, tuple[str, ...], tuple[str, ...]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RecordingError(file, "file", f"is not text ({error})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    header: list[str] = []
    if lines and not _is_number(lines[0].split(",")[0]):
        header = [name.strip() for name in lines.pop(0).split(",")]
    if not lines:
        raise RecordingError(file, "line 1", "there is no frame")
    first = 2 if header else 1
    width = len(lines[0].split(","))
    rows = np.empty((len(lines), width))
    for number, line in enumerate(lines):
        cells = line.split(",")
        if len(cells) != width or not all(_is_number(cell) for cell in cells):
            raise RecordingError(
                file, f"line {number + first}", f"must be {width} numbers, got {line.strip()!r}"
            )
        rows[number] = [float(cell) for cell in cells]
    times = np.arange(len(rows)) / frame_rate
    if width == 1:
        return _expressions(file, rows[:, 0], first, header, times)
    if width == 2:
        values = np.where(rows == UNLABELLED_VALUE, np.nan, rows)
        wrong = np.flatnonzero((np.abs(values) > 1).any(axis=1))
        if len(wrong):
            raise RecordingError(
                file,
                f"line {wrong[0] + first}",
                f"valence and arousal must be from -1 to 1, or -5, got {lines[wrong[0]]!r}",
            )
        return Labels(values=values, times=times), (), VALUES
    raise RecordingError(file, f"line {first}", f"must hold 1 or 2 numbers, got {width}")


def _expressions(
    file: Path,
    column: NDArray[np.float64],
    first: int,
    header: list[str],
    times: NDArray[np.float64],
) -> tuple[Labels, tuple[str, ...], tuple[str, ...]]:
    names = tuple(header) if len(header) > 1 else EXPRESSIONS
    if len(set(names)) != len(names) or not all(names):
        raise RecordingError(file, "line 1", f"must name different expressions, got {header}")
    wrong = np.flatnonzero(~np.isin(column, np.arange(-1, len(names))))
    if len(wrong):
        raise RecordingError(
            file,
            f"line {wrong[0] + first}",
            f"must be -1 or one of {len(names)} expressions, got {column[wrong[0]]:g}",
        )
    return Labels(classes=column.astype(np.int64), times=times), names, ()


def _read_features(path: Path, rate: float, seconds: float, tolerance: float) -> Stream:
    times = None
    if path.suffix == ".npz":
        with ArrayFile(path) as file:
            values = file.array("values", shape=(None, None))
            if "rate" in file:
                rate = float(file.array("rate", shape=()))
            if "times" in file:
                times = file.array("times", shape=(len(values),), finite=True)
    else:
        values = read_npy(path, shape=(None, None))
    found = (
        ~np.isnan(values).all(axis=1) if values.dtype.kind == "f" else np.ones(len(values), bool)
    )
    check_array(path, "values", values[found], finite=True)
    with reading(path, "values"):
        if times is not None:
            stream = Stream.at(values, times, mask=found)
            if len(times) and times[-1] > seconds + tolerance:
                raise RecordingError(
                    path, "times", f"end at {times[-1]:.1f} s, the labels at {seconds:.1f} s"
                )
            return stream
        stream = Stream.regular(values, rate, mask=found)
    check_duration(path, "values", len(values), rate, seconds, tolerance)
    return stream


def _video(name: str) -> str:
    for ending in PERSON_ENDINGS:
        if name.endswith(ending) and name != ending:
            return name[: -len(ending)]
    return name


def _is_number(cell: str) -> bool:
    try:
        return np.isfinite(float(cell))
    except ValueError:
        return False
