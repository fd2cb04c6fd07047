from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmer.data import (
    TRANSFORMS,
    AverageLabels,
    ClipOutliers,
    ClipValues,
    DeriveStream,
    FrameStatistics,
    JoinStreams,
    Labels,
    Recording,
    RenameStreams,
    SampleEvents,
    SelectColumns,
    SelectStreams,
    Standardize,
    StandardizePerRecording,
    StandardizePerSubject,
    Stream,
    ThresholdValues,
    UnlabelledFrames,
    apply_transforms,
    build_transform,
)
from tests.data.cases import make_recording


def with_stream(values: Any, mask: Any = None, rate: float = 1.0, **changes: Any) -> Any:
    stream = Stream.regular(np.asarray(values, dtype=float), rate, mask=mask)
    return Recording(**{"identifier": "r", "subject": "r", "streams": {"x": stream}, **changes})


def derived(
    operation: Any, values: Any, mask: Any = None, rate: float = 1.0, **settings: Any
) -> Any:
    made = DeriveStream("x", operation, "y", **settings)(with_stream(values, mask, rate))
    assert "x" in made.streams
    return made.streams["y"].values


@given(seed=st.integers(0, 1000), scale=st.booleans())
def test_standardising_a_recording(seed: int, scale: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((50, 3)) * [1, 1e-3, 1e3] + [0, 5, -1e4]
    mask = rng.random(50) < 0.7
    made = StandardizePerRecording(scale=scale)(with_stream(values, mask)).streams["x"]
    real = made.values[mask].astype(float)
    size = 1 if scale else values.std(0)
    np.testing.assert_allclose(real.mean(0) / size, 0, atol=1e-2)
    expected = 1 if scale else values[mask].std(0)
    np.testing.assert_allclose(real.std(0), expected, rtol=1e-2)
    assert not made.values[~mask].any()


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, -1e6])
def test_a_feature_that_never_changes_becomes_zero(constant: float) -> None:
    values = np.column_stack([np.full(1000, constant), np.arange(1000)])
    made = StandardizePerRecording()(with_stream(values)).streams["x"].values
    assert not made[:, 0].any()
    assert made[:, 1].std() == pytest.approx(1)


def test_a_missing_modality_stays_missing() -> None:
    recording = with_stream(np.ones(5), mask=np.zeros(5, dtype=bool))
    for transform in (StandardizePerRecording(), ClipOutliers(), ClipValues()):
        assert not transform(recording).streams["x"].present


def test_standardising_a_person_keeps_what_differs_between_recordings() -> None:
    recordings = [
        with_stream([0.0, 2.0], identifier="a", subject="p"),
        with_stream([100.0, 300.0], identifier="c", subject="q"),
        with_stream([10.0, 12.0], identifier="b", subject="p"),
    ]
    changed = StandardizePerSubject().apply(recordings)
    assert [r.identifier for r in changed] == ["a", "c", "b"]
    p = np.concatenate([changed[0].streams["x"].values, changed[2].streams["x"].values])
    assert p.mean() == pytest.approx(0, abs=1e-6)
    assert p.std() == pytest.approx(1)
    assert changed[0].streams["x"].values.mean() < -0.9
    assert changed[1].streams["x"].values[:, 0].tolist() == [-1, 1]
    shifted = StandardizePerSubject(scale=False).apply(recordings)
    assert shifted[0].streams["x"].values[:, 0].tolist() == [-6, -4]


def test_standardising_by_the_training_recordings() -> None:
    train = [with_stream([0.0, 2.0]), with_stream([4.0, 6.0])]
    step = Standardize.fit(train)
    assert step.mean == {"x": [3.0]}
    found = step(with_stream([3.0, 3.0 + np.sqrt(5)])).streams["x"].values[:, 0]
    np.testing.assert_allclose(found, [0, 1], atol=1e-6)
    with pytest.raises(ValueError, match="1 numbers, but the stream has 2 features"):
        step(with_stream(np.ones((3, 2))))
    with pytest.raises(ValueError, match="no recording has y, only x"):
        Standardize.fit(train, ["y"])
    with pytest.raises(ValueError, match="same streams and features"):
        Standardize({"x": [0.0]}, {"x": [1.0, 1.0]})


def test_outliers_are_clipped_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000)
    values[7] = 1e6
    made = ClipOutliers(5.0)(with_stream(values)).streams["x"].values[:, 0]
    assert 4 < made[7] < 6
    rest = np.arange(1000) != 7
    np.testing.assert_allclose(made[rest], values[rest].astype(np.float32), rtol=1e-6)
    mostly_flat = np.r_[np.zeros(99), 10.0]
    made = ClipOutliers(2.0)(with_stream(mostly_flat)).streams["x"].values[:, 0]
    assert made[-1] == pytest.approx(2 * mostly_flat.std())


