"""Steps from a recording to what a model is trained on; none changes what it is given.

All are plain dataclasses, so a configuration can name them:
``build_transform({"transform": "FrameStatistics", "seconds": 1.0})``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.frame_statistics import FrameStatistics
from mmer.data.label_transforms import AverageLabels, ThresholdValues, UnlabelledFrames
from mmer.data.recording import Recording, Stream
from mmer.data.transform_base import Transform, check_positive, frame_count

FLAT = 1e-7
NORMAL_MAD = 1.4826


def apply_transforms(
    recordings: Iterable[Recording], transforms: Iterable[Transform]
) -> list[Recording]:
    """Apply steps in order.

    Args:
        recordings: Recordings; left as they are.
        transforms: The steps.

    Returns:
        The changed recordings.
    """
    changed = list(recordings)
    for transform in transforms:
        changed = transform.apply(changed)
    return changed


def build_transform(description: Mapping[str, Any]) -> Transform:
    """Build a step from a description, for example of a configuration file.

    Args:
        description: ``transform``, one of :data:`TRANSFORMS`, and its arguments.

    Returns:
        The step.

    Raises:
        ValueError: If there is no such step, or it has no such argument, or a value is out of
            range.
    """
    arguments = dict(description)
    name = arguments.pop("transform", None)
    if name not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {name!r}")
    known = [field.name for field in dataclasses.fields(TRANSFORMS[name])]  # type: ignore[arg-type]
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return TRANSFORMS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


@dataclass(frozen=True)
class SelectStreams(Transform):
    """Keep some modalities.

    Attributes:
        streams: Names to keep, in this order; one that a recording lacks is left out.
    """

    streams: Sequence[str]

    def _changed(self, recording: Recording) -> Recording:
        kept = {name: recording.streams[name] for name in self.streams if name in recording.streams}
        if not kept:
            raise ValueError(
                f"SelectStreams: recording {recording.identifier!r} has none of "
                f"{', '.join(self.streams)}, only {', '.join(recording.streams)}"
            )
        return dataclasses.replace(recording, streams=kept)


@dataclass(frozen=True)
class SelectColumns(Transform):
    """Keep some features of some modalities.

    Attributes:
        columns: Columns to keep, in this order, by name of the stream; other streams are left
            alone.
    """

    columns: Mapping[str, Sequence[int]]

    def _changed(self, recording: Recording) -> Recording:
        def select(name: str, stream: Stream) -> Stream:
            columns = list(self.columns[name])
            if not columns or not all(0 <= column < stream.features for column in columns):
                raise ValueError(
                    f"SelectColumns: {name} has columns 0 .. {stream.features - 1}, got {columns}"
                )
            return _with_values(stream, stream.values[:, columns])

        return _change(recording, self.columns, select)


@dataclass(frozen=True)
class RenameStreams(Transform):
    """Give modalities other names.

    Attributes:
        names: New name by old name; other streams keep theirs.
    """

    names: Mapping[str, str]

    def _changed(self, recording: Recording) -> Recording:
        renamed = [self.names.get(name, name) for name in recording.streams]
        if len(set(renamed)) != len(renamed):
            raise ValueError(f"RenameStreams: two streams would have one name: {renamed}")
        streams = dict(zip(renamed, recording.streams.values(), strict=True))
        return dataclasses.replace(recording, streams=streams)


@dataclass(frozen=True)
class DeriveStream(Transform):
    """Compute a modality from another one, sample by sample.

    Operations: ``copy``; ``magnitude`` (length of the row as a vector); ``mean`` (of the row);
    ``log`` (natural, of at least ``floor``); ``signed_log`` (``sign(x) log(1 + |x|)``);
    ``derivative`` (per second); ``unwrap``, ``sine`` and ``cosine`` (of degrees); ``smooth`` (mean
    over ``seconds`` around each sample) and ``detrend`` (difference from it).

    Attributes:
        source: Name of the modality; a recording without it is left alone.
        operation: What to compute.
        name: Name of the result; by default it replaces its source.
        seconds: Length of the stretch for ``smooth`` and ``detrend``.
        floor: Smallest value whose logarithm is taken.
    """

    source: str
    operation: str
    name: str | None = None
    seconds: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(
                f"DeriveStream.operation must be one of {', '.join(OPERATIONS)}, "
                f"got {self.operation!r}"
            )
        for name in ("seconds", "floor"):
            check_positive(f"DeriveStream.{name}", getattr(self, name))

    def _changed(self, recording: Recording) -> Recording:
        if self.source not in recording.streams:
            return recording
        stream = recording.streams[self.source]
        values = OPERATIONS[self.operation](stream, self)
        derived = {self.name or self.source: _with_values(stream, values)}
        return dataclasses.replace(recording, streams={**recording.streams, **derived})


@dataclass(frozen=True)
class SampleEvents(Transform):
    """Make a regular modality of one whose samples are events, each holding until the next.

    Events are real ones; times before the first are masked.

    Attributes:
        source: Name of the modality; a recording without it is left alone.
        rate: Samples per second of the result, from the start to the end of the recording.
        name: Name of the result; by default it replaces its source.
        duration: The column with the seconds each event lasted until its time. Events then hold
            from their beginning, and the result has a first feature that is 1 during an event and 0
            between two. By default events begin at their time and there is no such feature.
    """

    source: str
    rate: float
    name: str | None = None
    duration: int | None = None

    def __post_init__(self) -> None:
        check_positive("SampleEvents.rate", self.rate)

    def _changed(self, recording: Recording) -> Recording:
        if self.source not in recording.streams:
            return recording
        stream = recording.streams[self.source]
        if self.duration is not None and not 0 <= self.duration < stream.features:
            raise ValueError(
                f"SampleEvents.duration: {self.source} has columns 0 .. {stream.features - 1}, "
                f"got {self.duration}"
            )
        events, ends = stream.values[stream.mask], stream.times[stream.mask]
        starts = ends if self.duration is None else ends - events[:, self.duration]
        order = np.argsort(starts, kind="stable")
        events, ends, starts = events[order], ends[order], starts[order]
        times = np.arange(frame_count(recording, 1 / self.rate)) / self.rate
        latest = np.searchsorted(starts, times + 1e-9, side="right") - 1
        begun = latest >= 0
        values = np.zeros((len(times), stream.features))
        values[begun] = events[latest[begun]]
        if self.duration is not None:
            during = np.zeros(len(times))
            during[begun] = times[begun] < ends[latest[begun]]
            values = np.column_stack([during, values])
        sampled = {self.name or self.source: Stream.regular(values, self.rate, mask=begun)}
        return dataclasses.replace(recording, streams={**recording.streams, **sampled})


@dataclass(frozen=True)
class JoinStreams(Transform):
    """Put the features of several modalities with the same times side by side.

    Attributes:
        sources: Names of the modalities, which are replaced. A recording with none of them is left
            alone; one with some but not others is refused.
        name: Name of the result. A step is real where all of them are.
    """

    sources: Sequence[str]
    name: str

    def _changed(self, recording: Recording) -> Recording:
        missing = [name for name in self.sources if name not in recording.streams]
        if len(missing) == len(self.sources):
            return recording
        if missing:
            raise ValueError(
                f"JoinStreams: recording {recording.identifier!r} lacks {', '.join(missing)}"
            )
        parts = [recording.streams[name] for name in self.sources]
        for name, part in zip(self.sources, parts, strict=True):
            if not np.array_equal(part.times, parts[0].times):
                raise ValueError(
                    f"JoinStreams: {name} has other times than {self.sources[0]} in recording "
                    f"{recording.identifier!r}"
                )
        joined = Stream(
            np.concatenate([part.values for part in parts], axis=1),
            parts[0].times,
            np.logical_and.reduce([part.mask for part in parts]),
            parts[0].rate,
        )
        others = {n: s for n, s in recording.streams.items() if n not in self.sources}
        return dataclasses.replace(recording, streams={**others, self.name: joined})


@dataclass(frozen=True)
class StandardizePerRecording(Transform):
    """Bring each feature of a recording to mean 0 and standard deviation 1 over its real samples.

    It uses no label, so it may be done to people who are tested on. A feature that never changes
    becomes 0.

    Attributes:
        streams: Names of the modalities; all by default.
        scale: Whether to divide by the standard deviation; False only subtracts the mean.
    """

    streams: Sequence[str] | None = None
    scale: bool = True

    def _changed(self, recording: Recording) -> Recording:
        return self.apply([recording])[0]

    def apply(self, recordings: Iterable[Recording]) -> list[Recording]:
        """Return the changed recordings."""
        return [_standardized([r], self.streams, self.scale)[0] for r in recordings]


@dataclass(frozen=True)
class StandardizePerSubject(Transform):
    """Bring each feature of a person to mean 0 and standard deviation 1 over all their recordings.

    It uses no label. What differs between a person's recordings stays, unlike with
    :class:`StandardizePerRecording`. One recording at a time is taken for all there is of its
    person.

    Attributes:
        streams: Names of the modalities; all by default.
        scale: Whether to divide by the standard deviation; False only subtracts the mean.
    """

    streams: Sequence[str] | None = None
    scale: bool = True

    def _changed(self, recording: Recording) -> Recording:
        return self.apply([recording])[0]

    def apply(self, recordings: Iterable[Recording]) -> list[Recording]:
        """Return the changed recordings."""
        recordings = list(recordings)
        changed: list[Recording | None] = [None] * len(recordings)
        for subject in dict.fromkeys(recording.subject for recording in recordings):
            places = [i for i, recording in enumerate(recordings) if recording.subject == subject]
            together = _standardized([recordings[i] for i in places], self.streams, self.scale)
            for place, recording in zip(places, together, strict=True):
                changed[place] = recording
        return [recording for recording in changed if recording is not None]


@dataclass(frozen=True)
class Standardize(Transform):
    """Subtract given means and divide by given deviations, for example those of the training set.

    Attributes:
        mean: What to subtract from each feature, by name of the stream; other streams are left
            alone.
        deviation: What to divide each feature by; a feature with 0 becomes 0.
    """

    mean: Mapping[str, Sequence[float]]
    deviation: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        if {n: len(v) for n, v in self.mean.items()} != {
            n: len(v) for n, v in self.deviation.items()
        }:
            raise ValueError(
                "Standardize.mean and deviation must have the same streams and features"
            )

    @classmethod
    def fit(
        cls, recordings: Sequence[Recording], streams: Sequence[str] | None = None
    ) -> Standardize:
        """Measure means and standard deviations over all real samples.

        Args:
            recordings: Training recordings.
            streams: Names of the modalities; all by default.

        Returns:
            The step.

        Raises:
            ValueError: If no recording has a modality that is named.
        """
        mean, deviation = {}, {}
        known = _stream_names(recordings)
        for name in known if streams is None else streams:
            if name not in known:
                raise ValueError(f"Standardize: no recording has {name}, only {', '.join(known)}")
            moments = _moments([r.streams[name] for r in recordings if name in r.streams])
            mean[name], deviation[name] = moments[0].tolist(), moments[1].tolist()
        return cls(mean, deviation)

    def _changed(self, recording: Recording) -> Recording:
        def change(name: str, stream: Stream) -> Stream:
            if len(self.mean[name]) != stream.features:
                raise ValueError(
                    f"Standardize.mean[{name!r}] has {len(self.mean[name])} numbers, "
                    f"but the stream has {stream.features} features"
                )
            return _scaled(stream, np.array(self.mean[name]), np.array(self.deviation[name]))

        return _change(recording, self.mean, change)


@dataclass(frozen=True)
class ClipOutliers(Transform):
    """Limit each feature to a few robust deviations from its median over the recording.

    The robust deviation is 1.4826 times the median distance from the median, which is the standard
    deviation if the feature is normally distributed; where it is 0 the standard deviation itself.

    Attributes:
        limit: Number of deviations.
        streams: Names of the modalities; all by default.
    """

    limit: float = 5.0
    streams: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_positive("ClipOutliers.limit", self.limit)

    def _changed(self, recording: Recording) -> Recording:
        def clip(name: str, stream: Stream) -> Stream:
            real = stream.values[stream.mask].astype(np.float64)
            if len(real) == 0:
                return stream
            middle = np.median(real, axis=0)
            deviation = NORMAL_MAD * np.median(np.abs(real - middle), axis=0)
            deviation = np.where(deviation > 0, deviation, real.std(axis=0))
            reach = self.limit * deviation
            return _with_values(stream, np.clip(stream.values, middle - reach, middle + reach))

        return _change(recording, self.streams, clip)


@dataclass(frozen=True)
class ClipValues(Transform):
    """Limit every feature to ``-limit .. limit``, for example after it was standardised.

    Attributes:
        limit: Largest absolute value.
        streams: Names of the modalities; all by default.
    """

    limit: float = 5.0
    streams: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_positive("ClipValues.limit", self.limit)

    def _changed(self, recording: Recording) -> Recording:
        return _change(
            recording,
            self.streams,
            lambda name, stream: _with_values(
                stream, np.clip(stream.values, -self.limit, self.limit)
            ),
        )


def _stream_names(recordings: Iterable[Recording]) -> list[str]:
    return list(dict.fromkeys(name for recording in recordings for name in recording.streams))


def _change(
    recording: Recording,
    names: Iterable[str] | None,
    change: Callable[[str, Stream], Stream],
) -> Recording:
    chosen = set(recording.streams if names is None else names)
    streams = {
        name: change(name, stream) if name in chosen else stream
        for name, stream in recording.streams.items()
    }
    return dataclasses.replace(recording, streams=streams)


def _with_values(stream: Stream, values: NDArray[Any]) -> Stream:
    return Stream(values, stream.times, stream.mask, stream.rate)


def _moments(streams: Sequence[Stream]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over the real samples; 0 if it is flat."""
    real = np.concatenate([stream.values[stream.mask] for stream in streams]).astype(np.float64)
    if len(real) == 0:
        return np.zeros(real.shape[1]), np.zeros(real.shape[1])
    mean, deviation = real.mean(axis=0), real.std(axis=0)
    # What rounding leaves of a constant is no signal.
    return mean, np.where(deviation > FLAT * np.abs(real).max(axis=0), deviation, 0.0)


