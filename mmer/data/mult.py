"""Reader of the feature pickles of MulT (github.com/yaohungt/Multimodal-Transformer)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.arrays import check_array
from mmer.data.errors import RecordingError, reading
from mmer.data.padded import features, not_leading_zeros, section, streams_of_utterance
from mmer.data.pickles import load_pickle
from mmer.data.recording import Labels, Recording

PARTS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")
IEMOCAP_EMOTIONS = ("neutral", "happy", "sad", "angry")


def read_mult(
    path: str | os.PathLike[str], *, rates: Mapping[str, float] | None = None
) -> list[Recording]:
    """Read a MulT feature file: train, valid and test utterances.

    The utterances are padded with zeros on the LEFT: all-zero steps before the first other one are
    padding, later ones are real. As in MulT, a feature that is not finite is set to 0.

    Args:
        path: The pickle. It is read without running anything it asks for.
        rates: Steps per second of "text", "audio" and "vision", if known. By default the modalities
            of an utterance last equally long, one second per step of the longest.

    Returns:
        One recording per utterance, identifier "train/NUMBER_VIDEO", subject and group the first
        part of its ``id`` (the identifier where there is none). Labels ``(n, targets, 1)`` are
        values, one called "sentiment"; IEMOCAP's ``(n, 4, 2)``, not or yes for each emotion, are
        values 0 and 1.

    Raises:
        RecordingError: If the file is broken, hostile, or lacks a field; it names the field.
        FileNotFoundError: If there is no such file.
    """
    return recordings_of_mult(path, load_pickle(path), rates)


def recordings_of_mult(
    path: str | os.PathLike[str], content: Any, rates: Mapping[str, float] | None = None
) -> list[Recording]:
    """Build the recordings from the unpickled content, see :func:`read_mult`."""
    path = Path(path)
    if not isinstance(content, dict) or not any(part in content for part in PARTS):
        raise RecordingError(path, "train", "missing, and so are valid and test")
    recordings = []
    for part in PARTS:
        if part in content:
            recordings += _part(path, part, section(path, content, part), rates)
    return recordings


def _part(
    path: Path, part: str, content: dict[str, Any], rates: Mapping[str, float] | None
) -> list[Recording]:
    labels, value_names = _labels(path, part, content)
    count = len(labels)
    values = {name: features(path, part, content, name) for name in MODALITIES}
    for name, array in values.items():
        check_array(path, f"{part}.{name}", array, shape=(count, None, None))
    videos = _videos(path, part, content, count)
    recordings = []
    for index in range(count):
        identifier = f"{part}/{index:05d}" + (f"_{videos[index]}" if videos else "")
        video = videos[index] if videos else identifier
        utterance = {name: array[index] for name, array in values.items()}
        with reading(path, identifier):
            recordings.append(
                Recording(
                    identifier=identifier,
                    subject=video,
                    group=video,
                    streams=streams_of_utterance(
                        path,
                        identifier,
                        utterance,
                        {name: not_leading_zeros(array) for name, array in utterance.items()},
                        rates,
                    ),
                    labels=Labels(values=labels[index : index + 1]),
                    value_names=value_names,
                    source=str(path),
                )
            )
    return recordings


def _labels(path: Path, part: str, content: dict[str, Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    field = f"{part}.labels"
    if "labels" not in content:
        raise RecordingError(path, field, "missing")
    labels = np.asarray(content["labels"])
    check_array(path, field, labels, finite=True)
    if labels.ndim == 3 and labels.shape[2] == 2:
        labels = labels.argmax(axis=2)
    elif labels.ndim == 3 and 1 in labels.shape[1:]:
        labels = labels.reshape(len(labels), -1)
    elif labels.ndim == 1:
        labels = labels[:, None]
    if labels.ndim != 2:
        raise RecordingError(
            path, field, f"must be (n, targets, 1) or (n, targets, 2), got shape {labels.shape}"
        )
    width = labels.shape[1]
    if width == 1:
        return labels, ("sentiment",)
    if width == len(IEMOCAP_EMOTIONS):
        return labels, IEMOCAP_EMOTIONS
    return labels, tuple(f"value_{index}" for index in range(width))


def _videos(path: Path, part: str, content: dict[str, Any], count: int) -> list[str]:
    if content.get("id") is None:
        return []
    names = content["id"]
    if not isinstance(names, (list, tuple, np.ndarray)) or len(names) != count:
        raise RecordingError(path, f"{part}.id", f"must name {count} utterances")
    videos = []
    for name in names:
        first = name[0] if isinstance(name, (list, tuple, np.ndarray)) and len(name) else name
        videos.append(first.decode("latin-1") if isinstance(first, bytes) else str(first))
    return videos
