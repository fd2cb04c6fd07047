"""Windows at random places for training, at every place for evaluation, and their soft vote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mmer.data.batch import BORDER_TOLERANCE, Batch, Window, relative, slice_stream
from mmer.data.recording import Recording


def cut_window(recording: Recording, start: float = 0.0, seconds: float | None = None) -> Window:
    """Cut a stretch out of a recording; nothing is copied but the times.

    Args:
        recording: The recording.
        start: Seconds from the start of the recording.
        seconds: Length; what lies beyond the end of the recording is not there. None goes to the
            end.

    Returns:
        The samples and labels with ``start <= time < start + seconds``. A label of the whole
        recording comes along with every window.

    Raises:
        ValueError: If ``start`` is negative or ``seconds`` is not above 0.
    """
    if not 0 <= start < math.inf:
        raise ValueError(f"start must be 0 or more seconds, got {start}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    end = math.inf if seconds is None else start + seconds
    if end >= recording.duration - BORDER_TOLERANCE:
        end = math.inf
    values, masks, times = {}, {}, {}
    for name, stream in recording.streams.items():
        values[name], masks[name], times[name] = slice_stream(stream, start, end)
    label_times, classes, targets = None, None, None
    if recording.labels is not None:
        labels, chosen = recording.labels, slice(None)
        if labels.times is not None:
            borders = (start - BORDER_TOLERANCE, end - BORDER_TOLERANCE)
            chosen = slice(*np.searchsorted(labels.times, borders))
            label_times = relative(labels.times[chosen], start)
        classes = None if labels.classes is None else labels.classes[chosen]
        targets = None if labels.values is None else labels.values[chosen]
    return Window(
        values=values,
        masks=masks,
        times=times,
        label_times=label_times,
        classes=classes,
        targets=targets,
        identifier=recording.identifier,
        start=float(start),
        seconds=recording.duration - start if seconds is None else float(seconds),
    )


class RandomWindows(Dataset[Window]):
    """Windows of random length at random places, for training.

    Window ``index`` of an epoch depends on nothing but ``(seed, epoch, index)``: not on the order
    in which windows are asked for, nor on the number of worker processes. Its recording is
    ``index % len(recordings)``, so every recording gives equally many.

    Args:
        recordings: What to cut from.
        seconds: Shortest and longest window; a single number for one length; None for whole
            recordings. A recording that is shorter than its window is given whole.
        windows_per_recording: Windows per recording and epoch.
        seed: Any integer of at least 0.

    Raises:
        ValueError: If there is no recording, or a number is out of range.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        seconds: float | tuple[float, float] | None = (60.0, 300.0),
        windows_per_recording: int = 1,
        seed: int = 0,
    ) -> None:
        self.recordings = _recordings(recordings)
        shortest, longest = (
            (math.inf, math.inf)
            if seconds is None
            else (seconds, seconds)
            if isinstance(seconds, (int, float))
            else seconds
        )
        if not 0 < shortest <= longest:
            raise ValueError(
                f"seconds must be a shortest and a longest window above 0, got {seconds}"
            )
        if windows_per_recording < 1:
            raise ValueError(
                f"windows_per_recording must be at least 1, got {windows_per_recording}"
            )
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.seconds = (float(shortest), float(longest))
        self.windows_per_recording = int(windows_per_recording)
        self.seed = int(seed)
        self._durations = [recording.duration for recording in self.recordings]
        # In shared memory, so that workers which outlive an epoch see the next one begin.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose windows are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; running worker processes follow.

        Args:
            epoch: An integer of at least 0.

        Raises:
            ValueError: If it is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.recordings) * self.windows_per_recording

    def __getitem__(self, index: int) -> Window:
        index = _index(index, len(self))
        number = index % len(self.recordings)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.epoch, index))
        length_draw, place_draw = np.random.default_rng(sequence).random(2)
        duration = self._durations[number]
        shortest, longest = self.seconds
        seconds = longest if math.isinf(longest) else shortest + length_draw * (longest - shortest)
        start = place_draw * max(0.0, duration - seconds)
        return cut_window(self.recordings[number], start, min(seconds, duration))


