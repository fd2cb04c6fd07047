from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmer.data import Labels, Recording, Stream


def stream(**changes: Any) -> Any:
    arguments = {
        "values": np.ones((4, 2)),
        "times": np.arange(4.0),
        "mask": np.ones(4, dtype=bool),
        "rate": 1.0,
    }
    return Stream(**{**arguments, **changes})


def recording(**changes: Any) -> Any:
    arguments = {
        "identifier": "r",
        "subject": "s",
        "streams": {"x": stream()},
        "labels": Labels(classes=np.array([0, 1]), times=np.array([0.5, 1.5])),
        "class_names": ("a", "b"),
    }
    return Recording(**{**arguments, **changes})


def test_arrays_get_their_types_whatever_they_came_as() -> None:
    made = stream(values=np.ones((4, 2), dtype=np.int8), times=np.arange(4, dtype=np.float32))
    assert made.values.dtype == np.float32
    assert made.times.dtype == np.float64
    labels = Labels(classes=np.zeros(3, dtype=np.uint8), values=np.ones((3, 1)), times=range(3))
    assert labels.classes.dtype == np.int64
    assert labels.values.dtype == np.float32
    assert labels.times.dtype == np.float64


def test_nothing_can_be_changed_in_place_and_the_givers_array_stays_writable() -> None:
    given = np.ones((4, 2), dtype=np.float32)
    made = stream(values=given)
    with pytest.raises(ValueError, match="read-only"):
        made.values[0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rate = 2.0
    given[0] = 5


def test_masked_samples_hold_zero_whatever_was_given() -> None:
    values = np.array([[1.0], [np.nan], [np.inf], [2.0]])
    made = stream(values=values, mask=np.array([True, False, False, True]))
    assert made.values[:, 0].tolist() == [1, 0, 0, 2]
    assert stream(values=values, mask=np.zeros(4, dtype=bool)).present is False


@given(
    count=st.integers(0, 200),
    rate=st.floats(0.01, 2000),
    start=st.floats(0, 1e4),
)
def test_regular_times_follow_from_rate_and_start(count: int, rate: float, start: float) -> None:
    made = Stream.regular(np.zeros(count), rate, start=start)
    assert made.values.shape == (count, 1)
    np.testing.assert_allclose(made.times, start + np.arange(count) / rate)
    if count:
        assert made.times[-1] < made.end <= made.times[-1] + 1.001 / rate


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"values": np.ones(4)}, ValueError, r"Stream.values must be \(time, features\)"),
        ({"values": np.ones((4, 0))}, ValueError, "at least one feature"),
        ({"values": np.full((4, 2), "x")}, TypeError, "Stream.values must be numbers"),
        ({"values": np.full((4, 2), None)}, TypeError, "Stream.values must be numbers, got object"),
        ({"values": np.full((4, 2), 1j)}, TypeError, "Stream.values must be numbers, got complex"),
        ({"values": np.full((4, 2), np.nan)}, ValueError, "finite .* got nan at time 0, feature 0"),
        ({"values": np.full((4, 2), 1e300)}, ValueError, "too large for float32"),
        ({"values": np.ones((3, 2))}, ValueError, "one length"),
        ({"times": np.arange(3.0)}, ValueError, "one length"),
        ({"times": np.array([0, 1, np.nan, 3])}, ValueError, "Stream.times must be finite"),
        ({"times": np.arange(4.0) - 1}, ValueError, "from the recording's start, got -1"),
        ({"times": np.array([0.0, 2, 1, 3]), "rate": None}, ValueError, "never decrease, got 2.0"),
        ({"mask": np.ones(4)}, TypeError, "Stream.mask must be bool, got float64"),
        ({"mask": np.ones((4, 1), dtype=bool)}, ValueError, "one length"),
        ({"rate": 2.0}, ValueError, "Stream.rate is 2 Hz, but the times are those of 1 Hz"),
        ({"rate": 0.0}, ValueError, "Stream.rate must be above 0"),
        ({"rate": np.nan}, ValueError, "Stream.rate must be above 0"),
        ({"rate": "4"}, TypeError, "Stream.rate must be a number"),
    ],
)
def test_a_bad_stream_is_refused_and_the_field_named(
    change: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        stream(**change)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "classes, values or both"),
        ({"classes": np.zeros(2)}, TypeError, "Labels.classes must be integers"),
        ({"classes": np.array([0, -2]), "times": np.arange(2)}, ValueError, "-1 or more, got -2"),
        ({"classes": np.zeros((2, 1), dtype=int)}, ValueError, r"must be \(frames,\)"),
        ({"classes": np.zeros(2, dtype=int)}, ValueError, "None only for one label per recording"),
        ({"values": np.zeros(2)}, ValueError, r"Labels.values must be \(frames, targets\)"),
        ({"values": np.full((1, 1), np.inf)}, ValueError, "finite or NaN"),
        (
            {"classes": np.zeros(2, dtype=int), "times": np.zeros(2)},
            ValueError,
            "Labels.times must increase, got 0.0 then 0.0",
        ),
        (
            {"classes": np.zeros(2, dtype=int), "values": np.zeros((3, 1)), "times": np.arange(2)},
            ValueError,
            "one length",
        ),
    ],
)
def test_bad_labels_are_refused_and_the_field_named(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Labels(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"identifier": ""}, ValueError, "Recording.identifier must not be empty"),
        ({"identifier": "a\0b"}, ValueError, "Recording.identifier must be printable"),
        ({"subject": 3}, TypeError, "Recording.subject must be a string, got int"),
        ({"streams": {}}, ValueError, "at least one stream"),
        ({"streams": [stream()]}, TypeError, "must be a mapping"),
        ({"streams": {"": stream()}}, ValueError, "names that are not empty"),
        ({"streams": {"x": np.ones(3)}}, TypeError, r"streams\['x'\] must be a Stream"),
        ({"labels": np.ones(3)}, TypeError, "Recording.labels must be Labels"),
        ({"class_names": ("a",)}, ValueError, "class 1, but class_names has 1"),
        ({"class_names": "ab"}, TypeError, "class_names must be names"),
        ({"class_names": ("a", "a")}, ValueError, "must all differ"),
        (
            {"labels": Labels(values=np.zeros((1, 2))), "value_names": ("v",)},
            ValueError,
            "2 values per frame, but value_names has 1",
        ),
    ],
)
def test_a_bad_recording_is_refused_and_the_field_named(
    change: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        recording(**change)


def test_labels_say_what_is_labelled() -> None:
    labels = Labels(
        classes=np.array([-1, 1, -1]),
        values=np.array([[np.nan, np.nan], [np.nan, np.nan], [np.nan, 0.5]]),
        times=np.arange(3),
    )
    assert labels.labelled.tolist() == [False, True, True]


def test_the_duration_is_that_of_the_longest_part() -> None:
    made = recording(
        streams={"x": Stream.regular(np.zeros(40), 4.0), "y": Stream.at([1.0], [3.0])},
        labels=Labels(classes=np.zeros(12, dtype=int), times=np.arange(12) + 0.5),
    )
    assert made.duration == pytest.approx(12.0)
    assert dataclasses.replace(made, labels=None).duration == pytest.approx(10.0)
    centred = Stream.regular(np.zeros(12), 1.0, start=0.5)
    assert centred.end == pytest.approx(12.0)
    alone = Recording("r", "s", streams={"y": Stream.at([1.0], [3.0])})
    assert 3.0 < alone.duration < 3.001


def test_the_streams_of_a_recording_are_its_own() -> None:
    streams = {"x": stream()}
    made = recording(streams=streams)
    streams["y"] = stream()
    assert list(made.streams) == ["x"]


def test_representations_are_short() -> None:
    text = repr(recording())
    assert len(text) < 200
    assert "x: Stream(4 x 2, 1 Hz)" in text
