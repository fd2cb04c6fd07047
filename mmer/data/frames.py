"""Statistics of many overlapping stretches of a stream at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmer.data.recording import Stream

Array = NDArray[np.float64]
Places = NDArray[np.int64]

TINY = 1e-20


class RunningSums:
    """Sums over the real samples from the start of a stream, whose differences are those of frames.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Stream) -> None:
        mask = stream.mask
        values = stream.values.astype(np.float64)
        # Squares of what is near 0 keep the digits that the variance is made of.
        self.centre = values[mask].mean(axis=0) if stream.present else np.zeros(stream.features)
        values = np.where(mask[:, None], values - self.centre, 0.0)
        self.count = _running(mask[:, None].astype(np.float64))
        self.total = _running(values)
        self.squares = _running(np.square(values))
        step = np.diff(stream.times)
        both = mask[1:] & mask[:-1] & (step > 0)
        speed = np.abs(np.diff(values, axis=0)) / np.where(both, step, 1.0)[:, None]
        self.speeds = _running(np.where(both[:, None], speed, 0.0))
        self.pairs = _running(both[:, None].astype(np.float64))

    def between(self, first: Places, last: Places) -> Sums:
        """Return the sums over frames.

        Args:
            first: First sample of each frame.
            last: The one after the last of each frame.
        """
        return Sums(self, first, last)


class Sums:
    """Sums over the real samples of each frame, and what follows from them: ``(frames, features)``.

    Args:
        running: Sums from the start of the stream.
        first: First sample of each frame.
        last: The one after the last of each frame.
    """

    def __init__(self, running: RunningSums, first: Places, last: Places) -> None:
        self.count = running.count[last] - running.count[first]
        count = np.maximum(self.count, 1.0)
        offset = (running.total[last] - running.total[first]) / count
        squares = (running.squares[last] - running.squares[first]) / count
        self.mean = offset + running.centre
        self.variance = np.maximum(squares - np.square(offset), 0.0)
        # The pairs of neighbours within a frame begin at all of its samples but the last.
        end = np.maximum(last - 1, first)
        end = np.minimum(end, len(running.pairs) - 1)
        begin = np.minimum(first, end)
        pairs = np.maximum(running.pairs[end] - running.pairs[begin], 1.0)
        self.speed = (running.speeds[end] - running.speeds[begin]) / pairs


class Frames:
    """The samples of a block of frames, padded to one length; what is computed from them is kept.

    Args:
        stream: Where the samples are from.
        first: First sample of each frame.
        last: The one after the last of each frame.
        samples: Length to pad to, at least 1.
    """

    def __init__(
        self,
        stream: Stream,
        first: Places,
        last: Places,
        samples: int,
    ) -> None:
        index = first[:, None] + np.arange(samples)
        inside = index < last[:, None]
        self._stream = stream
        self._index = np.where(inside, index, 0)
        self.samples = samples
        self.rate = stream.rate
        # A stream without a sample has nothing to look up.
        self.real = inside & stream.mask[self._index] if len(stream) else inside
        self.count = np.maximum(self.real.sum(axis=1), 1).astype(np.float64)[:, None]

    @cached_property
    def values(self) -> Array:
        """Samples, 0 where not real: ``(frames, samples, features)``."""
        if len(self._stream) == 0:
            return np.zeros((*self._index.shape, self._stream.features))
        values = self._stream.values[self._index].astype(np.float64)
        values[~self.real] = 0.0
        return values

    @cached_property
    def times(self) -> Array:
        """Seconds from the recording's start, 0 where not real: ``(frames, samples)``."""
        if len(self._stream) == 0:
            return np.zeros(self._index.shape)
        return np.where(self.real, self._stream.times[self._index], 0.0)

    @cached_property
    def mean(self) -> Array:
        """Mean of each frame: ``(frames, features)``."""
        return np.asarray(self.values.sum(axis=1) / self.count)

    @cached_property
    def centred(self) -> Array:
        """Samples less the mean of their frame, 0 where not real."""
        centred = self.values - self.mean[:, None]
        centred[~self.real] = 0.0
        return centred

    @cached_property
    def spectrum(self) -> NDArray[np.float32]:
        """Parts of the variance by frequency: ``(frames, frequencies, features)``."""
        length = 2 * (len(self.frequencies) - 1)
        # A Hann window that does not vanish at its ends, so that even one sample has a weight.
        taper = np.sin(np.pi * (np.arange(self.samples) + 0.5) / self.samples) ** 2
        weight = self.real * taper
        total = np.maximum(weight.sum(axis=1), TINY)[:, None]
        # Without the mean that the taper sees, nothing of it leaks into the lowest frequencies.
        centre = np.einsum("ft,ftc->fc", weight, self.values) / total
        tapered = ((self.values - centre[:, None]) * weight[..., None]).astype(np.float32)
        waves = np.fft.rfft(tapered, length, axis=1)
        power = np.square(waves.real) + np.square(waves.imag)
        power[:, 1:-1] *= 2
        norm = length * np.maximum(np.square(weight).sum(axis=1), TINY)
        return np.asarray(power / norm[:, None, None].astype(np.float32))

    @cached_property
    def frequencies(self) -> Array:
        """Frequencies of the spectrum, in Hz."""
        if self.rate is None:
            raise ValueError("the spectrum of an irregular stream is not defined")
        length = 1 << max(3, (self.samples - 1).bit_length())
        return np.asarray(np.fft.rfftfreq(length, 1 / self.rate))


