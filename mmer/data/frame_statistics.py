"""Frame statistics: the frozen feature extractor of physiological signals."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmer.data.frames import GATHERED, SPECTRAL, SUMMED, Array, Frames, RunningSums
from mmer.data.recording import Recording, Stream
from mmer.data.transform_base import Transform, check_positive, frame_count

NAMES = (*SUMMED, *GATHERED, *SPECTRAL)
DEFAULT_STATISTICS = ("mean", "deviation", "slope", "minimum", "maximum")
# Samples gathered at once; bounds the memory of long windows.
BLOCK = 1 << 20
SYNTAX = re.compile(
    r"(?P<log>log_)?(?P<name>[a-z_]+)"
    r"(:(?P<low>\d+(\.\d*)?|\.\d+)-(?P<high>\d+(\.\d*)?|\.\d+))?"
    r"(@(?P<window>\d+(\.\d*)?|\.\d+))?"
)


class Statistic(NamedTuple):
    """One parsed statistic, see :class:`FrameStatistics`."""

    name: str
    log: bool
    low: float | None
    high: float | None
    window: float | None


@dataclass(frozen=True)
class FrameStatistics(Transform):
    """Replace streams by statistics of their samples in frames of equal length.

    Frame k describes ``k * seconds <= time < (k + 1) * seconds`` and is placed in the middle of it,
    so the result has a rate of ``1 / seconds`` and the frames of all streams of a recording
    coincide. Only real samples count; a frame is real if each of its windows holds at least one.

    A statistic is written ``NAME``, ``NAME@WINDOW`` or, for spectra, ``NAME:LOW-HIGH@WINDOW``:

    * ``NAME`` is one of mean, deviation (standard), slope (least squares, per second), minimum,
      maximum, range, energy (root mean square), change (mean absolute change per second between
      neighbours) and count (of samples, per second); or a spectral one: power (mean square within a
      band, of the signal without its mean), share (that of the whole band, 0 to 1), rhythm (the
      strongest frequency within it, in Hz) and rhythm_share (how much of the whole lies at it).
      ``log_`` in front takes the natural logarithm of the statistic plus ``log_floor``.
    * ``LOW-HIGH`` is the band in Hz. Spectra are taken of regular streams, with a Hann window.
    * ``WINDOW`` is the length in seconds of the stretch that is described, centred on the frame, or
      ending with it if ``causal``. By default it is the frame itself.

    Attributes:
        seconds: Length of a frame.
        statistics: What to compute, for all streams or by name of the stream; streams that are not
            named are left alone.
        causal: Whether windows look back only.
        log_floor: Added before logarithms, in the units of the statistic.
    """

    seconds: float = 1.0
    statistics: Sequence[str] | Mapping[str, Sequence[str]] = DEFAULT_STATISTICS
    causal: bool = False
    log_floor: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("seconds", "log_floor"):
            check_positive(f"FrameStatistics.{name}", getattr(self, name))
        for statistics in self._lists():
            if isinstance(statistics, str) or not statistics:
                raise ValueError(
                    f"FrameStatistics.statistics must be names of statistics, got {statistics!r}"
                )
            for text in statistics:
                parse_statistic(text)

    def _changed(self, recording: Recording) -> Recording:
        count = frame_count(recording, self.seconds)
        streams = {}
        for name, stream in recording.streams.items():
            statistics = self._of(name)
            try:
                streams[name] = self._frames(stream, statistics, count) if statistics else stream
            except ValueError as error:
                raise ValueError(
                    f"FrameStatistics of {name} in recording {recording.identifier!r}: {error}"
                ) from error
        return dataclasses.replace(recording, streams=streams)

    def feature_names(self, stream: str, features: int = 1) -> list[str]:
        """Name the columns of a result.

        Args:
            stream: Name of the stream.
            features: Number of its features.

        Returns:
            The statistics in order, each for all features: "mean", or "mean[0]", "mean[1]", ...
        """
        statistics = self._of(stream)
        if features == 1:
            return list(statistics)
        return [f"{text}[{column}]" for text in statistics for column in range(features)]

    def _lists(self) -> list[Sequence[str]]:
        if isinstance(self.statistics, Mapping):
            return list(self.statistics.values())
        return [self.statistics]

    def _of(self, name: str) -> Sequence[str]:
        if isinstance(self.statistics, Mapping):
            return self.statistics.get(name, ())
        return self.statistics

    def _frames(self, stream: Stream, statistics: Sequence[str], count: int) -> Stream:
        parsed = [parse_statistic(text) for text in statistics]
        features = stream.features
        values = np.zeros((count, len(parsed), features))
        mask = np.ones(count, dtype=bool)
        running = RunningSums(stream)
        for window in dict.fromkeys(statistic.window or self.seconds for statistic in parsed):
            first, last = self._borders(stream, window, count)
            sums = running.between(first, last)
            mask &= sums.count[:, 0] > 0
            gathered = []
            for column, statistic in enumerate(parsed):
                if (statistic.window or self.seconds) != window:
                    continue
                if statistic.name in SUMMED:
                    values[:, column] = SUMMED[statistic.name](sums, window)
                else:
                    gathered.append((column, statistic))
            if not gathered:
                continue
            samples = max(1, int((last - first).max(initial=0)))
            rows = max(1, BLOCK // (samples * features))
            for start in range(0, count, rows):
                block = slice(start, start + rows)
                frames = Frames(stream, first[block], last[block], samples)
                for column, statistic in gathered:
                    values[block, column] = _compute(statistic, frames)
        for column, statistic in enumerate(parsed):
            if statistic.log:
                values[:, column] = np.log(np.maximum(values[:, column], 0.0) + self.log_floor)
        return Stream.regular(
            values.reshape(count, -1), 1.0 / self.seconds, start=self.seconds / 2, mask=mask
        )

    def _borders(
        self, stream: Stream, window: float, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First sample of each window, and the first after it."""
        ends = (np.arange(count) + 1) * self.seconds
        if not self.causal:
            ends = ends + (window - self.seconds) / 2
        # A sample at a border belongs to the later window, whatever rounding made of it.
        borders = np.stack([ends - window, ends]) - 1e-6
        first, last = np.searchsorted(stream.times, borders)
        return first, last


