"""Small recordings for the tests of the data package."""

from __future__ import annotations

import numpy as np

from mmer.data import Labels, Recording, Stream


def make_recording(
    identifier: str = "r",
    *,
    seconds: int = 20,
    subject: str | None = None,
    group: str = "",
    seed: int = 0,
    labels: bool = True,
) -> Recording:
    """A recording with a fast, a slow and an irregular stream and a label in each second."""
    rng = np.random.default_rng(seed)
    events = np.sort(rng.uniform(0, seconds, 7))
    return Recording(
        identifier=identifier,
        subject=subject or identifier,
        group=group,
        streams={
            "fast": Stream.regular(rng.standard_normal((seconds * 8, 2)), 8.0),
            "slow": Stream.regular(rng.standard_normal(seconds // 2), 0.5),
            "event": Stream.at(rng.standard_normal((len(events), 3)), events),
        },
        labels=Labels(
            classes=rng.integers(0, 3, seconds),
            values=rng.standard_normal((seconds, 2)),
            times=np.arange(seconds) + 0.5,
        )
        if labels
        else None,
        class_names=("a", "b", "c"),
        value_names=("v", "w"),
    )