def _slope(frames: Frames) -> Array:
    middle = frames.times.sum(axis=1, keepdims=True) / frames.count
    away = np.where(frames.real, frames.times - middle, 0.0)
    spread = np.square(away).sum(axis=1)[:, None]
    rise = np.einsum("ft,ftc->fc", away, frames.centred)
    return np.divide(rise, spread, out=np.zeros_like(rise), where=spread > 0)


def _minimum(frames: Frames) -> Array:
    return np.where(frames.real[..., None], frames.values, np.inf).min(axis=1)


def _maximum(frames: Frames) -> Array:
    return np.where(frames.real[..., None], frames.values, -np.inf).max(axis=1)


def _range(frames: Frames) -> Array:
    low, high = _minimum(frames), _maximum(frames)
    return np.subtract(high, low, out=np.zeros_like(low), where=np.isfinite(low))


def _inside(frames: Frames, low: float, high: float) -> Places:
    """Which frequencies lie within a band."""
    inside = np.flatnonzero((frames.frequencies >= low) & (frames.frequencies < high))
    if len(inside) == 0:
        raise ValueError(
            f"the band {low:g}-{high:g} Hz lies between or beyond the frequencies of a window of "
            f"{frames.samples} samples at {frames.rate:g} Hz"
        )
    return inside


def _power(frames: Frames, low: float, high: float) -> Array:
    inside = _inside(frames, low, high)
    return frames.spectrum[:, inside].sum(axis=1, dtype=np.float64)


def _share(frames: Frames, low: float, high: float) -> Array:
    return _ratio(_power(frames, low, high), frames.spectrum.sum(axis=1, dtype=np.float64))


def _peak(frames: Frames, low: float, high: float) -> Places:
    """Place of the strongest frequency within a band: ``(frames, features)``."""
    inside = _inside(frames, low, high)
    return inside[frames.spectrum[:, inside].argmax(axis=1)]


def _at(frames: Frames, place: Places) -> Array:
    """The spectrum at one place of each frame, 0 beyond it: ``(frames, features)``."""
    known = (place >= 0) & (place < len(frames.frequencies))
    nearest = np.clip(place, 0, len(frames.frequencies) - 1)[:, None]
    found = np.take_along_axis(frames.spectrum, nearest, axis=1)[:, 0]
    return np.where(known, found, 0.0).astype(np.float64)


def _rhythm(frames: Frames, low: float, high: float) -> Array:
    peak = _peak(frames, low, high)
    # The vertex of the parabola through the logarithms around the peak lies between the bins.
    left, top, right = (np.log(_at(frames, peak + step) + TINY) for step in (-1, 0, 1))
    bend = left - 2 * top + right
    shift = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend < -1e-9)
    return np.clip((peak + np.clip(shift, -0.5, 0.5)) * frames.frequencies[1], low, high)


def _rhythm_share(frames: Frames, low: float, high: float) -> Array:
    peak = _peak(frames, low, high)
    # The main lobe of a Hann window reaches two bins to either side, before zero padding.
    reach = round(4 * (len(frames.frequencies) - 1) / frames.samples)
    near = sum(_at(frames, peak + step) for step in range(-reach, reach + 1))
    return _ratio(np.asarray(near), frames.spectrum.sum(axis=1, dtype=np.float64))


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > TINY)


SUMMED: dict[str, Callable[[Sums, float], Array]] = {
    "mean": lambda sums, seconds: sums.mean,
    "deviation": lambda sums, seconds: np.sqrt(sums.variance),
    "energy": lambda sums, seconds: np.sqrt(np.square(sums.mean) + sums.variance),
    "change": lambda sums, seconds: sums.speed,
    "count": lambda sums, seconds: np.broadcast_to(sums.count / seconds, sums.mean.shape),
}
GATHERED: dict[str, Callable[[Frames], Array]] = {
    "slope": _slope,
    "minimum": _minimum,
    "maximum": _maximum,
    "range": _range,
}
SPECTRAL: dict[str, Callable[[Frames, float, float], Array]] = {
    "power": _power,
    "share": _share,
    "rhythm": _rhythm,
    "rhythm_share": _rhythm_share,
}


def _running(rows: Array) -> Array:
    """Sums of all rows before each, and of all: one row more than there are."""
    return np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
