"""Stretches of time in one state: from a class per frame to changes worth marking."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StateSegment:
    """One stretch of time in one predicted state.

    Attributes:
        start: Seconds from the start of the recording.
        end: Seconds from the start of the recording.
        state: Index of the class.
    """

    start: float
    end: float
    state: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.start


def state_segments(
    times: NDArray[np.float64], states: NDArray[np.int64], shortest: float = 0.0
) -> list[StateSegment]:
    """Join equal neighbouring states into segments and dissolve those that are too short.

    The shortest segment below ``shortest`` seconds takes the state of its longer neighbour until
    none is left, so a flicker around the threshold does not count as a change.

    Args:
        times: Seconds, increasing, ``(frames,)``; each frame lasts until half-way to its
            neighbours.
        states: Class index of each frame, ``(frames,)``; -1 (unlabelled) ends a segment and is left
            out.
        shortest: Seconds a segment must last to be kept.

    Returns:
        The segments in order of time.

    Raises:
        ValueError: If ``times`` and ``states`` differ in length.
    """
    if len(times) != len(states):
        raise ValueError(f"states: {len(states)} entries for {len(times)} times")
    if len(times) == 0:
        return []
    edges = frame_edges(times)
    starts = np.flatnonzero(np.r_[True, states[1:] != states[:-1]])
    ends = np.r_[starts[1:], len(states)]
    runs = [
        StateSegment(float(edges[start]), float(edges[end]), int(states[start]))
        for start, end in zip(starts, ends, strict=True)
    ]
    while len(runs) > 1:
        index = min(range(len(runs)), key=lambda place: runs[place].seconds)
        if runs[index].seconds >= shortest:
            break
        neighbours = [runs[i] for i in (index - 1, index + 1) if 0 <= i < len(runs)]
        longer = max(neighbours, key=lambda run: run.seconds)
        runs[index] = dataclasses.replace(runs[index], state=longer.state)
        joined = runs[:1]
        for run in runs[1:]:
            if joined[-1].state == run.state:
                joined[-1] = dataclasses.replace(joined[-1], end=run.end)
            else:
                joined.append(run)
        runs = joined
    return [run for run in runs if run.state >= 0]


def frame_edges(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The borders between frames given by their times: ``(frames + 1,)`` seconds, never below 0."""
    if len(times) == 1:
        return np.array([max(0.0, times[0] - 0.5), times[0] + 0.5])
    middles = (times[1:] + times[:-1]) / 2
    first, last = times[0] - (middles[0] - times[0]), times[-1] + (times[-1] - middles[-1])
    return np.r_[max(0.0, first), middles, last]


def format_time(seconds: float) -> str:
    """Seconds as ``min:sec``, for example 754.2 as ``12:34``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"
