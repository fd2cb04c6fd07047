"""The shortcuts of :mod:`mmer.data.shortcuts` as predictions, scored like any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mmer.data import Labels, Recording, group_only_predictions, time_only_predictions
from mmer.training.prediction import Prediction

Shortcut = Callable[[Sequence[Recording], Sequence[Recording]], list[Prediction]]


def elapsed_time(training: Sequence[Recording], testing: Sequence[Recording]) -> list[Prediction]:
    """Predict from the seconds since the start alone.

    Args:
        training: Recordings whose labels are learnt from.
        testing: Recordings to predict.

    Returns:
        One prediction per labelled recording of ``testing``.
    """
    return _predictions(testing, time_only_predictions(training, testing))


def group_identity(training: Sequence[Recording], testing: Sequence[Recording]) -> list[Prediction]:
    """Predict from the name of the video (or stimulus) alone; see :func:`elapsed_time`."""
    return _predictions(testing, group_only_predictions(training, testing))


def majority(training: Sequence[Recording], testing: Sequence[Recording]) -> list[Prediction]:
    """Predict the most frequent class and the mean values always; see :func:`elapsed_time`."""
    labels = [recording.labels for recording in training if recording.labels is not None]
    classes = [label.classes[label.classes >= 0] for label in labels if label.classes is not None]
    values = [label.values for label in labels if label.values is not None]
    means = None
    if values:
        rows = np.concatenate(values)
        known = np.isfinite(rows)
        count = known.sum(axis=0)
        means = np.where(
            count > 0, np.where(known, rows, 0).sum(axis=0) / np.maximum(count, 1), np.nan
        )
    constant = {}
    for recording in testing:
        if recording.labels is None:
            continue
        frames = len(recording.labels)
        constant[recording.identifier] = Labels(
            classes=np.full(frames, np.bincount(np.concatenate(classes)).argmax())
            if classes
            else None,
            values=None if means is None else np.tile(means, (frames, 1)),
            times=recording.labels.times,
        )
    return _predictions(testing, constant)


SHORTCUTS: dict[str, Shortcut] = {
    "elapsed_time": elapsed_time,
    "group_identity": group_identity,
    "majority": majority,
}


def _predictions(recordings: Sequence[Recording], said: dict[str, Labels]) -> list[Prediction]:
    predictions = []
    for recording in recordings:
        if recording.labels is None:
            continue
        labels, truth = said[recording.identifier], recording.labels
        classes = max(2, len(recording.class_names))
        predictions.append(
            Prediction(
                identifier=recording.identifier,
                subject=recording.subject,
                group=recording.group,
                times=np.zeros(len(truth)) if truth.times is None else truth.times,
                probabilities=None
                if labels.classes is None
                else np.eye(classes, dtype=np.float32)[labels.classes],
                values=labels.values,
                classes=truth.classes,
                targets=truth.values,
                class_names=recording.class_names,
                value_names=recording.value_names,
            )
        )
    return predictions