def _scaled(stream: Stream, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> Stream:
    divisor = np.where(deviation > 0, deviation, 1.0)
    return _with_values(stream, np.where(deviation > 0, (stream.values - mean) / divisor, 0.0))


def _standardized(
    recordings: Sequence[Recording], names: Sequence[str] | None, scale: bool
) -> list[Recording]:
    """Standardise recordings by the moments they have together."""
    moments = {}
    for name in _stream_names(recordings) if names is None else names:
        streams = [r.streams[name] for r in recordings if name in r.streams]
        if streams:
            mean, deviation = _moments(streams)
            moments[name] = (mean, deviation if scale else np.sign(deviation))
    return [
        _change(recording, moments, lambda name, stream: _scaled(stream, *moments[name]))
        for recording in recordings
    ]


def _smooth(stream: Stream, settings: DeriveStream) -> NDArray[np.float64]:
    """Mean over the real samples within half of ``seconds`` on either side."""
    reach = settings.seconds / 2
    first = np.searchsorted(stream.times, stream.times - reach - 1e-9)
    last = np.searchsorted(stream.times, stream.times + reach + 1e-9, side="right")
    total = np.zeros((len(stream) + 1, stream.features))
    np.cumsum(stream.values, axis=0, out=total[1:], dtype=np.float64)
    count = np.concatenate([[0], np.cumsum(stream.mask)])
    real = np.maximum(count[last] - count[first], 1)
    return (total[last] - total[first]) / real[:, None]


def _derivative(stream: Stream, settings: DeriveStream) -> NDArray[np.float64]:
    """Central differences per second between real neighbours, one-sided at the ends."""
    change = np.zeros(stream.values.shape)
    real = np.flatnonzero(stream.mask)
    if len(real) > 1:
        before = np.r_[real[0], real[:-1]]
        after = np.r_[real[1:], real[-1]]
        step = stream.times[after] - stream.times[before]
        rise = stream.values[after].astype(np.float64) - stream.values[before]
        change[real] = np.divide(
            rise, step[:, None], out=np.zeros_like(rise), where=step[:, None] > 0
        )
    return change


def _unwrap(stream: Stream, settings: DeriveStream) -> NDArray[np.float64]:
    values = stream.values.astype(np.float64)
    values[stream.mask] = np.unwrap(values[stream.mask], period=360.0, axis=0)
    return values


OPERATIONS: dict[str, Callable[[Stream, DeriveStream], NDArray[Any]]] = {
    "copy": lambda stream, _: stream.values,
    "magnitude": lambda stream, _: np.linalg.norm(stream.values, axis=1, keepdims=True),
    "mean": lambda stream, _: stream.values.mean(axis=1, keepdims=True),
    "log": lambda stream, settings: np.log(np.maximum(stream.values, settings.floor)),
    "signed_log": lambda stream, _: np.sign(stream.values) * np.log1p(np.abs(stream.values)),
    "derivative": _derivative,
    "unwrap": _unwrap,
    "sine": lambda stream, _: np.sin(np.deg2rad(stream.values)),
    "cosine": lambda stream, _: np.cos(np.deg2rad(stream.values)),
    "smooth": _smooth,
    "detrend": lambda stream, settings: stream.values - _smooth(stream, settings),
}

TRANSFORMS: dict[str, type[Transform]] = {
    transform.__name__: transform
    for transform in (
        SelectStreams,
        SelectColumns,
        RenameStreams,
        DeriveStream,
        SampleEvents,
        JoinStreams,
        FrameStatistics,
        StandardizePerRecording,
        StandardizePerSubject,
        Standardize,
        ClipOutliers,
        ClipValues,
        AverageLabels,
        ThresholdValues,
        UnlabelledFrames,
    )
}
