"""One recording: streams with their own rates, times and masks, and labels over time or one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A regular stream may stray this share of a sample from its rate (rounded timestamps do).
RATE_TOLERANCE = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """Samples of one modality over time.

    The arrays are read-only views: a change makes a new stream. Samples whose mask is False hold 0,
    whatever was given for them.

    Attributes:
        values: float32 ``(time, features)``, finite.
        times: float64 ``(time,)``, seconds from the recording's start, never decreasing or
            negative. A sample that describes a stretch of time is placed where the stretch begins
            or in its middle, as its reader says.
        mask: bool ``(time,)``, True = real.
        rate: Samples per second; None if the stream is irregular.
    """

    values: NDArray[np.float32]
    times: NDArray[np.float64]
    mask: NDArray[np.bool_]
    rate: float | None = None

    def __post_init__(self) -> None:
        values = _numbers("Stream.values", self.values, np.float64, "(time, features)", 2)
        times = _numbers("Stream.times", self.times, np.float64, "(time,)", 1).astype(np.float64)
        mask = np.asarray(self.mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"Stream.mask must be bool, got {mask.dtype}")
        if mask.ndim != 1 or not len(mask) == len(times) == len(values):
            raise ValueError(
                "Stream.values, times and mask must have one length, got shapes "
                f"{values.shape}, {times.shape} and {mask.shape}"
            )
        if values.shape[1] < 1:
            raise ValueError(f"Stream.values needs at least one feature, got shape {values.shape}")
        if not mask.all():
            values = np.where(mask[:, None], values, 0)
        values = _float32("Stream.values", values)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"Stream.values must be finite where the mask is True, got {values[row, column]} "
                f"at time {row}, feature {column}"
            )
        _check_times("Stream.times", times, strictly=False)
        if self.rate is not None:
            object.__setattr__(self, "rate", _rate("Stream.rate", self.rate))
            _check_regular(times, float(self.rate))
        object.__setattr__(self, "values", _read_only(values))
        object.__setattr__(self, "times", _read_only(times))
        object.__setattr__(self, "mask", _read_only(mask))

    @classmethod
    def regular(
        cls, values: ArrayLike, rate: float, *, start: float = 0.0, mask: ArrayLike | None = None
    ) -> Stream:
        """Build a stream whose sample k was taken at ``start + k / rate``.

        Args:
            values: ``(time, features)``, or ``(time,)`` for a single feature.
            rate: Samples per second.
            start: Seconds of the first sample.
            mask: bool ``(time,)``, True = real; all real by default.

        Returns:
            The stream.

        Raises:
            TypeError: If an argument is not numeric, or the mask not bool.
            ValueError: If the rate is not positive, shapes disagree, or a real value is not finite.
        """
        rate = _rate("rate", rate)
        columns = _columns(values)
        return cls(columns, start + np.arange(len(columns)) / rate, _mask(mask, columns), rate)

    @classmethod
    def at(cls, values: ArrayLike, times: ArrayLike, *, mask: ArrayLike | None = None) -> Stream:
        """Build an irregular stream from samples and their times.

        Args:
            values: ``(time, features)``, or ``(time,)`` for a single feature.
            times: Seconds from the recording's start, ``(time,)``, never decreasing.
            mask: bool ``(time,)``, True = real; all real by default.

        Returns:
            The stream, without a rate.

        Raises:
            TypeError: If an argument is not numeric, or the mask not bool.
            ValueError: If shapes disagree, times decrease, or a real value is not finite.
        """
        columns = _columns(values)
        return cls(columns, np.asarray(times), _mask(mask, columns))

    @property
    def features(self) -> int:
        """Number of columns."""
        return self.values.shape[1]

    @property
    def present(self) -> bool:
        """Whether any sample is real."""
        return bool(self.mask.any())

    @property
    def end(self) -> float:
        """Seconds at which the stream ends: one period after the last sample.

        Where samples stand in the middle of their period, half a period after it; where there is no
        rate, just after it.
        """
        if len(self.times) == 0:
            return 0.0
        last = float(self.times[-1])
        if self.rate is None:
            return float(np.nextafter(last, np.inf))
        in_the_middle = abs(float(self.times[0]) * self.rate % 1.0 - 0.5) < 1e-6
        return last + (0.5 if in_the_middle else 1.0) / self.rate

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        rate = "irregular" if self.rate is None else f"{self.rate:g} Hz"
        masked = "" if self.mask.all() else f", {int((~self.mask).sum())} masked"
        return f"Stream({len(self)} x {self.features}, {rate}{masked})"


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """What is known of a recording, per frame or once for all of it.

    Attributes:
        classes: int64 ``(frames,)``, -1 = unlabelled; None if there are no classes.
        values: float32 ``(frames, targets)``, NaN = unlabelled; None if there are no values.
        times: float64 ``(frames,)``, seconds from the recording's start, increasing; None if there
            is one label for the whole recording (then ``frames`` is 1).
    """

    classes: NDArray[np.int64] | None = None
    values: NDArray[np.float32] | None = None
    times: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.classes is None and self.values is None:
            raise ValueError("Labels need classes, values or both, got neither")
        lengths = {}
        if self.classes is not None:
            classes = np.asarray(self.classes)
            if classes.dtype.kind not in "iu":
                raise TypeError(f"Labels.classes must be integers, got {classes.dtype}")
            if classes.ndim != 1:
                raise ValueError(f"Labels.classes must be (frames,), got shape {classes.shape}")
            if classes.size and classes.min() < -1:
                raise ValueError(f"Labels.classes must be -1 or more, got {classes.min()}")
            lengths["classes"] = len(classes)
            object.__setattr__(self, "classes", _read_only(classes.astype(np.int64, copy=False)))
        if self.values is not None:
            values = _numbers("Labels.values", self.values, np.float64, "(frames, targets)", 2)
            values = _float32("Labels.values", values)
            if np.isinf(values).any():
                raise ValueError("Labels.values must be finite or NaN (unlabelled), got infinity")
            lengths["values"] = len(values)
            object.__setattr__(self, "values", _read_only(values))
        if self.times is not None:
            times = _numbers("Labels.times", self.times, np.float64, "(frames,)", 1)
            times = times.astype(np.float64)
            _check_times("Labels.times", times, strictly=True)
            lengths["times"] = len(times)
            object.__setattr__(self, "times", _read_only(times))
        elif any(length != 1 for length in lengths.values()):
            raise ValueError(
                "Labels.times may be None only for one label per recording, "
                f"got {max(lengths.values())} frames"
            )
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Labels must have one length, got {lengths}")

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether anything is known of a frame: bool ``(frames,)``."""
        known = np.zeros(len(self), dtype=bool)
        if self.classes is not None:
            known |= self.classes >= 0
        if self.values is not None:
            known |= ~np.isnan(self.values).all(axis=1)
        return known

    @property
    def end(self) -> float:
        """Seconds at which the labels end: half a frame after the last one."""
        if self.times is None or len(self.times) == 0:
            return 0.0
        last = float(self.times[-1])
        if len(self.times) == 1:
            return float(np.nextafter(last, np.inf))
        return last + 0.5 * float(np.median(np.diff(self.times)))

    def __len__(self) -> int:
        known = self.classes if self.classes is not None else self.values
        assert known is not None
        return len(known)

    def __repr__(self) -> str:
        parts = [] if self.classes is None else ["classes"]
        parts += [] if self.values is None else [f"{self.values.shape[1]} values"]
        frames = "one for the recording" if self.times is None else f"{len(self)} frames"
        return f"Labels({frames}, {' and '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """Everything recorded of one person at one time.

    Attributes:
        identifier: Name of the recording, unlike that of any other in its data set. A data set
            published with a split keeps it as the part before the first slash
            ("train/1DmNV9C1hbY").
        subject: The person, so that no person is on both sides of a split.
        group: The video or other stimulus, "" if there is none.
        streams: Modalities by name; one that is missing is absent or wholly masked.
        labels: What is known, None if nothing is.
        class_names: One name per class, in order; () if there are no classes.
        value_names: One name per column of the label values; () if there are none.
        source: The file it was read from, "generated" for synthetic recordings.
    """

    identifier: str
    subject: str
    group: str = ""
    streams: dict[str, Stream] = field(default_factory=dict)
    labels: Labels | None = None
    class_names: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("identifier", "subject", "group", "source"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"Recording.{name} must be a string, got {type(text).__name__}")
            if name != "source" and not text.isprintable():
                raise ValueError(f"Recording.{name} must be printable, got {text!r}")
        for name in ("identifier", "subject"):
            if not getattr(self, name):
                raise ValueError(f"Recording.{name} must not be empty")
        object.__setattr__(self, "streams", self._checked_streams())
        if self.labels is not None and not isinstance(self.labels, Labels):
            raise TypeError(f"Recording.labels must be Labels, got {type(self.labels).__name__}")
        for name in ("class_names", "value_names"):
            object.__setattr__(self, name, _names(f"Recording.{name}", getattr(self, name)))
        self._check_names_fit()

    def _checked_streams(self) -> dict[str, Stream]:
        if not isinstance(self.streams, Mapping):
            raise TypeError(
                f"Recording.streams must be a mapping, got {type(self.streams).__name__}"
            )
        if not self.streams:
            raise ValueError("Recording.streams needs at least one stream, got none")
        for name, stream in self.streams.items():
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ValueError(
                    f"Recording.streams must have printable names that are not empty, got {name!r}"
                )
            if not isinstance(stream, Stream):
                raise TypeError(
                    f"Recording.streams[{name!r}] must be a Stream, got {type(stream).__name__}"
                )
        return dict(self.streams)

    def _check_names_fit(self) -> None:
        if self.labels is None:
            return
        classes, values = self.labels.classes, self.labels.values
        if classes is not None and self.class_names:
            largest = int(classes.max(initial=-1))
            if largest >= len(self.class_names):
                raise ValueError(
                    f"Recording.labels holds class {largest}, "
                    f"but class_names has {len(self.class_names)} names"
                )
        if values is not None and self.value_names and values.shape[1] != len(self.value_names):
            raise ValueError(
                f"Recording.labels has {values.shape[1]} values per frame, "
                f"but value_names has {len(self.value_names)} names"
            )

    @property
    def duration(self) -> float:
        """Seconds from the start to the end of the longest stream, or of the labels if later."""
        ends = [stream.end for stream in self.streams.values()]
        if self.labels is not None:
            ends.append(self.labels.end)
        return max(ends)

    def __repr__(self) -> str:
        streams = ", ".join(f"{name}: {stream!r}" for name, stream in self.streams.items())
        group = f", group={self.group!r}" if self.group else ""
        return (
            f"Recording({self.identifier!r}, subject={self.subject!r}{group}, "
            f"{self.duration:.1f} s, {{{streams}}}, {self.labels!r})"
        )


def _numbers(name: str, array: Any, dtype: type, shape: str, dimensions: int) -> NDArray[Any]:
    """Check that an array holds real numbers in the dimensions wanted; make them floating."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be numbers, got {array.dtype}")
    if array.ndim != dimensions:
        raise ValueError(f"{name} must be {shape}, got shape {array.shape}")
    return array if array.dtype.kind == "f" else array.astype(dtype)


