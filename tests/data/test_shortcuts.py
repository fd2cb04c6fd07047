from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from mmer.data import (
    AverageLabels,
    Labels,
    Recording,
    Stream,
    ThresholdValues,
    apply_transforms,
    group_only_predictions,
    load_dataset,
    split_by,
    time_only_predictions,
)


def recording(
    identifier: Any, classes: Any, group: Any = "", values: Any = None, times: Any = None
) -> Any:
    count = len(classes)
    return Recording(
        identifier,
        identifier,
        group,
        {"x": Stream.regular(np.ones(4), 1.0)},
        Labels(
            classes=np.array(classes),
            values=None if values is None else np.array(values, dtype=float)[:, None],
            times=np.arange(count) + 0.5 if times is None else np.array(times),
        ),
    )


def test_time_only_by_hand() -> None:
    train = [
        recording("a", [0, 0, 1, -1], values=[1, 2, np.nan, 4]),
        recording("b", [0, 1, 1, 1], values=[3, 2, np.nan, 8]),
    ]
    test = [recording("t", [1, 1, 1, 1, 1], values=[0] * 5)]
    found = time_only_predictions(train, test, balanced=False)["t"]
    assert found.classes.tolist() == [0, 0, 1, 1, 1]
    assert found.values[:, 0].tolist() == [2, 2, pytest.approx(20 / 6), 6, 6]
    assert found.times.tolist() == test[0].labels.times.tolist()
    # Of seven labels three are 0: at the second one, where both are seen once, 0 is the rarer.
    balanced = time_only_predictions(train, test)["t"]
    assert balanced.classes.tolist() == [0, 0, 1, 1, 1]
    wide = time_only_predictions(train, test, seconds=2.0, balanced=False)["t"]
    assert wide.classes.tolist() == [0, 0, 1, 1, 1]


def test_balancing_raises_the_rare_class() -> None:
    train = [recording(str(i), [1 if i < 2 and t < 5 else 0 for t in range(20)]) for i in range(5)]
    test = [recording("t", [0] * 20)]
    plain = time_only_predictions(train, test, balanced=False)["t"].classes
    balanced = time_only_predictions(train, test)["t"].classes
    assert plain.tolist() == [0] * 20
    assert balanced.tolist() == [1] * 5 + [0] * 15


def test_group_only_by_hand() -> None:
    train = [
        recording("a", [0, 0], "v"),
        recording("b", [1, 0], "v"),
        recording("c", [1, 1], "w"),
        recording("d", [1, 1], "w"),
    ]
    test = [recording("s", [0], "w"), recording("t", [1, 1], "v"), recording("u", [0], "new")]
    found = group_only_predictions(train, test)
    assert {name: labels.classes.tolist() for name, labels in found.items()} == {
        "s": [1], "t": [0, 0], "u": [1],
    }  # fmt: skip


def test_only_the_times_of_what_is_predicted_are_looked_at() -> None:
    train = [recording("a", [0, 1, 1])]
    first = time_only_predictions(train, [recording("t", [0, 0, 0])])["t"].classes
    second = time_only_predictions(train, [recording("t", [1, 1, 1])])["t"].classes
    assert first.tolist() == second.tolist()


def test_what_cannot_be_predicted() -> None:
    unlabelled = recording("a", [-1, -1])
    with pytest.raises(ValueError, match="no label to learn from"):
        time_only_predictions([unlabelled], [unlabelled])
    with pytest.raises(ValueError, match="no label to learn from"):
        group_only_predictions([], [unlabelled])
    whole = Recording(
        "w", "w", streams={"x": Stream.regular([1.0], 1.0)}, labels=Labels(classes=np.array([1]))
    )
    with pytest.raises(ValueError, match="'w' has no label times"):
        time_only_predictions([recording("a", [0, 1])], [whole])
    assert group_only_predictions([whole], [whole])["w"].classes.tolist() == [1]
    with pytest.raises(ValueError, match="seconds must be above 0"):
        time_only_predictions([whole], [whole], seconds=0)


def score(recordings: list[Recording], predict: Any, folds: int, **options: Any) -> Any:
    guess = {}
    for fold in range(folds):
        train, test = split_by(recordings, folds=folds, fold=fold, **options)
        guess.update(predict(train, test))
    truth = np.concatenate([r.labels.classes for r in recordings])
    found = np.concatenate([guess[r.identifier].classes for r in recordings])
    return accuracy_score(truth, found), f1_score(truth, found, average="macro")


def test_elapsed_time_alone_on_stress_predict(data_folder: Path) -> None:
    recordings = load_dataset("stress_predict", folder=data_folder)
    _, macro_f1 = score(recordings, time_only_predictions, 5, balance="frames")
    assert macro_f1 == pytest.approx(0.842, abs=0.003)
    # It is higher still with folds of equally many people, and with the most frequent class.
    assert score(recordings, time_only_predictions, 5)[1] == pytest.approx(0.848, abs=0.003)

    def most_frequent(train: Any, test: Any) -> Any:
        return time_only_predictions(train, test, balanced=False)

    assert score(recordings, most_frequent, 5)[1] == pytest.approx(0.868, abs=0.003)


@pytest.mark.parametrize(("value", "published"), [("valence", 0.843), ("arousal", 0.747)])
def test_the_video_alone_on_ceap360vr(data_folder: Path, value: Any, published: float) -> None:
    recordings = apply_transforms(
        load_dataset("ceap360vr", folder=data_folder),
        [AverageLabels(2.0), ThresholdValues(value, [5.0])],
    )
    accuracy, macro_f1 = score(recordings, group_only_predictions, 8)
    assert accuracy == pytest.approx(published, abs=0.008)
    assert macro_f1 == pytest.approx(published, abs=0.008)
