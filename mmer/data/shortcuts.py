"""What scores without a look at anybody: the traps that are reported beside every result.

Where everyone follows one protocol the elapsed time tells the label; where everyone sees the same
videos the video does. A model has to be read against these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.recording import Labels, Recording


def time_only_predictions(
    train: Sequence[Recording],
    test: Sequence[Recording],
    *,
    seconds: float = 1.0,
    balanced: bool = True,
) -> dict[str, Labels]:
    """Predict every label from the time elapsed since the recording began, and nothing else.

    Args:
        train: Recordings to learn from.
        test: Recordings to predict; of them only the label times are used.
        seconds: Training labels are counted in stretches of this length. Beyond the longest
            training recording its last stretch is used.
        balanced: Choose the class that is most over-represented at that time, not the most frequent
            one. It is what class weights do, and raises the recall of rare classes.

    Returns:
        The prediction for each test recording, by identifier, at the times of its labels.

    Raises:
        ValueError: If there is nothing to learn from, or a recording to predict has no label times.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    train, test = _labelled(train), _labelled(test)
    for recording in (*train, *test):
        if _labels(recording).times is None:
            raise ValueError(f"recording {recording.identifier!r} has no label times")

    def bins(recording: Recording) -> NDArray[np.int64]:
        times = _labels(recording).times
        assert times is not None
        return np.floor(times / seconds + 1e-9).astype(np.int64)

    last = max(int(bins(recording).max(initial=0)) for recording in train)
    return _predict(train, test, lambda r: np.minimum(bins(r), last), last + 1, balanced)


def group_only_predictions(
    train: Sequence[Recording], test: Sequence[Recording], *, balanced: bool = False
) -> dict[str, Labels]:
    """Predict every label from the name of the group (the video or stimulus), and nothing else.

    Args:
        train: Recordings to learn from.
        test: Recordings to predict; of them only the group and the number of labels are used. A
            group that is not in training gets what all of training together says.
        balanced: As in :func:`time_only_predictions`.

    Returns:
        The prediction for each test recording, by identifier, at the times of its labels.

    Raises:
        ValueError: If there is nothing to learn from.
    """
    train, test = _labelled(train), _labelled(test)
    groups = {name: number for number, name in enumerate(dict.fromkeys(r.group for r in train))}

    def bins(recording: Recording) -> NDArray[np.int64]:
        number = groups.get(recording.group, len(groups))
        return np.full(len(_labels(recording)), number, dtype=np.int64)

    return _predict(train, test, bins, len(groups) + 1, balanced)


def _predict(
    train: Sequence[Recording],
    test: Sequence[Recording],
    bins: Callable[[Recording], NDArray[np.int64]],
    count: int,
    balanced: bool,
) -> dict[str, Labels]:
    classes = 1 + max((_largest(recording) for recording in train), default=-1)
    widths = {v.shape[1] for r in train if (v := _labels(r).values) is not None}
    if len(widths) > 1:
        raise ValueError(f"train: one number of values is needed, got {sorted(widths)}")
    width = widths.pop() if widths else 0
    votes, totals, known = (np.zeros((count, n)) for n in (classes, width, width))
    for recording in train:
        place, labels = bins(recording), _labels(recording)
        if labels.classes is not None and classes:
            sure = labels.classes >= 0
            np.add.at(votes, (place[sure], labels.classes[sure]), 1.0)
        if labels.values is not None:
            finite = np.isfinite(labels.values)
            np.add.at(totals, place, np.where(finite, labels.values, 0.0))
            np.add.at(known, place, finite)
    if not votes.sum() and not known.sum():
        raise ValueError("train: there is no label to learn from")
    votes = np.where(votes.sum(axis=1, keepdims=True) > 0, votes, votes.sum(axis=0))
    if balanced:
        votes = votes / np.maximum(votes.sum(axis=0), 1.0)
    overall = totals.sum(axis=0) / np.maximum(known.sum(axis=0), 1.0)
    means = np.where(known > 0, totals / np.maximum(known, 1.0), overall)
    predictions = {}
    for recording in test:
        place, labels = bins(recording), _labels(recording)
        parts: dict[str, Any] = {"times": labels.times}
        if classes:
            parts["classes"] = votes.argmax(axis=1)[place]
        if width:
            parts["values"] = means[place]
        predictions[recording.identifier] = Labels(**parts)
    return predictions


def _labelled(recordings: Sequence[Recording]) -> list[Recording]:
    return [recording for recording in recordings if recording.labels is not None]


def _labels(recording: Recording) -> Labels:
    assert recording.labels is not None
    return recording.labels


def _largest(recording: Recording) -> int:
    classes = _labels(recording).classes
    return -1 if classes is None else int(classes.max(initial=-1))
