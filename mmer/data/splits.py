"""Splits that keep a person, a video, or both on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmer.data.recording import Recording

Key = Literal["subject", "group", "both"]
KEYS: dict[str, tuple[str, ...]] = {
    "subject": ("subject",),
    "group": ("group",),
    "both": ("subject", "group"),
}


def assign_folds(
    names: Sequence[str], folds: int, weights: Sequence[float] | None = None
) -> NDArray[np.int64]:
    """Spread groups over folds of equal weight, as ``sklearn.model_selection.GroupKFold`` does.

    Groups are numbered by their first appearance. The heaviest goes first (of equals the last one),
    each to the lightest fold so far (of equals the first one).

    Args:
        names: The group of each item.
        folds: Number of folds.
        weights: Weight of each item; 1 by default, so that folds have equally many items.

    Returns:
        The fold of each item, int64 ``(items,)``.

    Raises:
        ValueError: If there are fewer than two folds, or fewer groups than folds.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(numbers) < folds:
        raise ValueError(f"folds must be at most the {len(numbers)} groups there are, got {folds}")
    group = np.array([numbers[name] for name in names])
    weight = np.bincount(group, weights=weights)
    filled = np.zeros(folds)
    fold_of_group = np.zeros(len(numbers), dtype=np.int64)
    for number in np.argsort(weight, kind="stable")[::-1]:
        lightest = int(np.argmin(filled))
        filled[lightest] += weight[number]
        fold_of_group[number] = lightest
    return fold_of_group[group]


def split_by(
    recordings: Sequence[Recording],
    key: Key = "subject",
    folds: int = 5,
    fold: int = 0,
    *,
    balance: Literal["recordings", "frames"] = "recordings",
) -> tuple[list[Recording], list[Recording]]:
    """Split into training and test recordings for one fold of a grouped cross-validation.

    Args:
        recordings: All recordings.
        key: What is never on both sides: "subject", "group" (the video or stimulus), or "both".
            With "both" the test recordings are those of the fold's subjects *and* videos, training
            has neither, and recordings of one but not the other are left out; then there are
            ``folds * folds`` folds, number ``subject_fold * folds + video_fold``.
        folds: Number of folds (of subjects and of videos each with "both").
        fold: Which fold to test on, counted from 0.
        balance: Whether folds get equally many recordings, or equally many labelled frames.

    Returns:
        Training and test recordings, in their order. The folds are those of
        ``sklearn.model_selection.GroupKFold`` with subjects (videos) numbered by first appearance,
        on the recordings or, with ``balance="frames"``, on the labelled frames.

    Raises:
        ValueError: If an argument is out of range, a recording has no group, or a side would be
            empty.
    """
    if key not in KEYS:
        raise ValueError(f"key must be one of {', '.join(KEYS)}, got {key!r}")
    if balance not in ("recordings", "frames"):
        raise ValueError(f"balance must be recordings or frames, got {balance!r}")
    parts = KEYS[key]
    total = folds ** len(parts)
    if not 0 <= fold < total:
        raise ValueError(f"fold must be 0 .. {total - 1}, got {fold}")
    weights = None
    if balance == "frames":
        weights = [0 if r.labels is None else int(r.labels.labelled.sum()) for r in recordings]
    wanted = (fold,) if len(parts) == 1 else divmod(fold, folds)
    inside = np.ones(len(recordings), dtype=bool)
    outside = np.ones(len(recordings), dtype=bool)
    for part, number in zip(parts, wanted, strict=True):
        names = [_name(recording, part) for recording in recordings]
        held_out = assign_folds(names, folds, weights) == number
        inside &= held_out
        outside &= ~held_out
    train = [recording for recording, taken in zip(recordings, outside, strict=True) if taken]
    test = [recording for recording, taken in zip(recordings, inside, strict=True) if taken]
    if not train or not test:
        raise ValueError(
            f"fold {fold} of {total} by {key} leaves {len(train)} recordings to train on and "
            f"{len(test)} to test on"
        )
    check_no_leak(train, test, key)
    return train, test


def check_no_leak(
    train: Sequence[Recording], test: Sequence[Recording], key: Key = "subject"
) -> None:
    """Make sure that nobody (and nothing) is on both sides.

    Args:
        train: Training recordings.
        test: Test recordings.
        key: "subject", "group", or "both".

    Raises:
        ValueError: If a subject (or group) or a recording is on both sides; it names them.
    """
    for part in ("identifier", *KEYS[key]):
        both = {_name(r, part) for r in train} & {_name(r, part) for r in test}
        if both:
            raise ValueError(f"{part} on both sides of the split: {', '.join(sorted(both))}")


def official_split(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Take apart a data set that was published with a split.

    Args:
        recordings: Recordings whose identifiers start with the name of their part and a slash, as
            the readers of such data sets make them.

    Returns:
        The recordings of each part ("train", "valid", "test"), in order of first appearance.

    Raises:
        ValueError: If an identifier has no such start.
    """
    parts: dict[str, list[Recording]] = {}
    for recording in recordings:
        part, slash, _ = recording.identifier.partition("/")
        if not slash:
            raise ValueError(f"{recording.identifier!r} does not say which part it belongs to")
        parts.setdefault(part, []).append(recording)
    return parts


def _name(recording: Recording, part: str) -> str:
    name: str = getattr(recording, part)
    if not name:
        raise ValueError(f"recording {recording.identifier!r} has no {part} to split by")
    return name