def _float32(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if narrow is not values and (np.isinf(narrow) & np.isfinite(values)).any():
        raise ValueError(f"{name} holds a number too large for float32")
    return narrow


def _columns(values: ArrayLike) -> NDArray[Any]:
    columns = np.asarray(values)
    return columns[:, None] if columns.ndim == 1 else columns


def _mask(mask: ArrayLike | None, columns: NDArray[Any]) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(len(columns) if columns.ndim else 0, dtype=bool)
    return np.asarray(mask)


def _rate(name: str, rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number of samples per second, got {rate!r}")
    if not np.isfinite(rate) or rate <= 0:
        raise ValueError(f"{name} must be above 0 and finite, got {rate}")
    return float(rate)


def _check_times(name: str, times: NDArray[Any], *, strictly: bool) -> None:
    if not np.isfinite(times).all():
        raise ValueError(f"{name} must be finite seconds, got {times[~np.isfinite(times)][0]}")
    if len(times) and times[0] < 0:
        raise ValueError(f"{name} must be seconds from the recording's start, got {times[0]}")
    steps = np.diff(times)
    wrong = np.flatnonzero(steps <= 0 if strictly else steps < 0)
    if len(wrong):
        where = int(wrong[0])
        wanted = "increase" if strictly else "never decrease"
        raise ValueError(
            f"{name} must {wanted}, got {times[where]} then {times[where + 1]} at {where}"
        )


def _check_regular(times: NDArray[np.float64], rate: float) -> None:
    if len(times) < 2:
        return
    stray = np.abs(times - (times[0] + np.arange(len(times)) / rate)) * rate
    if stray.max() > RATE_TOLERANCE:
        measured = (len(times) - 1) / max(float(times[-1] - times[0]), 1e-12)
        raise ValueError(
            f"Stream.rate is {rate:g} Hz, but the times are those of {measured:g} Hz "
            f"or irregular (then the rate is None)"
        )


def _names(field_name: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{field_name} must be names, got {names!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"{field_name} must all differ, got {tuple(names)}")
    return tuple(str(name) for name in names)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
