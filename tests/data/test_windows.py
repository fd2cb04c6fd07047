from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmer.data import (
    Labels,
    RandomWindows,
    Recording,
    SlidingWindows,
    SoftVote,
    Stream,
    collate,
    cut_window,
)
from tests.data.cases import make_recording


def same_window(a: Any, b: Any) -> Any:
    return (
        a.identifier == b.identifier
        and a.start == b.start
        and all(np.array_equal(a.values[n], b.values[n]) for n in a.values)
        and np.array_equal(a.classes, b.classes)
    )


@given(start=st.floats(0, 25), seconds=st.floats(0.01, 30), seed=st.integers(0, 5))
def test_a_window_holds_exactly_what_lies_in_it(start: float, seconds: float, seed: int) -> None:
    recording = make_recording(seed=seed)
    window = cut_window(recording, start, seconds)
    end = start + seconds
    for name, stream in recording.streams.items():
        inside = [
            i
            for i, t in enumerate(stream.times)
            if start - 1e-6 <= t and (t < end - 1e-6 or end >= recording.duration - 1e-6)
        ]
        np.testing.assert_array_equal(window.values[name], stream.values[inside])
        np.testing.assert_array_equal(window.masks[name], stream.mask[inside])
        expected = np.maximum(stream.times[inside] - start, 0)
        np.testing.assert_allclose(window.times[name], expected, atol=1e-5)
        assert window.times[name].dtype == np.float32
    labels = recording.labels
    inside = [
        i
        for i, t in enumerate(labels.times)
        if start - 1e-6 <= t and (t < end - 1e-6 or end >= recording.duration - 1e-6)
    ]
    np.testing.assert_array_equal(window.classes, labels.classes[inside])
    np.testing.assert_array_equal(window.targets, labels.values[inside])
    assert window.frames == len(inside)


def test_cutting_copies_no_samples() -> None:
    recording = make_recording()
    window = cut_window(recording, 2.0, 5.0)
    assert np.shares_memory(window.values["fast"], recording.streams["fast"].values)


def test_a_random_window_depends_on_seed_epoch_and_index_alone() -> None:
    recordings = [make_recording(str(i), seconds=60, seed=i) for i in range(3)]
    windows = RandomWindows(recordings, (5, 20), windows_per_recording=4, seed=7)
    backwards = [windows[i] for i in reversed(range(len(windows)))][::-1]
    again = RandomWindows(recordings, (5, 20), windows_per_recording=4, seed=7)
    assert all(same_window(again[i], backwards[i]) for i in range(len(windows)))
    windows.set_epoch(1)
    assert not any(windows[i].start == backwards[i].start for i in range(len(windows)))
    windows.set_epoch(0)
    assert same_window(windows[5], backwards[5])
    other = RandomWindows(recordings, (5, 20), windows_per_recording=4, seed=8)
    assert not any(other[i].start == backwards[i].start for i in range(len(windows)))
    assert [window.identifier for window in backwards] == ["0", "1", "2"] * 4


def test_random_windows_cover_lengths_and_places_evenly() -> None:
    windows = RandomWindows([make_recording(seconds=100)], (10, 30), windows_per_recording=2000)
    drawn = [windows[i] for i in range(len(windows))]
    seconds = np.array([window.seconds for window in drawn])
    starts = np.array([window.start for window in drawn])
    assert seconds.min() >= 10
    assert seconds.max() <= 30
    assert abs(seconds.mean() - 20) < 0.5
    assert (starts + seconds).max() <= 100
    share = starts / (100 - seconds)
    assert np.abs(np.histogram(share, 10, (0, 1))[0] - 200).max() < 60
    assert abs(np.corrcoef(share, seconds)[0, 1]) < 0.08


def test_nothing_in_a_batch_but_the_bookkeeping_tells_where_a_window_lies() -> None:
    def at(start: float) -> Any:
        classes = np.zeros(400, dtype=int)
        recording = Recording(
            "r",
            "r",
            streams={"x": Stream.regular(np.ones(1600), 4.0)},
            labels=Labels(classes=classes, times=np.arange(400) + 0.5),
        )
        return collate([cut_window(recording, start, 50.0)])

    early, late = at(10.0), at(300.0)
    assert torch.equal(early.times["x"], late.times["x"])
    assert torch.equal(early.label_times, late.label_times)
    assert early.starts.tolist() == [10.0]
    assert late.starts.tolist() == [300.0]


def test_a_recording_shorter_than_the_window_comes_whole() -> None:
    recording = make_recording(seconds=20)
    for window in (
        RandomWindows([recording], (60, 300))[0],
        RandomWindows([recording], None)[0],
        SlidingWindows([recording], 60.0, 30.0)[0],
        SlidingWindows([recording])[0],
    ):
        assert window.start == 0
        assert window.seconds == pytest.approx(recording.duration)
        assert all(len(window.values[n]) == len(s) for n, s in recording.streams.items())
        assert window.frames == 20
    assert len(SlidingWindows([recording], 60.0, 30.0)) == 1