def test_values_are_clipped() -> None:
    made = ClipValues(2.0)(with_stream([-3.0, 1.0, 9.0])).streams["x"].values[:, 0]
    assert made.tolist() == [-2, 1, 2]


def test_selecting_and_renaming() -> None:
    recording = make_recording()
    assert list(SelectStreams(["slow", "fast", "none"])(recording).streams) == ["slow", "fast"]
    with pytest.raises(ValueError, match="has none of pulse, only fast, slow, event"):
        SelectStreams(["pulse"])(recording)
    columns = SelectColumns({"event": [2, 0]})(recording).streams["event"].values
    np.testing.assert_array_equal(columns, recording.streams["event"].values[:, [2, 0]])
    with pytest.raises(ValueError, match=r"slow has columns 0 \.\. 0"):
        SelectColumns({"slow": [1]})(recording)
    assert list(RenameStreams({"fast": "quick"})(recording).streams) == ["quick", "slow", "event"]
    with pytest.raises(ValueError, match="two streams would have one name"):
        RenameStreams({"fast": "slow"})(recording)


def test_deriving() -> None:
    assert derived("magnitude", [[3.0, 4.0]]).tolist() == [[5]]
    assert derived("mean", [[3.0, 4.0]]).tolist() == [[3.5]]
    np.testing.assert_allclose(derived("log", [np.e, -1.0], floor=0.1)[:, 0], [1, np.log(0.1)])
    np.testing.assert_allclose(derived("signed_log", [np.e - 1, 1 - np.e])[:, 0], [1, -1])
    np.testing.assert_allclose(derived("sine", [30.0])[:, 0], [0.5], rtol=1e-6)
    np.testing.assert_allclose(derived("cosine", [60.0])[:, 0], [0.5], rtol=1e-6)
    np.testing.assert_allclose(derived("unwrap", [350.0, 10, 20])[:, 0], [350, 370, 380])
    np.testing.assert_allclose(derived("derivative", [0.0, 1, 4], rate=2.0)[:, 0], [2, 4, 6])
    smooth = derived("smooth", [0.0, 3, 6, 9], seconds=2.0)[:, 0]
    np.testing.assert_allclose(smooth, [1.5, 3, 6, 7.5])
    np.testing.assert_allclose(
        derived("detrend", [0.0, 3, 6, 9], seconds=2.0)[:, 0], [-1.5, 0, 0, 1.5]
    )
    np.testing.assert_array_equal(derived("copy", [1.0, 2.0])[:, 0], [1, 2])


def test_deriving_looks_past_masked_samples() -> None:
    mask = np.array([True, False, True])
    values = [0.0, 99.0, 4.0]
    np.testing.assert_allclose(derived("derivative", values, mask)[:, 0], [2, 0, 2])
    np.testing.assert_allclose(derived("smooth", values, mask, seconds=4.0)[:, 0], [2, 0, 2])
    np.testing.assert_allclose(derived("unwrap", [350.0, 180.0, 10.0], mask)[:, 0], [350, 0, 370])


def test_deriving_what_is_not_there_or_not_known() -> None:
    recording = with_stream([1.0])
    assert DeriveStream("y", "copy")(recording) is recording
    with pytest.raises(ValueError, match="operation must be one of copy, magnitude"):
        DeriveStream("x", "fourier")
    with pytest.raises(ValueError, match=r"DeriveStream\.seconds must be above 0"):
        DeriveStream("x", "smooth", seconds=0)


def test_sampling_events() -> None:
    events = Stream.at(
        [[1.0, 10.0], [9.0, 99.0], [0.5, 20.0]],
        [2.0, 2.2, 4.0],
        mask=np.array([True, False, True]),
    )
    recording = Recording(
        "r", "r", streams={"x": events, "clock": Stream.regular(np.ones(12), 2.0)}
    )
    made = SampleEvents("x", 2.0, duration=0)(recording).streams["x"]
    assert made.rate == 2.0
    assert len(made) == 12
    assert made.mask.tolist() == [False] * 2 + [True] * 10
    assert made.values[2:, 0].tolist() == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert made.values[2:, 2].tolist() == [10] * 5 + [20] * 5
    held = SampleEvents("x", 1.0, name="y")(recording).streams
    assert held["y"].values[:, 1].tolist() == [0, 0, 10, 10, 20, 20]
    assert held["x"] is events
    assert SampleEvents("z", 1.0)(recording) is recording
    with pytest.raises(ValueError, match=r"x has columns 0 \.\. 1, got 2"):
        SampleEvents("x", 1.0, duration=2)(recording)
    with pytest.raises(ValueError, match=r"SampleEvents\.rate"):
        SampleEvents("x", 0.0)
    empty = Recording("r", "r", streams={"x": Stream.at(np.zeros((0, 2)), [])}, labels=None)
    assert not SampleEvents("x", 1.0, duration=1)(empty).streams["x"].present


