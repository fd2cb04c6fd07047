"""Synthetic recordings like those of a wrist sensor, for tests and where there are no data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmer.data.recording import Labels, Recording, Stream

RATES = {"EDA": 4.0, "TEMP": 4.0, "BVP": 64.0, "ACC": 32.0}
CLASS_NAMES = ("rest", "stress")
SOURCE = "generated"
# Shortest and longest stretch in one state, in seconds.
STATE_SECONDS = (40.0, 160.0)
# Share of the stretches of stress that a modality does not answer, each on its own, and of the
# stretches of rest in which it answers something else: one alone must err where another need not.
SILENT_SHARE = 0.3
FALSE_SHARE = 0.2
# Seconds in which each modality answers, and comes back.
RESPONSE_SECONDS = {"EDA": 8.0, "TEMP": 30.0, "BVP": 5.0, "ACC": 3.0}

Array = NDArray[np.float64]


def generate_recordings(
    subjects: int = 20,
    seconds: float = 900.0,
    seed: int = 0,
    *,
    missing: bool = True,
) -> list[Recording]:
    """Generate recordings of people who change between rest and stress.

    The states change at random times that differ between people, so the elapsed time tells nothing.
    Every modality answers some of the changes and some of what is none, each in its own, so one
    alone is only partly right and several together are better. People differ in level, size and
    noise of their answers.

    Args:
        subjects: Number of people, one recording each.
        seconds: Length of a recording, at least 1.
        seed: Any integer of at least 0; the same seed gives the same recordings, and person n is
            the same however many there are.
        missing: Whether EDA of the second person is wholly masked, as if the electrode had no
            contact.

    Returns:
        Recordings with EDA and TEMP (4 Hz), BVP (64 Hz), ACC (32 Hz, 3 axes), a label in the middle
        of each second, and ``source`` "generated".

    Raises:
        ValueError: If a number is out of range.
    """
    if subjects < 1:
        raise ValueError(f"subjects must be at least 1, got {subjects}")
    if not 1 <= seconds < np.inf:
        raise ValueError(f"seconds must be at least 1, got {seconds}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return [_person(number, seconds, seed, missing and number == 1) for number in range(subjects)]


def _person(number: int, seconds: float, seed: int, without_eda: bool) -> Recording:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    borders, states = _stretches(rng, seconds)
    frame_times = np.arange(int(seconds), dtype=np.float64) + 0.5
    classes = states[np.searchsorted(borders, frame_times, side="right") - 1]
    streams = {}
    for name, make in (("EDA", _eda), ("TEMP", _temp), ("BVP", _bvp), ("ACC", _acc)):
        rate = RATES[name]
        times = np.arange(int(seconds * rate)) / rate
        drive = _answer(rng, times, rate, borders, states, RESPONSE_SECONDS[name])
        values = make(rng, times, rate, drive)
        mask = np.full(len(times), not (without_eda and name == "EDA"))
        streams[name] = Stream.regular(values, rate, mask=mask)
    name = f"G{number + 1:02d}"
    return Recording(
        identifier=name,
        subject=name,
        streams=streams,
        labels=Labels(classes=classes, times=frame_times),
        class_names=CLASS_NAMES,
        source=SOURCE,
    )


def _stretches(rng: np.random.Generator, seconds: float) -> tuple[Array, NDArray[np.int64]]:
    """Starts of the stretches, and the state in each."""
    # The first stretch began before the recording did, so its length is like that of any other.
    borders = [-float(rng.uniform(0, STATE_SECONDS[1]))]
    while borders[-1] < seconds:
        borders.append(borders[-1] + float(rng.uniform(*STATE_SECONDS)))
    states = (np.arange(len(borders)) + int(rng.integers(2))) % 2
    return np.array(borders), states


def _answer(
    rng: np.random.Generator,
    times: Array,
    rate: float,
    borders: Array,
    states: NDArray[np.int64],
    response: float,
) -> Array:
    """How strongly one modality answers over time, about 0 at rest and 1 under stress."""
    missed = rng.random(len(states)) < np.where(states == 1, SILENT_SHARE, FALSE_SHARE)
    strength = np.where(missed, 1 - states, states) * rng.uniform(0.7, 1.3, len(states))
    target = strength[np.searchsorted(borders, times, side="right") - 1]
    return _low_pass(target, response * rate, target[0] if len(target) else 0.0)


def _low_pass(values: Array, samples: float, first: float) -> Array:
    """Exponential smoothing over ``samples``, from ``first``."""
    keep = np.exp(-1.0 / samples)
    smooth = np.empty_like(values)
    last = first
    for index, value in enumerate(values):
        last = keep * last + (1 - keep) * value
        smooth[index] = last
    return smooth


def _wander(rng: np.random.Generator, times: Array, seconds: float) -> Array:
    """Slow drift with deviation 1: random values every ``seconds``, joined by straight lines."""
    knots = np.arange(0.0, (times[-1] if len(times) else 0.0) + 2 * seconds, seconds)
    return np.interp(times, knots, rng.standard_normal(len(knots)))


def _eda(rng: np.random.Generator, times: Array, rate: float, drive: Array) -> Array:
    """Skin conductance in microsiemens: a level, and responses, more often under stress."""
    onsets = rng.random(len(times)) < (0.03 + 0.12 * drive) / rate
    heights = np.where(onsets, rng.gamma(2.0, 0.15, len(times)), 0.0)
    decay = np.arange(0.0, 20.0, 1 / rate)
    shape = (np.exp(-decay / 4.0) - np.exp(-decay / 1.0)) / 0.47
    responses = np.convolve(heights, shape)[: len(times)]
    level = 1.5 + 0.25 * _wander(rng, times, 180.0) + 0.2 * drive
    noise = 0.01 * rng.standard_normal(len(times))
    return rng.uniform(0.4, 1.6) * np.maximum(level + responses + noise, 0.02)


def _temp(rng: np.random.Generator, times: Array, rate: float, drive: Array) -> Array:
    """Skin temperature in degrees Celsius: it falls a little under stress."""
    return (
        rng.uniform(31.0, 35.0)
        - rng.uniform(0.2, 0.5) * drive
        + 0.25 * _wander(rng, times, 150.0)
        + 0.02 * rng.standard_normal(len(times))
    )


def _bvp(rng: np.random.Generator, times: Array, rate: float, drive: Array) -> Array:
    """Blood volume pulse: it beats faster and smaller under stress, and moves with the breath."""
    breath = np.sin(2 * np.pi * np.cumsum(0.22 + 0.06 * drive) / rate)
    beats = rng.uniform(58.0, 75.0) + 11.0 * drive + 3.0 * breath + 4.0 * _wander(rng, times, 40.0)
    phase = 2 * np.pi * np.cumsum(beats / 60.0) / rate
    size = (
        rng.uniform(60.0, 140.0) * (1.0 - 0.25 * drive) * np.exp(0.15 * _wander(rng, times, 25.0))
    )
    pulse = np.sin(phase) + 0.4 * np.sin(2 * phase + 0.9)
    return size * pulse + 12.0 * rng.standard_normal(len(times))


def _acc(rng: np.random.Generator, times: Array, rate: float, drive: Array) -> Array:
    """Acceleration in 1/64 g: gravity along a slowly turning wrist, and fidgeting."""
    angles = 0.5 * np.stack([_wander(rng, times, 90.0), _wander(rng, times, 90.0)])
    gravity = 64.0 * np.stack(
        [np.cos(angles[0]) * np.cos(angles[1]), np.sin(angles[0]), np.sin(angles[1])], axis=1
    )
    gravity = gravity @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    fidget = np.exp(0.9 * drive + 0.5 * _wander(rng, times, 20.0) - 0.5)
    return gravity + fidget[:, None] * rng.standard_normal((len(times), 3))
