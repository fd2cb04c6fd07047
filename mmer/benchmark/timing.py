"""Time calls against each other: in one process, in turns, so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Seconds. Threads of the implementation before may spin for some milliseconds after their work.
_SETTLE = 0.005
_SHORT = 0.1
_MOST_ROUNDS, _ROUNDS, _FEWEST_ROUNDS = 25, 11, 3


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one implementation."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


def rounds_for(seconds: float, budget: float) -> int:
    """Return how often something is timed that takes so many seconds.

    Args:
        seconds: One call.
        budget: Seconds that all calls may take; calls below 0.1 s are timed 11 times in any case.
    """
    fewest = _ROUNDS if seconds < _SHORT else _FEWEST_ROUNDS
    return max(fewest, min(_MOST_ROUNDS, int(budget / max(seconds, 1e-9))))


def measure(
    calls: Mapping[str, Callable[[], Any]],
    *,
    budget: float = 1.0,
    device: str = "cpu",
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """Time calls in turns.

    Each round times every call once, in an order that changes. Before a call that is short it is
    made once without the clock, so that none meets the caches and threads that another has left.

    Args:
        calls: What to time; each has been called before.
        budget: Seconds for each of them; see :func:`rounds_for`.
        device: Where they run.
        progress: Called with the share that is done.

    Returns:
        The times of each.
    """
    # The lesser of two, lest something else that runs makes a short call look long.
    estimates = {name: min(_clock(call, device) for _ in range(2)) for name, call in calls.items()}
    rounds = {name: rounds_for(seconds, budget) for name, seconds in estimates.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    total = max(rounds.values(), default=0)
    for number in range(total):
        start = number % len(names)
        order = names[start:] + names[:start]
        for name in order if number % 2 else reversed(order):
            if number >= rounds[name]:
                continue
            if estimates[name] < _SHORT:
                time.sleep(_SETTLE)
                calls[name]()
            times[name].append(_clock(calls[name], device))
        progress((number + 1) / total)
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


def synchronize(device: str) -> None:
    """Wait for a device that works on its own."""
    if device != "cpu":
        torch.accelerator.synchronize()


def _clock(call: Callable[[], Any], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    results = call()
    synchronize(device)
    seconds = time.perf_counter() - start
    del results
    return seconds