def test_a_stream_without_a_sample_in_the_window_is_masked() -> None:
    recording = Recording(
        "r",
        "r",
        streams={
            "x": Stream.regular(np.ones(40), 4.0),
            "late": Stream.at([1.0, 2.0], [8.0, 9.0]),
        },
        labels=Labels(classes=np.zeros(10, dtype=int), times=np.arange(10) + 0.5),
    )
    batch = collate([cut_window(recording, 0.0, 5.0), cut_window(recording, 5.0, 5.0)])
    assert batch.masks["late"].tolist() == [[False, False], [True, True]]
    assert batch.values["late"][0].abs().sum() == 0
    alone = collate([cut_window(recording, 0.0, 5.0)])
    assert alone.masks["late"].shape == (1, 1)
    assert not alone.masks["late"].any()


def test_a_stream_shorter_than_the_recording_is_masked_where_it_is_absent() -> None:
    recording = Recording(
        "r",
        "r",
        streams={
            "x": Stream.regular(np.ones(40), 4.0),
            "short": Stream.regular(np.ones(20), 4.0),
        },
    )
    batch = collate([cut_window(recording, 0.0, 4.0), cut_window(recording, 3.0, 4.0)])
    assert batch.masks["x"].sum(1).tolist() == [16, 16]
    assert batch.masks["short"].sum(1).tolist() == [16, 8]


def test_a_single_frame_and_one_label_per_recording() -> None:
    streams = {"x": Stream.regular(np.ones(1), 4.0)}
    framed = Recording(
        "a", "a", streams=streams, labels=Labels(classes=np.array([2]), times=np.array([0.1]))
    )
    whole = Recording("b", "b", streams=streams, labels=Labels(values=np.array([[0.5, np.nan]])))
    batch = collate([RandomWindows([framed], (1, 2))[0]])
    assert batch.classes.tolist() == [[2]]
    assert batch.label_times.tolist() == [[pytest.approx(0.1)]]
    batch = collate([RandomWindows([whole], (0.05, 0.05))[0]])
    assert batch.label_times is None
    assert batch.label_mask.tolist() == [[True]]
    assert batch.targets[0, 0, 0] == 0.5
    assert torch.isnan(batch.targets[0, 0, 1])
    with pytest.raises(ValueError, match="some have labels over time"):
        collate([cut_window(framed), cut_window(whole)])


@settings(max_examples=60)
@given(
    frames=st.integers(1, 90),
    rate=st.sampled_from([0.1, 0.5, 1.0, 3.0, 30.0]),
    offset=st.sampled_from([0.0, 0.5]),
    seconds=st.floats(0.1, 100),
    share=st.floats(0.05, 1.0),
)
def test_sliding_windows_reach_every_label(
    frames: int, rate: float, offset: float, seconds: float, share: float
) -> None:
    times = (np.arange(frames) + offset) / rate
    recording = Recording(
        "r",
        "r",
        streams={"x": Stream.regular(np.arange(frames), rate)},
        labels=Labels(classes=np.arange(frames), times=times),
    )
    hop = max(seconds * share, recording.duration / 200)
    windows = SlidingWindows([recording], max(seconds, hop), hop)
    drawn = [windows[i] for i in range(len(windows))]
    assert set(itertools.chain.from_iterable(w.classes.tolist() for w in drawn)) == set(
        range(frames)
    )
    assert set(np.concatenate([w.values["x"][:, 0] for w in drawn])) == set(range(frames))
    starts = [window.start for window in drawn]
    assert len(set(starts)) == len(starts)
    assert starts == sorted(starts)
    assert all(w.start + w.seconds <= recording.duration + 1e-6 for w in drawn)


def test_sliding_windows_side_by_side_share_nothing_and_lose_nothing() -> None:
    recording = Recording("r", "r", streams={"x": Stream.regular(np.arange(700), 10.0)})
    windows = SlidingWindows([recording], 0.7)
    values = np.concatenate([windows[i].values["x"][:, 0] for i in range(len(windows))])
    assert len(windows) == 100
    np.testing.assert_array_equal(values, np.arange(700))


