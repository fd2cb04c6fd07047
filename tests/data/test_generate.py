from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from mmer.data import (
    FrameStatistics,
    Recording,
    StandardizePerRecording,
    apply_transforms,
    generate_recordings,
    read_stress_predict,
    split_by,
    time_only_predictions,
)

STATISTICS = {
    "EDA": ["mean@15", "deviation@15", "change@30"],
    "TEMP": ["mean@10", "slope@30"],
    "BVP": ["rhythm:0.7-2.5@10", "deviation@10"],
    "ACC": ["log_deviation@10"],
}


@pytest.fixture(scope="module")
def recordings() -> Any:
    return generate_recordings(subjects=14, seconds=600.0, seed=3)


def same(a: Any, b: Any) -> Any:
    return np.array_equal(a.labels.classes, b.labels.classes) and all(
        np.array_equal(a.streams[name].values, b.streams[name].values) for name in a.streams
    )


def test_they_look_like_stress_predict(recordings: list[Recording], data_folder: Path) -> None:
    real = read_stress_predict(data_folder / "stress_predict.npz")[0]
    for made in recordings:
        assert {n: (s.rate, s.features) for n, s in made.streams.items()} == {
            n: (s.rate, s.features) for n, s in real.streams.items()
        }
        assert made.class_names == real.class_names
        assert made.labels.times[0] == real.labels.times[0]


def test_they_say_that_they_are_generated_and_one_lacks_a_modality(
    recordings: list[Recording],
) -> None:
    assert {r.source for r in recordings} == {"generated"}
    assert len({r.subject for r in recordings}) == 14
    missing = [(r.subject, n) for r in recordings for n, s in r.streams.items() if not s.present]
    assert missing == [("G02", "EDA")]
    complete = generate_recordings(subjects=2, seconds=5.0, missing=False)
    assert all(s.present for r in complete for s in r.streams.values())


def test_the_same_seed_gives_the_same_people(recordings: list[Recording]) -> None:
    again = generate_recordings(subjects=3, seconds=600.0, seed=3)
    assert all(same(a, b) for a, b in zip(again, recordings, strict=False))
    other = generate_recordings(subjects=3, seconds=600.0, seed=4)
    assert not any(same(a, b) for a, b in zip(other, recordings, strict=False))


def test_states_change_at_times_of_their_own(recordings: list[Recording]) -> None:
    changes = [np.flatnonzero(np.diff(r.labels.classes)) for r in recordings]
    assert all(len(found) >= 3 for found in changes)
    together = np.concatenate(changes)
    assert len(np.unique(together)) > 0.8 * len(together)
    share = np.mean([r.labels.classes.mean() for r in recordings])
    assert 0.35 < share < 0.65


def predict(recordings: list[Recording], names: Any) -> Any:
    features = apply_transforms(recordings, [FrameStatistics(1.0, STATISTICS)])
    features = apply_transforms(features, [StandardizePerRecording()])

    def rows(chosen: Any) -> Any:
        return np.concatenate(
            [np.concatenate([r.streams[n].values for n in names], axis=1) for r in chosen]
        )

    truth, guess = [], []
    for fold in range(4):
        train, test = split_by(features, folds=4, fold=fold)
        model = LogisticRegression(max_iter=300, class_weight="balanced")
        model.fit(rows(train), np.concatenate([r.labels.classes for r in train]))
        guess.append(model.predict(rows(test)))
        truth.append(np.concatenate([r.labels.classes for r in test]))
    return f1_score(np.concatenate(truth), np.concatenate(guess), average="macro")


def test_each_modality_tells_something_and_all_together_tell_more() -> None:
    recordings = generate_recordings(subjects=12, seconds=600.0, seed=0)
    alone = {name: predict(recordings, [name]) for name in STATISTICS}
    together = predict(recordings, list(STATISTICS))
    assert all(0.53 < score < 0.85 for score in alone.values()), alone
    assert together > max(alone.values()) + 0.04, (alone, together)


def test_time_tells_nothing(recordings: list[Recording]) -> None:
    truth, guess = [], []
    for fold in range(4):
        train, test = split_by(recordings, folds=4, fold=fold)
        predictions = time_only_predictions(train, test)
        truth += [r.labels.classes for r in test]
        guess += [predictions[r.identifier].classes for r in test]
    score = f1_score(np.concatenate(truth), np.concatenate(guess), average="macro")
    assert 0.35 < score < 0.62


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"subjects": 0}, "subjects"), ({"seconds": 0.5}, "seconds"), ({"seed": -1}, "seed")],
)
def test_bad_arguments(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate_recordings(**arguments)


def test_the_shortest_recording() -> None:
    (made,) = generate_recordings(subjects=1, seconds=1.0)
    assert len(made.labels) == 1
    assert len(made.streams["EDA"]) == 4
