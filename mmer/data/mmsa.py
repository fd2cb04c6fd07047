"""Reader of the feature pickles of MMSA (github.com/thuiar/MMSA): MOSI, MOSEI and SIMS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.arrays import check_array, check_unique
from mmer.data.errors import RecordingError, reading
from mmer.data.padded import (
    features,
    not_outer_zeros,
    real_length,
    section,
    streams_of_utterance,
)
from mmer.data.pickles import load_pickle
from mmer.data.recording import Labels, Recording

PARTS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")
# MMSA writes the identifier of an utterance as video$_$clip.
CLIP_SEPARATOR = "$_$"


def read_mmsa(
    path: str | os.PathLike[str], *, rates: Mapping[str, float] | None = None
) -> list[Recording]:
    """Read an MMSA feature file: train, valid and test utterances, each with a sentiment.

    As in MMSA, a feature that is not finite (-inf in the audio) is set to 0 and its step stays
    real. Padding is what lies beyond ``audio_lengths`` and ``vision_lengths``, beyond the attention
    mask in ``text_bert``, or, where the file has none of these, the all-zero steps at either end. A
    modality with nothing else is missing: wholly masked.

    Args:
        path: The pickle. It is read without running anything it asks for.
        rates: Steps per second of "text", "audio" and "vision", if known. By default the modalities
            of an utterance last equally long, one second per step of the longest.

    Returns:
        One recording per utterance, identifier "train/VIDEO$_$CLIP", subject and group the video.

    Raises:
        RecordingError: If the file is broken, hostile, or lacks a field; it names the field.
        FileNotFoundError: If there is no such file.
    """
    return recordings_of_mmsa(path, load_pickle(path), rates)


def recordings_of_mmsa(
    path: str | os.PathLike[str], content: Any, rates: Mapping[str, float] | None = None
) -> list[Recording]:
    """Build the recordings from the unpickled content, see :func:`read_mmsa`."""
    path = Path(path)
    if not isinstance(content, dict) or not any(part in content for part in PARTS):
        raise RecordingError(path, "train", "missing, and so are valid and test")
    recordings = []
    for part in PARTS:
        if part in content:
            recordings += _part(path, part, section(path, content, part), rates)
    check_unique(path, "id", (recording.identifier for recording in recordings))
    return recordings


def _part(
    path: Path, part: str, content: dict[str, Any], rates: Mapping[str, float] | None
) -> list[Recording]:
    names = _column(path, part, content, "id")
    identifiers = [
        name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names
    ]
    count = len(identifiers)
    values = {name: features(path, part, content, name) for name in MODALITIES}
    for name, array in values.items():
        check_array(path, f"{part}.{name}", array, shape=(count, None, None))
    labels = np.asarray(_column(path, part, content, "regression_labels"))
    if labels.size != count or labels.dtype.kind not in "fiu":
        raise RecordingError(
            path,
            f"{part}.regression_labels",
            f"must be {count} numbers, got {labels.dtype} of shape {labels.shape}",
        )
    labels = labels.reshape(count, 1)
    check_array(path, f"{part}.regression_labels", labels, finite=True)
    masks = {name: _masks(path, part, content, name, array) for name, array in values.items()}
    recordings = []
    for index, identifier in enumerate(identifiers):
        field = f"{part}.{identifier}"
        video = identifier.partition(CLIP_SEPARATOR)[0]
        with reading(path, field):
            recordings.append(
                Recording(
                    identifier=f"{part}/{identifier}",
                    subject=video,
                    group=video,
                    streams=streams_of_utterance(
                        path,
                        field,
                        {name: array[index] for name, array in values.items()},
                        {name: mask[index] for name, mask in masks.items()},
                        rates,
                    ),
                    labels=Labels(values=labels[index : index + 1]),
                    value_names=("sentiment",),
                    source=str(path),
                )
            )
    return recordings


def _masks(
    path: Path, part: str, content: dict[str, Any], name: str, values: NDArray[np.float32]
) -> list[NDArray[np.bool_]]:
    count, total = values.shape[:2]
    lengths_name = f"{name}_lengths"
    if lengths_name in content:
        lengths = np.asarray(_column(path, part, content, lengths_name))
        field = f"{part}.{lengths_name}"
        check_array(path, field, lengths, kind="integer", shape=(count,), low=0, high=total)
        return [real_length(int(length), total) for length in lengths]
    if name == "text" and "text_bert" in content:
        tokens = np.asarray(content["text_bert"])
        check_array(path, f"{part}.text_bert", tokens, shape=(count, 3, total), finite=True)
        return list(tokens[:, 1] > 0)
    return [not_outer_zeros(utterance) for utterance in values]


def _column(path: Path, part: str, content: dict[str, Any], name: str) -> Any:
    if name not in content:
        raise RecordingError(path, f"{part}.{name}", "missing")
    column = content[name]
    if not isinstance(column, (list, tuple, np.ndarray)):
        raise RecordingError(
            path, f"{part}.{name}", f"must be an array or a list, got {type(column).__name__}"
        )
    return column
