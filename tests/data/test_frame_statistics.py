from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmer.data import FrameStatistics, Labels, Recording, Stream
from mmer.data.frame_statistics import parse_statistic
from mmer.data.frames import GATHERED, SUMMED


def recording(stream: Any, seconds: int | None = None) -> Any:
    labels = None
    if seconds is not None:
        labels = Labels(classes=np.zeros(seconds, dtype=int), times=np.arange(seconds) + 0.5)
    return Recording("r", "r", streams={"x": stream}, labels=labels)


def by_hand(name: str, x: Any, t: Any, window: float | None) -> Any:
    """One statistic of one feature of one window, from its real samples alone."""
    if name == "mean":
        return x.mean()
    if name == "deviation":
        return x.std()
    if name == "slope":
        return np.polyfit(t - t.mean(), x, 1)[0] if len(set(t)) > 1 else 0.0
    if name == "minimum":
        return x.min()
    if name == "maximum":
        return x.max()
    if name == "range":
        return np.ptp(x)
    if name == "energy":
        return np.sqrt((x**2).mean())
    if name == "count":
        return len(x) / window
    raise AssertionError(name)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rate=st.sampled_from([0.7, 4.0, 10.0]),
    seconds=st.sampled_from([0.5, 1.0, 2.0]),
    window=st.sampled_from([None, 0.5, 3.0, 7.5]),
    causal=st.booleans(),
    irregular=st.booleans(),
)
def test_statistics_are_those_of_the_real_samples(
    seed: int, rate: float, seconds: float, window: float | None, causal: bool, irregular: bool
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    values, mask = rng.standard_normal((count, 2)) + 3, rng.random(count) < 0.8
    if irregular:
        stream = Stream.at(values, np.sort(rng.uniform(0, count / rate, count)), mask=mask)
    else:
        stream = Stream.regular(values, rate, mask=mask)
    names = [name for name in (*SUMMED, *GATHERED) if name != "change"]
    at = "" if window is None else f"@{window}"
    transform = FrameStatistics(seconds, [name + at for name in names], causal)
    framed = transform(recording(stream)).streams["x"]
    assert framed.rate == 1 / seconds
    np.testing.assert_allclose(framed.times, (np.arange(len(framed)) + 0.5) * seconds)
    assert framed.features == len(names) * 2
    width = window or seconds
    for frame in range(len(framed)):
        end = (frame + 1) * seconds + (0 if causal else (width - seconds) / 2)
        inside = (stream.times >= end - width - 1e-6) & (stream.times < end - 1e-6) & mask
        assert framed.mask[frame] == inside.any()
        if not inside.any():
            assert not framed.values[frame].any()
            continue
        for column, name in enumerate(names):
            for feature in range(2):
                expected = by_hand(name, values[inside, feature], stream.times[inside], width)
                found = framed.values[frame, 2 * column + feature]
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), name


def test_change_is_the_mean_speed_between_real_neighbours() -> None:
    values = np.array([0.0, 1.0, 5.0, 5.0, 3.0])
    mask = np.array([True, True, False, True, True])
    stream = Stream.regular(values, 4.0, mask=mask)
    found = FrameStatistics(2.0, ["change"])(recording(stream)).streams["x"]
    assert found.values[0, 0] == pytest.approx((4.0 + 8.0) / 2)


@given(
    frequency=st.floats(0.7, 12.0),
    amplitude=st.floats(0.1, 50.0),
    offset=st.floats(-100, 100),
    phase=st.floats(0, 6.28),
)
def test_the_spectrum_of_a_sine(
    frequency: float, amplitude: float, offset: float, phase: float
) -> None:
    times = np.arange(64 * 20) / 64
    wave = offset + amplitude * np.sin(2 * np.pi * frequency * times + phase)
    band = f"{frequency - 0.4:.3f}-{frequency + 0.4:.3f}"
    transform = FrameStatistics(
        1.0,
        [
            f"power:{band}@8",
            f"share:{band}@8",
            "rhythm:0.5-13@8",
            "rhythm_share:0.5-13@8",
            "power:20-30@8",
        ],
    )
    middle = transform(recording(Stream.regular(wave, 64.0))).streams["x"].values[8:12]
    np.testing.assert_allclose(middle[:, 0], amplitude**2 / 2, rtol=0.02)
    np.testing.assert_allclose(middle[:, 1], 1.0, atol=0.02)
    np.testing.assert_allclose(middle[:, 2], frequency, atol=0.02)
    np.testing.assert_allclose(middle[:, 3], 1.0, atol=0.02)
    assert (middle[:, 4] < 1e-4 * amplitude**2).all()


def test_the_spectrum_adds_up_to_the_variance_that_the_taper_sees() -> None:
    rng = np.random.default_rng(0)
    stream = Stream.regular(rng.standard_normal((4000, 2)), 40.0)
    transform = FrameStatistics(1.0, ["power:0-21@100"])
    middle = transform(recording(stream)).streams["x"].values[50]
    np.testing.assert_allclose(middle, 1.0, atol=0.06)