class SlidingWindows(Dataset[Window]):
    """Every place of every recording, in order, for evaluation.

    Windows begin every ``hop`` seconds; the last one ends with the recording, so it too has its
    full length where the recording is long enough.

    Args:
        recordings: What to cut.
        seconds: Length of the windows; None for one window per recording.
        hop: Seconds between their starts, at most ``seconds``, so that nothing is left out. By
            default ``seconds``, windows side by side.

    Raises:
        ValueError: If there is no recording, or a number is out of range.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        seconds: float | None = None,
        hop: float | None = None,
    ) -> None:
        self.recordings = _recordings(recordings)
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be above 0, got {seconds}")
        length = math.inf if seconds is None else float(seconds)
        if hop is not None and not 0 < hop <= length:
            raise ValueError(f"hop must be above 0 and at most seconds = {seconds}, got {hop}")
        self.seconds = length
        self.hop = length if hop is None else float(hop)
        self.places: list[tuple[int, float]] = []
        for number, recording in enumerate(self.recordings):
            last = max(0.0, recording.duration - length)
            before = math.ceil(last / self.hop - 1e-9) if last > 0 else 0
            self.places += [(number, step * self.hop) for step in range(before)]
            self.places.append((number, last))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Window:
        number, start = self.places[_index(index, len(self))]
        recording = self.recordings[number]
        return cut_window(recording, start, min(self.seconds, recording.duration - start))


@dataclass(frozen=True, eq=False)
class Vote:
    """What overlapping windows say together about one recording.

    Attributes:
        identifier: Name of the recording.
        times: float64 ``(frames,)``, seconds from the start of the recording; None for one output
            per recording (then ``frames`` is 1).
        outputs: Means over the windows, float64 ``(frames, ...)`` under the names they were added
            with.
        classes: The label, int64 ``(frames,)``, -1 = unlabelled; None without class labels.
        targets: The label, float32 ``(frames, values)``, NaN = unlabelled; None without value
            labels.
        count: Windows that voted, int64 ``(frames,)``.
    """

    identifier: str
    times: NDArray[np.float64] | None
    outputs: dict[str, NDArray[np.float64]]
    classes: NDArray[np.int64] | None
    targets: NDArray[np.float32] | None
    count: NDArray[np.int64]


class SoftVote:
    """Averages what overlapping windows say about the same label of the same recording.

    Probabilities are averaged, not decisions, as in sliding-window soft voting.

    Args:
        resolution: Label times closer than this, in seconds, are one label: windows know their
            times in float32, so the same label is a few microseconds off between them. Times are
            rounded to a tenth of it.

    Raises:
        ValueError: If ``resolution`` is not above 0.
    """

    def __init__(self, resolution: float = 1e-3) -> None:
        if not resolution > 0:
            raise ValueError(f"resolution must be above 0 seconds, got {resolution}")
        self.resolution = float(resolution)
        self._heard: dict[
            str, list[tuple[NDArray[np.float64] | None, dict[str, NDArray[Any]]]]
        ] = {}

    def add(
        self,
        batch: Batch,
        *,
        times: Tensor | None = None,
        mask: Tensor | None = None,
        **outputs: Tensor | None,
    ) -> None:
        """Take in the outputs for one batch.

        Args:
            batch: The windows.
            times: ``(batch, frames)`` seconds from the start of each window; the label times by
                default.
            mask: bool ``(batch, frames)``, True = counts; the label mask by default. Outputs with a
                single frame for windows without label times always count.
            **outputs: ``(batch, frames, ...)`` by name, for example ``probabilities`` and
                ``values``; None is left out.

        Raises:
            ValueError: If there is no output, or a shape does not fit.
        """
        arrays = {
            name: output.detach().to("cpu", torch.float64).numpy()
            for name, output in outputs.items()
            if output is not None
        }
        if not arrays:
            raise ValueError("outputs: at least one is needed, got none")
        frames = next(iter(arrays.values())).shape[1]
        own_times = times is None
        times = batch.label_times if own_times else times
        if mask is None:
            whole = times is None or not own_times
            mask = torch.ones(len(batch), frames, dtype=torch.bool) if whole else batch.label_mask
        keep = mask.detach().cpu().numpy()
        for name, array in arrays.items():
            if array.shape[:2] != keep.shape:
                raise ValueError(
                    f"{name} must be (batch, frames, ...) with (batch, frames) = {keep.shape}, "
                    f"got {array.shape}"
                )
        if times is None and frames != 1:
            raise ValueError(f"times are needed for {frames} frames, but the batch has none")
        if times is not None and tuple(times.shape) != keep.shape:
            raise ValueError(f"times must be {keep.shape}, got {tuple(times.shape)}")
        if own_times:
            if batch.classes is not None:
                arrays["classes"] = batch.classes.cpu().numpy()
            if batch.targets is not None:
                arrays["targets"] = batch.targets.cpu().numpy()
        seconds = None if times is None else times.detach().to("cpu", torch.float64).numpy()
        for row, identifier in enumerate(batch.identifiers):
            chosen = keep[row]
            at = None if seconds is None else seconds[row, chosen] + float(batch.starts[row])
            self._heard.setdefault(identifier, []).append(
                (at, {name: array[row, chosen] for name, array in arrays.items()})
            )

    def votes(self) -> dict[str, Vote]:
        """Return the mean of all that was added, by recording, in the order they first appeared.

        Raises:
            ValueError: If some windows of a recording had times, outputs or labels that others had
                not.
        """
        return {
            identifier: self._vote(identifier, heard) for identifier, heard in self._heard.items()
        }

    def _vote(
        self,
        identifier: str,
        heard: list[tuple[NDArray[np.float64] | None, dict[str, NDArray[Any]]]],
    ) -> Vote:
        kinds = {(at is not None, tuple(sorted(arrays))) for at, arrays in heard}
        if len(kinds) > 1:
            raise ValueError(f"{identifier}: its windows differ in what was added for them")
        arrays = {name: np.concatenate([a[name] for _, a in heard]) for name in heard[0][1]}
        if heard[0][0] is None:
            place, frames, times = (
                np.zeros(len(next(iter(arrays.values()))), dtype=np.int64),
                1,
                None,
            )
        else:
            at = np.concatenate([at for at, _ in heard if at is not None])
            order = np.argsort(at, kind="stable")
            at, arrays = at[order], {name: array[order] for name, array in arrays.items()}
            place = np.concatenate([[0], np.cumsum(np.diff(at) > self.resolution)])[: len(at)]
            frames = int(place[-1]) + 1 if len(at) else 0
        count = np.bincount(place, minlength=frames)
        # The first voter's label: the labels of one frame are all the same.
        first = np.unique(place, return_index=True)[1]
        classes, targets = arrays.pop("classes", None), arrays.pop("targets", None)
        if heard[0][0] is not None:
            tenth = self.resolution / 10
            times = np.round(_mean(at, place, count) / tenth) * tenth
        return Vote(
            identifier=identifier,
            times=times,
            outputs={name: _mean(array, place, count) for name, array in arrays.items()},
            classes=None if classes is None else classes[first],
            targets=None if targets is None else targets[first],
            count=count,
        )


def _mean(
    rows: NDArray[np.float64], place: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    total = np.zeros((len(count), *rows.shape[1:]))
    np.add.at(total, place, rows)
    return total / count.reshape(-1, *[1] * (rows.ndim - 1))


def _recordings(recordings: Sequence[Recording]) -> list[Recording]:
    recordings = list(recordings)
    if not recordings:
        raise ValueError("recordings: at least one is needed, got none")
    return recordings


def _index(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"window {index} of {length}")
    return int(index) % length
