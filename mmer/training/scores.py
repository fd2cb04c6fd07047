"""Scores of predictions over whole recordings: macro-F1, accuracy, CCC and MAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import concordance_corrcoef, mean_absolute_error
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from mmer.training.prediction import Prediction

if TYPE_CHECKING:
    from mmer.training.config import EvaluationConfig


def score_predictions(
    predictions: Sequence[Prediction], evaluation: EvaluationConfig
) -> dict[str, float]:
    """Score predictions pooled over all their labelled frames (or segments).

    Args:
        predictions: Predictions of whole recordings that carry the truth.
        evaluation: Length of the segments that are scored, if any, and the threshold that turns
            values into high and low.

    Returns:
        ``macro_f1``, ``accuracy`` and ``person_macro_f1`` (mean over subjects) with
        ``person_spread`` (standard deviation over subjects) for classes; ``NAME/ccc`` and
        ``NAME/mae`` for each value and, with a threshold, ``NAME/macro_f1`` and ``NAME/accuracy``.
        A score without any label is left out.
    """
    if evaluation.segment_seconds is not None:
        predictions = [average_segments(p, evaluation.segment_seconds) for p in predictions]
    scores: dict[str, float] = {}
    with_classes = [
        p
        for p in predictions
        if p.probabilities is not None and p.classes is not None and (p.classes >= 0).any()
    ]
    if with_classes:
        classes = len(_probabilities(with_classes[0])[0])
        truth = np.concatenate([_truth(p) for p in with_classes])
        guess = np.concatenate([p.predicted for p in with_classes])
        scores.update(_classification(guess, truth, classes))
        by_person: dict[str, list[Prediction]] = {}
        for prediction in with_classes:
            by_person.setdefault(prediction.subject, []).append(prediction)
        people = [
            _classification(
                np.concatenate([p.predicted for p in recordings]),
                np.concatenate([_truth(p) for p in recordings]),
                classes,
            )["macro_f1"]
            for recordings in by_person.values()
        ]
        scores["person_macro_f1"] = float(np.mean(people))
        scores["person_spread"] = float(np.std(people))
    with_values = [p for p in predictions if p.values is not None and p.targets is not None]
    if with_values:
        values = np.concatenate([_values(p) for p in with_values])
        targets = np.concatenate([_targets(p) for p in with_values])
        for index in range(values.shape[1]):
            names = with_values[0].value_names
            name = names[index] if index < len(names) else f"value_{index}"
            scores.update(
                {f"{name}/{key}": score for key, score in _regression(
                    values[:, index], targets[:, index], evaluation.threshold).items()}
            )  # fmt: skip
    return scores


def average_segments(prediction: Prediction, seconds: float) -> Prediction:
    """Average a prediction and its truth over segments of equal length.

    Args:
        prediction: One row per frame.
        seconds: Length of a segment; a frame at time t belongs to segment ``floor(t / seconds)``.

    Returns:
        One row per segment that holds a frame: mean probabilities, values and true values; the
            class is that of most labelled frames.
    """
    if len(prediction.times) == 0:
        return prediction
    numbers, index = np.unique(
        (prediction.times / seconds + 1e-9).astype(np.int64), return_inverse=True
    )
    segments = len(numbers)

    def mean(rows: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if rows is None:
            return None
        total = np.zeros((segments, rows.shape[1]))
        count = np.zeros((segments, rows.shape[1]))
        known = np.isfinite(rows)
        np.add.at(total, index, np.where(known, rows, 0.0))
        np.add.at(count, index, known)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(count > 0, total / count, np.nan), dtype=np.float32)

    classes = None
    if prediction.classes is not None:
        labelled = prediction.classes >= 0
        votes = np.zeros((segments, int(prediction.classes.max(initial=0)) + 1), dtype=np.int64)
        np.add.at(votes, (index[labelled], prediction.classes[labelled]), 1)
        classes = np.where(votes.sum(axis=1) > 0, votes.argmax(axis=1), -1)
    return dataclasses.replace(
        prediction,
        times=np.asarray((numbers + 0.5) * seconds, dtype=np.float64),
        probabilities=mean(prediction.probabilities),
        values=mean(prediction.values),
        contributions={},
        modality_probabilities={},
        classes=classes,
        targets=mean(prediction.targets),
    )


def _classification(
    guess: NDArray[np.int64], truth: NDArray[np.int64], classes: int
) -> dict[str, float]:
    guess_tensor, truth_tensor = torch.from_numpy(guess), torch.from_numpy(truth)
    macro_f1 = multiclass_f1_score(
        guess_tensor, truth_tensor, classes, average="macro", ignore_index=-1
    )
    accuracy = multiclass_accuracy(
        guess_tensor, truth_tensor, classes, average="micro", ignore_index=-1
    )
    return {"macro_f1": float(macro_f1), "accuracy": float(accuracy)}


def _regression(
    values: NDArray[np.float32], targets: NDArray[np.float32], threshold: float | None
) -> dict[str, float]:
    known = np.isfinite(targets)
    if known.sum() < 2:
        return {}
    guess = torch.from_numpy(values[known].astype(np.float64))
    truth = torch.from_numpy(targets[known].astype(np.float64))
    scores = {}
    if threshold is not None:
        high, truly_high = (guess > threshold).long().numpy(), (truth > threshold).long().numpy()
        scores.update(_classification(high, truly_high, 2))
    # Of a constant nothing is explained; its correlation is not defined.
    varies = float(guess.std()) > 1e-9 and float(truth.std()) > 1e-9
    scores["ccc"] = float(concordance_corrcoef(guess, truth)) if varies else 0.0
    scores["mae"] = float(mean_absolute_error(guess, truth))
    return scores


def _probabilities(prediction: Prediction) -> NDArray[np.float32]:
    assert prediction.probabilities is not None
    return prediction.probabilities


def _truth(prediction: Prediction) -> NDArray[np.int64]:
    assert prediction.classes is not None
    return prediction.classes


def _values(prediction: Prediction) -> NDArray[np.float32]:
    assert prediction.values is not None
    return prediction.values


def _targets(prediction: Prediction) -> NDArray[np.float32]:
    assert prediction.targets is not None
    return prediction.targets


def selected_scores(scores: dict[str, float], evaluation: EvaluationConfig) -> list[str]:
    """Names of the scores that the best epoch is chosen by.

    Args:
        scores: What :func:`score_predictions` returned.
        evaluation: ``select_by`` names them; by default macro-F1 of the classes, else the CCC of
            every value.

    Returns:
        At least one name.

    Raises:
        ValueError: If a name is no score, or there is no score at all.
    """
    names = evaluation.select_by
    if names is None:
        names = [name for name in scores if name == "macro_f1"] or [
            name for name in scores if name.endswith("/ccc")
        ]
    missing = [name for name in names if name not in scores]
    if missing or not names:
        raise ValueError(
            f"evaluation.select_by: {', '.join(missing) or 'nothing'} cannot be scored, "
            f"there are {', '.join(scores) or 'no labels'}"
        )
    return names


def selection_score(scores: dict[str, float], evaluation: EvaluationConfig) -> float:
    """The mean of :func:`selected_scores`, larger is better."""
    return float(np.mean([scores[name] for name in selected_scores(scores, evaluation)]))
