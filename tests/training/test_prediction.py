"""Predictions of whole recordings: from a checkpoint, with missing modalities, as files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mmer.data import Labels, Recording, generate_recordings, time_only_predictions
from mmer.training.prediction import Prediction, read_predictions, write_predictions
from mmer.training.recognizer import TrainedRecognizer, load_recognizer
from mmer.training.run import PREDICTIONS
from mmer.training.shortcuts import SHORTCUTS


@pytest.fixture(scope="module")
def recognizer(trained: Path) -> TrainedRecognizer:
    return load_recognizer(trained)


@pytest.fixture(scope="module")
def people() -> list[Recording]:
    return generate_recordings(6, 150.0)


def test_checkpoint_says_what_the_run_said(
    recognizer: TrainedRecognizer, people: list[Recording], trained: Path
) -> None:
    expected = read_predictions(trained / PREDICTIONS)
    test = [r for r in people if recognizer.unseen(r)]
    again = recognizer.predict(recognizer.prepare(test))
    assert [p.identifier for p in again] == [p.identifier for p in expected]
    for ours, theirs in zip(again, expected, strict=True):
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
        np.testing.assert_array_equal(ours.times, theirs.times)
        np.testing.assert_array_equal(ours.classes, theirs.classes)


def test_person_is_known_by_the_part_they_were_in(
    recognizer: TrainedRecognizer, people: list[Recording]
) -> None:
    for person in people:
        part = recognizer.part(person)
        assert part is not None
        assert person.subject in recognizer.subjects[part]
        assert recognizer.unseen(person) is (part == "test")
    stranger = dataclasses.replace(people[0], subject="stranger")
    assert recognizer.unseen(stranger) is None


def test_labels_are_not_needed(recognizer: TrainedRecognizer, people: list[Recording]) -> None:
    person = people[2]
    unlabelled = dataclasses.replace(person, labels=None)
    (with_labels,) = recognizer.predict(recognizer.prepare([person]))
    (without,) = recognizer.predict(recognizer.prepare([unlabelled]))
    np.testing.assert_allclose(without.times, with_labels.times)
    np.testing.assert_allclose(without.probabilities, with_labels.probabilities, atol=1e-6)
    assert without.classes is None or (without.classes == -1).all()


def test_missing_modality_has_no_share_and_says_nothing(
    recognizer: TrainedRecognizer, people: list[Recording]
) -> None:
    person = people[2]
    without = dataclasses.replace(
        person, streams={n: s for n, s in person.streams.items() if n != "EDA"}
    )
    (prediction,) = recognizer.predict(recognizer.prepare([without]))
    assert (prediction.contributions["EDA"] == 0).all()
    assert np.isnan(prediction.modality_probabilities["EDA"]).all()
    assert np.isfinite(prediction.modality_probabilities["BVP"]).all()
    assert np.isfinite(prediction.probabilities).all()


def test_unfitting_recordings_are_named(
    recognizer: TrainedRecognizer, people: list[Recording]
) -> None:
    renamed = {f"my_{name}": stream for name, stream in people[0].streams.items()}
    with pytest.raises(ValueError, match=r"G01: wanted a modality of EDA, .* it has my_EDA"):
        recognizer.prepare([dataclasses.replace(people[0], streams=renamed)])
    swapped = {**people[0].streams, "BVP": people[0].streams["ACC"]}
    with pytest.raises(ValueError, match="G01: modality BVP has 3 features, the model"):
        recognizer.prepare([dataclasses.replace(people[0], streams=swapped)])


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    full = Prediction(
        identifier="train/é",
        subject="A",
        group="g",
        times=np.array([0.5, 1.5]),
        probabilities=np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32),
        values=np.array([[1.0], [2.0]], dtype=np.float32),
        contributions={"a/b": np.array([0.5, 0.5], dtype=np.float32)},
        modality_probabilities={"a/b": np.full((2, 2), np.nan, dtype=np.float32)},
        classes=np.array([0, -1]),
        targets=np.array([[np.nan], [2.5]], dtype=np.float32),
        class_names=("x", "y"),
        value_names=("v",),
    )
    bare = Prediction("b", "B", "", np.array([0.5]), values=np.ones((1, 1), dtype=np.float32))
    write_predictions(tmp_path / "p.npz", [full, bare])
    for ours, theirs in zip(read_predictions(tmp_path / "p.npz"), [full, bare], strict=True):
        for field in dataclasses.fields(Prediction):
            np.testing.assert_equal(getattr(ours, field.name), getattr(theirs, field.name))
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"p\.npz: not a file of predictions"):
        read_predictions(tmp_path / "p.npz")


def test_uncertainty_is_entropy_over_its_maximum() -> None:
    rows = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]], dtype=np.float32)
    prediction = Prediction("a", "A", "", np.arange(3.0), probabilities=rows)
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    np.testing.assert_allclose(prediction.uncertainty, [1.0, 0.0, entropy], atol=1e-6)
    assert prediction.predicted.tolist() == [0, 0, 0]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="probabilities: 2 rows for 3 times"):
        Prediction("a", "A", "", np.arange(3.0), probabilities=np.ones((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="probabilities, values or both"):
        Prediction("a", "A", "", np.arange(3.0))


def test_shortcuts_are_those_of_the_data_and_see_no_test_label(people: list[Recording]) -> None:
    train, test = people[:4], people[4:]
    expected = time_only_predictions(train, test)
    for name, shortcut in SHORTCUTS.items():
        predictions = shortcut(train, test)
        assert [p.subject for p in predictions] == ["G05", "G06"]
        blind = []
        for person in test:
            assert person.labels is not None
            assert person.labels.classes is not None
            nothing = Labels(np.full(len(person.labels), -1), times=person.labels.times)
            blind.append(dataclasses.replace(person, labels=nothing))
        for a, b in zip(predictions, shortcut(train, blind), strict=True):
            np.testing.assert_array_equal(a.predicted, b.predicted)
        if name == "elapsed_time":
            for prediction in predictions:
                np.testing.assert_array_equal(
                    prediction.predicted, expected[prediction.identifier].classes
                )
        if name == "majority":
            counts = np.bincount(np.concatenate([r.labels.classes for r in train]))  # type: ignore[misc,union-attr]
            assert all((p.predicted == counts.argmax()).all() for p in predictions)


def test_macro_f1_of_labelled_frames() -> None:
    prediction = Prediction(
        "a",
        "A",
        "",
        np.arange(4.0),
        probabilities=np.eye(2, dtype=np.float32)[[0, 1, 1, 0]],
        classes=np.array([0, 1, 0, -1]),
    )
    assert prediction.macro_f1 == pytest.approx(2 / 3)
    assert dataclasses.replace(prediction, classes=None).macro_f1 is None
