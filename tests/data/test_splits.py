from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from mmer.data import (
    Labels,
    Recording,
    Stream,
    assign_folds,
    check_no_leak,
    official_split,
    split_by,
)


def recording(identifier: Any, subject: Any, group: Any = "", frames: int = 3) -> Any:
    return Recording(
        identifier,
        subject,
        group,
        {"x": Stream.regular(np.ones(4), 1.0)},
        Labels(classes=np.zeros(frames, dtype=int), times=np.arange(frames)),
    )


def grid(subjects: Any = 6, groups: list[int] = 4) -> Any:
    return [
        recording(f"{s}-{g}", f"s{s}", f"g{g}", frames=1 + (s * 7 + g) % 5)
        for s, g in itertools.product(range(subjects), range(groups))
    ]


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(0, 30), min_size=2, max_size=120),
    folds=st.integers(2, 7),
)
def test_folds_are_those_of_group_k_fold(groups: list[int], folds: int) -> None:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < folds:
        with pytest.raises(ValueError, match="at most the"):
            assign_folds([str(g) for g in groups], folds)
        return
    keys = np.array([numbers[g] for g in groups])
    found = assign_folds([str(g) for g in groups], folds)
    for number, (_, test) in enumerate(GroupKFold(folds).split(keys, groups=keys)):
        np.testing.assert_array_equal(np.flatnonzero(found == number), test)


@settings(deadline=None, max_examples=40)
@given(
    frames=st.lists(st.integers(1, 400), min_size=5, max_size=40),
    folds=st.integers(2, 5),
)
def test_folds_balanced_by_frames_are_those_of_group_k_fold_on_the_frames(
    frames: list[int], folds: int
) -> None:
    recordings = [recording(str(i), str(i), frames=n) for i, n in enumerate(frames)]
    rows = np.repeat(np.arange(len(frames)), frames)
    for number, (_, test) in enumerate(GroupKFold(folds).split(rows, groups=rows)):
        _, found = split_by(recordings, "subject", folds, number, balance="frames")
        assert [int(r.identifier) for r in found] == sorted(set(rows[test].tolist()))


def test_the_order_is_that_of_first_appearance_not_of_names() -> None:
    recordings = [recording(str(i), name) for i, name in enumerate(["P10", "P9", "P1", "P2"])]
    _, test = split_by(recordings, folds=2, fold=0)
    # Of four equals the last is dealt first, so fold 0 gets the last and the second-last but one.
    assert [r.subject for r in test] == ["P9", "P2"]


@pytest.mark.parametrize("key", ["subject", "group"])
def test_every_recording_is_tested_on_once_and_nothing_leaks(key: str) -> None:
    recordings = grid()
    tested = []
    for fold in range(3):
        train, test = split_by(recordings, key, 3, fold)
        assert not {getattr(r, key) for r in train} & {getattr(r, key) for r in test}
        assert len(train) + len(test) == len(recordings)
        tested += [r.identifier for r in test]
    assert sorted(tested) == sorted(r.identifier for r in recordings)


def test_split_by_both_keeps_people_and_videos_apart() -> None:
    recordings = grid()
    tested = []
    for fold in range(4):
        train, test = split_by(recordings, "both", 2, fold)
        for key in ("subject", "group"):
            assert not {getattr(r, key) for r in train} & {getattr(r, key) for r in test}
        assert train
        tested += [r.identifier for r in test]
    assert sorted(tested) == sorted(r.identifier for r in recordings)
    with pytest.raises(ValueError, match=r"fold must be 0 \.\. 3"):
        split_by(recordings, "both", 2, 4)


def test_a_leak_is_found_and_named() -> None:
    with pytest.raises(ValueError, match="subject on both sides of the split: s1"):
        check_no_leak([recording("a", "s1")], [recording("b", "s1")])
    with pytest.raises(ValueError, match="group on both sides of the split: v"):
        check_no_leak([recording("a", "s1", "v")], [recording("b", "s2", "v")], "both")
    with pytest.raises(ValueError, match="identifier on both sides of the split: a"):
        check_no_leak([recording("a", "s1", "v")], [recording("a", "s2", "w")])
    check_no_leak([recording("a", "s1", "v")], [recording("b", "s2", "v")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key": "video"}, "key must be one of subject, group, both"),
        ({"folds": 1, "fold": 0}, "folds must be at least 2"),
        ({"folds": 7}, "at most the 6 groups"),
        ({"fold": 5}, r"fold must be 0 \.\. 4"),
        ({"fold": -1}, "fold must be"),
        ({"balance": "seconds"}, "balance must be"),
    ],
)
def test_bad_arguments(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_by(grid(), **arguments)


def test_a_recording_without_a_group_cannot_be_split_by_it() -> None:
    with pytest.raises(ValueError, match="'a' has no group"):
        split_by([recording("a", "s"), recording("b", "t", "v")], "group", 2)


def test_a_published_split_is_taken_from_the_identifiers() -> None:
    recordings = [recording(i, i) for i in ("test/a", "train/b", "test/c")]
    parts = official_split(recordings)
    assert {k: [r.identifier for r in v] for k, v in parts.items()} == {
        "test": ["test/a", "test/c"],
        "train": ["train/b"],
    }
    with pytest.raises(ValueError, match="'x' does not say"):
        official_split([recording("x", "x")])
