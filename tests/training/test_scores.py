"""Scores against scikit-learn and by hand; what is unlabelled counts nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from mmer.training.config import EvaluationConfig
from mmer.training.prediction import Prediction
from mmer.training.scores import (
    average_segments,
    score_predictions,
    selected_scores,
    selection_score,
)


def prediction(subject: str, guess: np.ndarray, truth: np.ndarray, classes: int = 3) -> Prediction:
    return Prediction(
        identifier=subject,
        subject=subject,
        group="",
        times=np.arange(len(guess)) + 0.5,
        probabilities=np.eye(classes, dtype=np.float32)[guess],
        classes=truth.astype(np.int64),
        class_names=("a", "b", "c")[:classes],
    )


def values(guess: np.ndarray, truth: np.ndarray) -> Prediction:
    return Prediction(
        identifier="A",
        subject="A",
        group="",
        times=np.arange(len(guess)) + 0.5,
        values=guess[:, None].astype(np.float32),
        targets=truth[:, None].astype(np.float32),
        value_names=("valence",),
    )


def test_classes_are_pooled_and_averaged_over_people() -> None:
    rng = np.random.default_rng(0)
    guesses, truths = rng.integers(0, 3, (2, 50)), rng.integers(0, 3, (2, 50))
    scores = score_predictions(
        [prediction("A", guesses[0], truths[0]), prediction("B", guesses[1], truths[1])],
        EvaluationConfig(),
    )
    pooled = f1_score(truths.ravel(), guesses.ravel(), average="macro")
    people = [f1_score(t, g, average="macro") for t, g in zip(truths, guesses, strict=True)]
    assert scores["macro_f1"] == pytest.approx(pooled)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truths.ravel(), guesses.ravel()))
    assert scores["person_macro_f1"] == pytest.approx(np.mean(people))
    assert scores["person_spread"] == pytest.approx(np.std(people))


def test_unlabelled_frames_count_nowhere() -> None:
    guess = np.array([0, 1, 2, 0, 1, 2])
    truth = np.array([0, 1, 2, -1, -1, 1])
    scores = score_predictions([prediction("A", guess, truth)], EvaluationConfig())
    labelled = truth >= 0
    assert scores["accuracy"] == pytest.approx(0.75)
    assert scores["macro_f1"] == pytest.approx(
        f1_score(truth[labelled], guess[labelled], average="macro")
    )
    nothing = prediction("A", guess, np.full(6, -1))
    assert score_predictions([nothing], EvaluationConfig()) == {}


def test_values_have_ccc_mae_and_high_or_low() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(1, 9, 80)
    guess = truth + rng.normal(0, 2, 80)
    gaps = truth.copy()
    gaps[::5] = np.nan
    scores = score_predictions([values(guess, gaps)], EvaluationConfig(threshold=5.0))
    known = np.isfinite(gaps)
    g, t = guess[known], truth[known]
    covariance = np.mean((g - g.mean()) * (t - t.mean()))
    ccc = 2 * covariance / (g.var() + t.var() + (g.mean() - t.mean()) ** 2)
    assert scores["valence/ccc"] == pytest.approx(ccc, abs=0.01)
    assert scores["valence/mae"] == pytest.approx(np.abs(g - t).mean(), abs=1e-4)
    assert scores["valence/accuracy"] == pytest.approx(np.mean((g > 5) == (t > 5)))


def test_segments_are_averaged() -> None:
    guess = np.array([4.0, 8.0, 3.0, 3.0, 9.0])
    truth = np.array([4.0, 5.0, 7.0, np.nan, np.nan])
    averaged = average_segments(values(guess, truth), 2.0)
    np.testing.assert_allclose(averaged.times, [1.0, 3.0, 5.0])
    assert averaged.values is not None
    assert averaged.targets is not None
    np.testing.assert_allclose(averaged.values[:, 0], [6.0, 3.0, 9.0])
    np.testing.assert_allclose(averaged.targets[:, 0], [4.5, 7.0, np.nan])
    classes = average_segments(
        prediction("A", np.array([0, 1, 1, 2]), np.array([0, 2, -1, -1])), 2.0
    ).classes
    assert classes is not None
    assert classes.tolist() == [0, -1]


def test_selection_is_by_the_named_scores() -> None:
    scores = {"macro_f1": 0.4, "accuracy": 0.8, "valence/ccc": 0.1}
    assert selection_score(scores, EvaluationConfig()) == 0.4
    both = EvaluationConfig(select_by=["accuracy", "valence/ccc"])
    assert selection_score(scores, both) == pytest.approx(0.45)
    assert selected_scores({"valence/ccc": 0.1, "arousal/ccc": 0.2}, EvaluationConfig()) == [
        "valence/ccc",
        "arousal/ccc",
    ]
    with pytest.raises(ValueError, match=r"evaluation.select_by: wrong cannot be scored"):
        selection_score(scores, EvaluationConfig(select_by=["wrong"]))
    with pytest.raises(ValueError, match="no labels"):
        selection_score({}, EvaluationConfig())
