"""What a model says about one recording over time, beside what is known of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.training.files import replace_file

ARRAYS = ("times", "probabilities", "values", "classes", "targets")
BY_MODALITY = ("contributions", "modality_probabilities")
TEXTS = ("identifier", "subject", "group")


@dataclass(frozen=True)
class Prediction:
    """The soft-voted output of a model for one recording, one row per output time.

    Attributes:
        identifier: Name of the recording.
        subject: The person recorded.
        group: Video or stimulus, "" if there is none.
        times: Seconds from the start of the recording, float64 ``(frames,)``.
        probabilities: float32 ``(frames, classes)``, rows sum to 1; None without a class head.
        values: float32 ``(frames, values)`` in the units of the labels; None without a value head.
        contributions: Share of each modality in the answer, float32 ``(frames,)``, 0 where it is
            missing.
        modality_probabilities: What each modality would say alone, float32 ``(frames, classes)``.
        classes: The truth where it is known, int64 ``(frames,)``, -1 = unlabelled; None without
            labels.
        targets: The true values where known, float32 ``(frames, values)``, NaN = unlabelled; else
            None.
        class_names: One name per class.
        value_names: One name per value.
    """

    identifier: str
    subject: str
    group: str
    times: NDArray[np.float64]
    probabilities: NDArray[np.float32] | None = None
    values: NDArray[np.float32] | None = None
    contributions: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    modality_probabilities: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    classes: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None
    class_names: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.probabilities is None and self.values is None:
            raise ValueError("Prediction needs probabilities, values or both, got neither")
        frames = len(self.times)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name in BY_MODALITY:
            arrays.update({f"{name}.{key}": array for key, array in getattr(self, name).items()})
        for name, array in arrays.items():
            if array is not None and len(array) != frames:
                raise ValueError(f"{name}: {len(array)} rows for {frames} times")

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class at each time, int64 ``(frames,)``."""
        if self.probabilities is None:
            raise ValueError(f"{self.identifier}: the model has no class head")
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Entropy of the class probabilities over its maximum: 0 sure .. 1 even odds."""
        if self.probabilities is None:
            raise ValueError(f"{self.identifier}: the model has no class head")
        probabilities = np.clip(self.probabilities.astype(np.float64), 1e-12, 1.0)
        entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
        return np.asarray(entropy / np.log(max(2, probabilities.shape[1])), dtype=np.float32)

    @property
    def macro_f1(self) -> float | None:
        """Macro-F1 over the labelled frames; None where nothing is labelled, or without classes."""
        if self.classes is None or self.probabilities is None or not (self.classes >= 0).any():
            return None
        labelled = self.classes >= 0
        truth, guess = self.classes[labelled], self.predicted[labelled]
        scores = []
        for state in np.union1d(truth, guess):
            hits = np.sum((truth == state) & (guess == state))
            scores.append(2 * hits / (np.sum(truth == state) + np.sum(guess == state)))
        return float(np.mean(scores))


def write_predictions(path: str | os.PathLike[str], predictions: Sequence[Prediction]) -> None:
    """Write predictions as npz, the old file replaced in one move.

    Args:
        path: File to write.
        predictions: Predictions of any recordings.
    """
    arrays: dict[str, NDArray[Any]] = {}
    described = []
    for index, prediction in enumerate(predictions):
        described.append(
            {
                **{name: getattr(prediction, name) for name in TEXTS},
                "class_names": prediction.class_names,
                "value_names": prediction.value_names,
            }
        )
        for name in ARRAYS:
            if getattr(prediction, name) is not None:
                arrays[f"{index}/{name}"] = getattr(prediction, name)
        for name in BY_MODALITY:
            for key, array in getattr(prediction, name).items():
                arrays[f"{index}/{name}/{key}"] = array
    arrays["recordings"] = np.frombuffer(json.dumps(described).encode("utf-8"), dtype=np.uint8)
    with replace_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read what :func:`write_predictions` wrote.

    Args:
        path: The file.

    Returns:
        The predictions in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is broken; the message names it.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        described = json.loads(arrays.pop("recordings").tobytes())
        settings: list[dict[str, Any]] = [
            {
                **text,
                "class_names": tuple(text["class_names"]),
                "value_names": tuple(text["value_names"]),
            }
            for text in described
        ]
        for name, array in arrays.items():
            index, kind, *modality = name.split("/", 2)
            if modality:
                settings[int(index)].setdefault(kind, {})[modality[0]] = array
            else:
                settings[int(index)][kind] = array
        return [Prediction(**setting) for setting in settings]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a file of predictions ({error})") from error