def parse_statistic(text: str) -> Statistic:
    """Read a statistic as it is written for :class:`FrameStatistics`.

    Args:
        text: For example "mean", "slope@15" or "log_power:0.5-4@8".

    Returns:
        Its parts.

    Raises:
        ValueError: If it is no statistic, or a band or window is missing, superfluous or empty.
    """
    parsed = SYNTAX.fullmatch(text) if isinstance(text, str) else None
    name = parsed["name"] if parsed else ""
    if parsed is None or name not in NAMES:
        raise ValueError(
            f"statistic must be NAME, NAME@WINDOW or NAME:LOW-HIGH@WINDOW with NAME one of "
            f"{', '.join(NAMES)}, got {text!r}"
        )
    low, high, window = (
        None if parsed[part] is None else float(parsed[part]) for part in ("low", "high", "window")
    )
    if (low is not None) != (name in SPECTRAL):
        raise ValueError(f"statistic {text!r}: {name} has {'a' if name in SPECTRAL else 'no'} band")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"statistic {text!r}: the band must go from low to high")
    if window is not None and not window > 0:
        raise ValueError(f"statistic {text!r}: the window must be above 0 seconds")
    return Statistic(name, parsed["log"] is not None, low, high, window)


def _compute(statistic: Statistic, frames: Frames) -> Array:
    if statistic.name in GATHERED:
        return GATHERED[statistic.name](frames)
    assert statistic.low is not None
    assert statistic.high is not None
    return SPECTRAL[statistic.name](frames, statistic.low, statistic.high)