def test_masked_samples_do_not_enter_the_spectrum() -> None:
    times = np.arange(640) / 64
    wave = np.sin(2 * np.pi * 3 * times)
    mask = np.ones(640, dtype=bool)
    mask[100:110] = False
    spoiled = np.where(mask, wave, 1e6)
    transform = FrameStatistics(10.0, ["power:2-4", "rhythm:1-8"])
    found = transform(recording(Stream.regular(spoiled, 64.0, mask=mask))).streams["x"].values[0]
    assert found[0] == pytest.approx(0.5, rel=0.1)
    assert found[1] == pytest.approx(3.0, abs=0.05)


def test_log_adds_the_floor() -> None:
    stream = Stream.regular(np.array([2.0, 2.0, 2.0, 2.0]), 4.0)
    transform = FrameStatistics(1.0, ["log_mean", "log_deviation"], log_floor=0.5)
    found = transform(recording(stream)).streams["x"].values[0]
    np.testing.assert_allclose(found, np.log([2.5, 0.5]), rtol=1e-6)


def test_a_causal_window_sees_nothing_of_what_follows() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(400)
    changed = values.copy()
    changed[200:] += 10
    statistics = ["mean@30", "deviation@5", "power:0.1-1@20", "maximum"]
    for causal in (True, False):
        transform = FrameStatistics(1.0, statistics, causal)
        a, b = (
            transform(recording(Stream.regular(x, 4.0))).streams["x"].values
            for x in (values, changed)
        )
        assert np.array_equal(a[:50], b[:50]) == causal
        assert not np.array_equal(a[50:], b[50:])


def test_frames_of_all_streams_and_the_labels_coincide() -> None:
    fast, slow = Stream.regular(np.ones(64 * 10), 64.0), Stream.regular(np.ones(36), 4.0)
    made = Recording(
        "r",
        "r",
        streams={"fast": fast, "slow": slow},
        labels=Labels(classes=np.zeros(10, dtype=int), times=np.arange(10) + 0.5),
    )
    framed = FrameStatistics()(made)
    assert {len(stream) for stream in framed.streams.values()} == {10}
    np.testing.assert_array_equal(framed.streams["fast"].times, made.labels.times)
    assert framed.streams["slow"].mask.tolist() == [True] * 9 + [False]
    assert framed.duration == pytest.approx(made.duration)


def test_statistics_by_name_leave_other_streams_alone() -> None:
    made = Recording(
        "r",
        "r",
        streams={"x": Stream.regular(np.ones((8, 3)), 4.0), "y": Stream.at([1.0], [0.5])},
    )
    transform = FrameStatistics(1.0, {"x": ["mean", "slope@2"]})
    framed = transform(made)
    assert framed.streams["y"] is made.streams["y"]
    assert framed.streams["x"].features == 6
    assert transform.feature_names("x", 3) == [
        "mean[0]", "mean[1]", "mean[2]", "slope@2[0]", "slope@2[1]", "slope@2[2]",
    ]  # fmt: skip
    assert transform.feature_names("x") == ["mean", "slope@2"]


def test_a_wholly_masked_stream_stays_masked() -> None:
    stream = Stream.regular(np.ones(40), 4.0, mask=np.zeros(40, dtype=bool))
    framed = FrameStatistics(1.0, ["mean", "rhythm:0.1-1@5"])(recording(stream)).streams["x"]
    assert not framed.present
    assert not framed.values.any()


def test_an_empty_stream() -> None:
    stream = Stream.regular(np.ones((0, 2)), 4.0)
    framed = FrameStatistics(1.0, [*SUMMED, *GATHERED])(recording(stream, seconds=3)).streams["x"]
    assert len(framed) == 3
    assert not framed.present


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("median", "statistic must be NAME"),
        ("mean@", "statistic must be NAME"),
        ("mean:1-2", "mean has no band"),
        ("power", "power has a band"),
        ("power:3-2", "from low to high"),
        ("mean@0", "above 0 seconds"),
        (3, "statistic must be NAME"),
    ],
)
def test_what_is_no_statistic_is_refused_when_it_is_named(text: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FrameStatistics(1.0, [text])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seconds": 0}, "FrameStatistics.seconds"),
        ({"log_floor": -1}, "FrameStatistics.log_floor"),
        ({"statistics": "mean"}, "must be names of statistics"),
        ({"statistics": []}, "must be names of statistics"),
        ({"statistics": {"x": "mean"}}, "must be names of statistics"),
    ],
)
def test_bad_arguments(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FrameStatistics(**arguments)


def test_a_spectrum_that_cannot_be_is_refused_with_the_stream_and_the_recording() -> None:
    irregular = recording(Stream.at([1.0, 2.0], [0.1, 0.7]))
    with pytest.raises(ValueError, match="x in recording 'r': the spectrum of an irregular"):
        FrameStatistics(1.0, ["power:0-1"])(irregular)
    slow = recording(Stream.regular(np.ones(40), 4.0))
    with pytest.raises(ValueError, match="band 3-5 Hz lies between or beyond"):
        FrameStatistics(1.0, ["power:3-5"])(slow)


def test_parsing() -> None:
    assert parse_statistic("log_power:0.5-4@8") == ("power", True, 0.5, 4.0, 8.0)
    assert parse_statistic("slope") == ("slope", False, None, None, None)
