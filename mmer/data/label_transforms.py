"""Transforms of the labels: other frames, classes made of values, frames to predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmer.data.recording import Labels, Recording
from mmer.data.transform_base import Transform, check_positive, frame_count


@dataclass(frozen=True)
class AverageLabels(Transform):
    """Replace the labels of a recording by their mean over stretches of equal length.

    Values are averaged over the labelled frames; the class of a stretch is its most frequent one
    (of equals the first). A stretch without a labelled frame stays unlabelled.

    Attributes:
        seconds: Length of a stretch; its label is placed in its middle.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_positive("AverageLabels.seconds", self.seconds)

    def _changed(self, recording: Recording) -> Recording:
        labels = recording.labels
        if labels is None or labels.times is None or len(labels) == 0:
            return recording
        place = np.floor(labels.times / self.seconds + 1e-9).astype(np.int64)
        count = int(place.max()) + 1
        parts: dict[str, Any] = {"times": (np.arange(count) + 0.5) * self.seconds}
        if labels.classes is not None:
            sure = labels.classes >= 0
            votes = np.zeros((count, int(labels.classes.max(initial=0)) + 1))
            np.add.at(votes, (place[sure], labels.classes[sure]), 1)
            parts["classes"] = np.where(votes.any(axis=1), votes.argmax(axis=1), -1)
        if labels.values is not None:
            finite = np.isfinite(labels.values)
            total, known = np.zeros((2, count, labels.values.shape[1]))
            np.add.at(total, place, np.where(finite, labels.values, 0.0))
            np.add.at(known, place, finite)
            parts["values"] = np.where(known > 0, total / np.maximum(known, 1), np.nan)
        return dataclasses.replace(recording, labels=Labels(**parts))


@dataclass(frozen=True)
class ThresholdValues(Transform):
    """Make classes of a label value: class c lies above c of the thresholds.

    Attributes:
        value: Name of the value.
        thresholds: In increasing order; a value equal to one counts as below.
        class_names: One more than there are thresholds.
        keep_values: Whether the values stay beside the classes.
    """

    value: str
    thresholds: Sequence[float]
    class_names: Sequence[str] = ("low", "high")
    keep_values: bool = True

    def __post_init__(self) -> None:
        if not self.thresholds or (np.diff(self.thresholds) <= 0).any():
            raise ValueError(
                f"ThresholdValues.thresholds must be increasing numbers, got {self.thresholds}"
            )
        if len(self.class_names) != len(self.thresholds) + 1:
            raise ValueError(
                f"ThresholdValues.class_names must be {len(self.thresholds) + 1} names, "
                f"got {list(self.class_names)}"
            )

    def _changed(self, recording: Recording) -> Recording:
        labels = recording.labels
        if labels is None:
            return dataclasses.replace(recording, class_names=tuple(self.class_names))
        if labels.values is None or self.value not in recording.value_names:
            raise ValueError(
                f"ThresholdValues: recording {recording.identifier!r} has no value {self.value!r}, "
                f"only {list(recording.value_names)}"
            )
        column = labels.values[:, recording.value_names.index(self.value)]
        above = (column[:, None] > np.asarray(self.thresholds)).sum(axis=1)
        return dataclasses.replace(
            recording,
            labels=Labels(
                classes=np.where(np.isnan(column), -1, above),
                values=labels.values if self.keep_values else None,
                times=labels.times,
            ),
            class_names=tuple(self.class_names),
            value_names=recording.value_names if self.keep_values else (),
        )


@dataclass(frozen=True)
class UnlabelledFrames(Transform):
    """Replace the labels by frames without any, where a model is to say something.

    Attributes:
        seconds: Seconds between frames; each is placed in the middle of its stretch.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_positive("UnlabelledFrames.seconds", self.seconds)

    def _changed(self, recording: Recording) -> Recording:
        count = frame_count(recording, self.seconds)
        labels = Labels(
            classes=np.full(count, -1),
            times=(np.arange(count, dtype=np.float64) + 0.5) * self.seconds,
        )
        return dataclasses.replace(recording, labels=labels)