def test_the_last_sliding_window_is_as_long_as_the_others() -> None:
    windows = SlidingWindows([make_recording(seconds=50)], 20.0, 15.0)
    assert [windows[i].start for i in range(len(windows))] == [0.0, 15.0, 30.0]
    windows = SlidingWindows([make_recording(seconds=54)], 20.0, 15.0)
    assert [windows[i].start for i in range(len(windows))] == [0.0, 15.0, 30.0, 34.0]
    assert {windows[i].frames for i in range(len(windows))} == {20}


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.floats(3, 40),
    share=st.floats(0.1, 1.0),
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 5),
)
def test_soft_vote_is_the_mean_over_all_windows_that_hold_a_label(
    seconds: float, share: float, seed: int, batch_size: int
) -> None:
    rng = np.random.default_rng(seed)
    recordings = [make_recording("a", seed=1, seconds=30), make_recording("b", seed=2, seconds=17)]
    windows = SlidingWindows(recordings, seconds, seconds * share)
    drawn = [windows[i] for i in rng.permutation(len(windows))]
    vote = SoftVote()
    heard: dict[tuple[str, int], list[np.ndarray]] = {}
    for first in range(0, len(drawn), batch_size):
        batch = collate(drawn[first : first + batch_size])
        output = torch.from_numpy(rng.random((*batch.label_mask.shape, 3)))
        vote.add(batch, probabilities=output, values=output[..., :1])
        for row, window in enumerate(drawn[first : first + batch_size]):
            for frame in range(window.frames):
                second = round(window.start + float(window.label_times[frame]) - 0.5, 3)
                heard.setdefault((window.identifier, int(second)), []).append(output[row, frame])
    votes = vote.votes()
    for recording in recordings:
        found = votes[recording.identifier]
        np.testing.assert_allclose(found.times, recording.labels.times, atol=1e-4)
        np.testing.assert_array_equal(found.classes, recording.labels.classes)
        np.testing.assert_array_equal(found.targets, recording.labels.values)
        for frame in range(len(recording.labels)):
            expected = heard[recording.identifier, frame]
            assert found.count[frame] == len(expected)
            mean = np.mean(expected, axis=0)
            np.testing.assert_allclose(found.outputs["probabilities"][frame], mean)
            np.testing.assert_allclose(found.outputs["values"][frame], mean[:1])


def test_soft_vote_for_one_label_per_recording_and_for_times_of_ones_own() -> None:
    streams = {"x": Stream.regular(np.ones(40), 4.0)}
    whole = Recording("w", "w", streams=streams, labels=Labels(classes=np.array([1])))
    windows = SlidingWindows([whole], 4.0, 3.0)
    vote = SoftVote()
    vote.add(collate([windows[0], windows[1]]), p=torch.tensor([[[0.2]], [[0.4]]]))
    vote.add(collate([windows[2]]), p=torch.tensor([[[0.9]]]), q=None)
    found = vote.votes()["w"]
    assert found.times is None
    assert found.outputs["p"] == pytest.approx(np.array([[0.5]]))
    assert found.classes.tolist() == [1]
    assert found.count.tolist() == [3]

    unlabelled = Recording("u", "u", streams=streams)
    windows = SlidingWindows([unlabelled], 6.0, 4.0)
    vote = SoftVote()
    batch = collate([windows[0], windows[1]])
    vote.add(
        batch,
        times=torch.tensor([[1.0, 5.0], [1.0, 5.0]]),
        p=torch.tensor([[1.0, 2.0], [4.0, 8.0]]),
    )
    found = vote.votes()["u"]
    assert found.times.tolist() == [1.0, 5.0, 9.0]
    assert found.outputs["p"].tolist() == [1.0, 3.0, 8.0]
    assert found.classes is None


def test_soft_vote_refuses_what_does_not_fit() -> None:
    batch = collate([cut_window(make_recording(seconds=6))])
    vote = SoftVote()
    with pytest.raises(ValueError, match="at least one is needed"):
        vote.add(batch, p=None)
    with pytest.raises(ValueError, match=r"p must be \(batch, frames, ...\)"):
        vote.add(batch, p=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="times must be"):
        vote.add(batch, p=torch.zeros(1, 6), times=torch.zeros(1, 5))
    unlabelled = collate([cut_window(make_recording(seconds=6, labels=False))])
    with pytest.raises(ValueError, match="times are needed for 3 frames"):
        vote.add(unlabelled, p=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="resolution"):
        SoftVote(0.0)


def test_workers_that_outlive_an_epoch_see_the_next_one() -> None:
    windows = RandomWindows([make_recording(seconds=60)], (5, 20), windows_per_recording=4)
    loader = DataLoader(
        windows, batch_size=2, num_workers=1, persistent_workers=True, collate_fn=collate
    )
    for epoch in (0, 1):
        windows.set_epoch(epoch)
        loaded = torch.cat([batch.starts for batch in loader])
        assert loaded.tolist() == [windows[i].start for i in range(4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recordings": []}, "at least one"),
        ({"seconds": (5, 2)}, "shortest and a longest"),
        ({"seconds": 0}, "shortest and a longest"),
        ({"windows_per_recording": 0}, "windows_per_recording"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_of_random_windows(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RandomWindows(**{"recordings": [make_recording()], **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recordings": []}, "at least one"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": 5.0, "hop": 6.0}, "hop must be above 0 and at most"),
        ({"seconds": 5.0, "hop": 0.0}, "hop must be above 0"),
    ],
)
def test_bad_arguments_of_sliding_windows(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SlidingWindows(**{"recordings": [make_recording()], **arguments})


def test_windows_beyond_the_end_and_bad_places() -> None:
    windows = SlidingWindows([make_recording()], 5.0)
    with pytest.raises(IndexError):
        windows[len(windows)]
    assert same_window(windows[-1], windows[len(windows) - 1])
    with pytest.raises(ValueError, match="start"):
        cut_window(make_recording(), -1.0)
    with pytest.raises(ValueError, match="seconds"):
        cut_window(make_recording(), 0.0, 0.0)
    with pytest.raises(ValueError, match="epoch"):
        RandomWindows([make_recording()]).set_epoch(-1)
