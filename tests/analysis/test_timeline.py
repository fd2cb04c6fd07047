"""The timeline: changes of state as they are marked, and a picture of whatever there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mmer.analysis.segments import StateSegment, state_segments
from mmer.analysis.timeline import plot_timeline
from mmer.data import Recording, Stream, generate_recordings
from mmer.training.prediction import Prediction


@pytest.fixture(scope="module")
def person() -> Recording:
    return generate_recordings(2, 200.0)[1]


def predict(person: Recording, classes: int = 2) -> Prediction:
    assert person.labels is not None
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(classes), len(person.labels)).astype(np.float32)
    alone = rows.copy()
    alone[:20] = np.nan
    return Prediction(
        identifier=person.identifier,
        subject=person.subject,
        group=person.group,
        times=np.arange(len(person.labels)) + 0.5,
        probabilities=rows,
        modality_probabilities={"BVP": alone, "ACC": alone},
        classes=person.labels.classes,
        class_names=("rest", "stress", "third")[:classes],
    )


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with all words of the next figure that is saved."""
    found: list[str] = []
    save = Figure.savefig

    def spy(figure: Figure, *arguments: object, **options: object) -> None:
        for holder in (figure, *figure.axes):
            found.extend(text.get_text() for text in holder.texts)
        found.extend(axis.get_ylabel() for axis in figure.axes)
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def test_segments_join_equal_neighbours() -> None:
    segments = state_segments(np.arange(6) + 0.5, np.array([0, 0, 1, 1, 1, 0]))
    assert segments == [StateSegment(0, 2, 0), StateSegment(2, 5, 1), StateSegment(5, 6, 0)]
    assert state_segments(np.zeros(0), np.zeros(0, dtype=np.int64)) == []


def test_flicker_is_dissolved_into_the_longer_neighbour() -> None:
    states = np.array([0] * 10 + [1] + [0] + [1] * 8 + [0] * 2)
    segments = state_segments(np.arange(len(states)) + 0.5, states, shortest=3.0)
    assert [(s.start, s.end, s.state) for s in segments] == [(0, 12, 0), (12, 22, 1)]


def test_unlabelled_frames_are_gaps() -> None:
    segments = state_segments(np.arange(5) + 0.5, np.array([1, -1, -1, 1, 1]))
    assert [(s.start, s.end) for s in segments] == [(0, 1), (3, 5)]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="states: 2 entries for 3 times"):
        state_segments(np.arange(3.0), np.array([0, 1]))


def test_picture_says_who_and_what_is_missing(
    person: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = texts(monkeypatch)
    path = plot_timeline(
        predict(person),
        person,
        tmp_path / "new" / "t.png",
        unseen=True,
        generated=True,
        modalities=["EDA", "BVP", "GSR"],
        note="time alone: 0.5",
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["t.png"]
    shown = "\n".join(words)
    for text in ("G02", "a person the model never saw", "macro-F1", "GENERATED DATA"):
        assert text in shown
    assert words.count("missing") == 2
    assert "time alone: 0.5" in shown
    assert "of stress" in shown


@pytest.mark.parametrize("classes", [2, 3])
def test_picture_of_real_data_is_not_called_generated(
    person: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    words = texts(monkeypatch)
    plot_timeline(predict(person, classes), person, tmp_path / "t.svg", unseen=False)
    assert "GENERATED" not in "\n".join(words)
    assert "training set" in "\n".join(words)


def test_values_and_a_single_frame_are_drawn(person: Recording, tmp_path: Path) -> None:
    times = np.arange(50.0)
    values = Prediction(
        person.identifier,
        person.subject,
        "V1",
        times,
        values=np.sin(times)[:, None].astype(np.float32),
        targets=np.full((50, 1), np.nan, dtype=np.float32),
        value_names=("valence",),
    )
    assert plot_timeline(values, person, tmp_path / "v.png", threshold=0.2).exists()
    one = dataclasses.replace(values, times=times[:1], values=values.values[:1], targets=None)  # type: ignore[index]
    assert plot_timeline(one, person, tmp_path / "o.png").exists()


def test_constant_and_short_streams_are_drawn(person: Recording, tmp_path: Path) -> None:
    streams = {
        "flat": Stream.regular(np.ones(200), 1.0),
        "one": Stream.at(np.ones((1, 2)), [3.0]),
        "none": Stream.at(np.ones((0, 2)), []),
    }
    odd = dataclasses.replace(person, streams=streams)
    assert plot_timeline(predict(person), odd, tmp_path / "t.png").exists()


def test_wrong_pairs_are_refused(person: Recording, tmp_path: Path) -> None:
    prediction = predict(person)
    other = dataclasses.replace(person, identifier="other")
    with pytest.raises(ValueError, match="recording must be the one predicted, 'G02', got 'other'"):
        plot_timeline(prediction, other, tmp_path / "t.png")
    nothing = Prediction("G02", "G02", "", np.zeros(0), values=np.zeros((0, 1), dtype=np.float32))
    with pytest.raises(ValueError, match="no frame to draw"):
        plot_timeline(nothing, person, tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()