def test_joining() -> None:
    mask = np.array([True, False])
    recording = Recording(
        "r",
        "r",
        streams={
            "a": Stream.regular([1.0, 2.0], 1.0),
            "b": Stream.regular([[3.0, 4.0], [5.0, 6.0]], 1.0, mask=mask),
            "c": Stream.regular([1.0], 2.0),
        },
    )
    made = JoinStreams(["b", "a"], "ab")(recording)
    assert list(made.streams) == ["c", "ab"]
    assert made.streams["ab"].values.tolist() == [[3, 4, 1], [0, 0, 0]]
    assert made.streams["ab"].mask.tolist() == [True, False]
    with pytest.raises(ValueError, match="c has other times than a"):
        JoinStreams(["a", "c"], "x")(recording)
    with pytest.raises(ValueError, match="lacks z"):
        JoinStreams(["a", "z"], "x")(recording)
    assert JoinStreams(["y", "z"], "x")(recording) is recording


def test_averaging_labels() -> None:
    labels = Labels(
        classes=np.array([0, 1, 1, -1, -1, 2]),
        values=np.array([[1.0], [3.0], [np.nan], [np.nan], [np.nan], [7.0]]),
        times=np.arange(6) / 2,
    )
    made = AverageLabels(1.0)(with_stream(np.ones(3), labels=labels)).labels
    assert made.times.tolist() == [0.5, 1.5, 2.5]
    assert made.classes.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(made.values[:, 0], [2, np.nan, 7])
    gap = Labels(classes=np.array([1, 1]), times=np.array([0.0, 2.2]))
    assert AverageLabels(1.0)(with_stream(np.ones(3), labels=gap)).labels.classes.tolist() == [
        1, -1, 1,
    ]  # fmt: skip
    whole = with_stream(np.ones(3), labels=Labels(classes=np.array([1])))
    assert AverageLabels(1.0)(whole) is whole


def test_making_classes_of_values() -> None:
    labels = Labels(values=np.array([[0.0, 5.0], [0.0, 5.1], [0.0, np.nan]]), times=np.arange(3))
    recording = with_stream(np.ones(3), labels=labels, value_names=("valence", "arousal"))
    made = ThresholdValues("arousal", [5.0])(recording)
    assert made.labels.classes.tolist() == [0, 1, -1]
    assert made.class_names == ("low", "high")
    assert made.value_names == ("valence", "arousal")
    three = ThresholdValues("arousal", [0.0, 5.0], ["a", "b", "c"], keep_values=False)(recording)
    assert three.labels.classes.tolist() == [1, 2, -1]
    assert three.labels.values is None
    with pytest.raises(ValueError, match="has no value 'joy', only"):
        ThresholdValues("joy", [5.0])(recording)
    with pytest.raises(ValueError, match="increasing"):
        ThresholdValues("arousal", [5.0, 5.0], ["a", "b", "c"])
    with pytest.raises(ValueError, match="must be 2 names"):
        ThresholdValues("arousal", [5.0], ["a"])


def test_frames_to_predict() -> None:
    recording = dataclasses.replace(make_recording(seconds=20), labels=None)
    labels = UnlabelledFrames(2.0)(recording).labels
    assert labels.times.tolist() == list(np.arange(10) * 2 + 1.0)
    assert not labels.labelled.any()


def test_transforms_leave_the_recording_as_it_is() -> None:
    recording = make_recording()
    before = {name: stream.values.copy() for name, stream in recording.streams.items()}
    apply_transforms(
        [recording],
        [ClipOutliers(1.0), StandardizePerRecording(), FrameStatistics(1.0, ["mean"])],
    )
    for name, stream in recording.streams.items():
        np.testing.assert_array_equal(stream.values, before[name])


def test_building_from_a_description() -> None:
    built = build_transform(
        {"transform": "FrameStatistics", "seconds": 2.0, "statistics": ["mean"]}
    )
    assert built == FrameStatistics(2.0, ["mean"])
    assert build_transform({"transform": "StandardizePerRecording"}) == StandardizePerRecording()
    derive = {"transform": "DeriveStream", "source": "x", "operation": "log", "name": "y"}
    assert build_transform(derive) == DeriveStream("x", "log", "y")
    assert all(name == cls.__name__ for name, cls in TRANSFORMS.items())


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, "transform must be one of"),
        ({"transform": "Blur"}, "got 'Blur'"),
        ({"transform": "ClipValues", "level": 3}, "ClipValues has no argument level; it has limit"),
        ({"transform": "DeriveStream"}, "DeriveStream: .* missing"),
        ({"transform": "ClipValues", "limit": -1}, "ClipValues.limit"),
    ],
)
def test_a_bad_description_is_refused(description: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_transform(description)
