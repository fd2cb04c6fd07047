"""Utterances as in published feature files: arrays of all of them, padded to one length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.arrays import check_array
from mmer.data.errors import RecordingError, reading
from mmer.data.recording import Stream


def section(file: str | os.PathLike[str], content: Any, part: str) -> dict[str, Any]:
    """Return one part of a file that is a dictionary of dictionaries.

    Args:
        file: Where it was read from.
        content: The file's content.
        part: Name of the part.

    Raises:
        RecordingError: If it is no such dictionary.
    """
    found = content[part]
    if not isinstance(found, dict):
        raise RecordingError(file, part, f"must be a dictionary, got {type(found).__name__}")
    return found


def features(
    file: str | os.PathLike[str], part: str, content: Mapping[str, Any], name: str
) -> NDArray[np.float32]:
    """Return the features of one modality, what is not finite set to 0.

    Args:
        file: Where it was read from.
        part: Part of the data set.
        content: The arrays of the part.
        name: Name of the modality.

    Returns:
        float32 ``(utterances, time, features)``.

    Raises:
        RecordingError: If it is missing or something else.
    """
    field = f"{part}.{name}"
    if name not in content:
        raise RecordingError(file, field, "missing")
    array = content[name]
    if not isinstance(array, np.ndarray):
        raise RecordingError(file, field, f"must be an array, got {type(array).__name__}")
    check_array(file, field, array, shape=(None, None, None))
    # -inf is the logarithm of silence; what is larger than float32 holds is as little of a feature.
    with np.errstate(over="ignore"):
        return np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def streams_of_utterance(
    file: str | os.PathLike[str],
    field: str,
    values: Mapping[str, NDArray[np.float32]],
    masks: Mapping[str, NDArray[np.bool_]],
    rates: Mapping[str, float] | None,
) -> dict[str, Stream]:
    """Cut the padding off one utterance and give its modalities a common time.

    Modalities padded to one length are aligned step by step: they keep their places, and what is
    padding in one but not in another is masked. Otherwise each is cut to its own real stretch.
    Without rates all of them last equally long, one second per step of the longest.

    Args:
        file: Where it was read from.
        field: Name of the utterance there.
        values: ``(time, features)`` of each modality.
        masks: ``(time,)`` of each modality, True = real.
        rates: Steps per second of each modality, if known.

    Returns:
        The streams. A modality without a real step keeps one masked step.

    Raises:
        RecordingError: If a rate is missing or not positive.
    """
    stretches = {name: _stretch(mask) for name, mask in masks.items()}
    if len({len(mask) for mask in masks.values()}) == 1:
        together = [stretch for stretch in stretches.values() if stretch[1] > stretch[0]] or [
            (0, 1)
        ]
        common = (min(start for start, _ in together), max(end for _, end in together))
        stretches = dict.fromkeys(stretches, common)
    longest = max(1, *(end - start for start, end in stretches.values()), 1)
    streams = {}
    for name, (start, end) in stretches.items():
        end = max(end, start + 1)
        rate = (end - start) / longest
        if rates is not None:
            if name not in rates:
                raise RecordingError(file, field, f"rates has no rate of {name}")
            rate = rates[name]
        with reading(file, f"{field}.{name}"):
            streams[name] = Stream.regular(
                values[name][start:end], rate, mask=masks[name][start:end]
            )
    return streams


def real_length(length: int, total: int) -> NDArray[np.bool_]:
    """Return the mask of ``length`` real steps followed by padding: bool ``(total,)``."""
    return np.arange(total) < length


def not_leading_zeros(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the mask of all steps from the first that is not all zero: bool ``(time,)``."""
    real = np.flatnonzero(values.any(axis=1))
    return np.arange(len(values)) >= (real[0] if len(real) else len(values))


def not_outer_zeros(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the mask of all steps between the first and last that are not zero: ``(time,)``."""
    return not_leading_zeros(values) & not_leading_zeros(values[::-1])[::-1]


def _stretch(mask: NDArray[np.bool_]) -> tuple[int, int]:
    real = np.flatnonzero(mask)
    return (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
