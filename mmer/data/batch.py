"""Windows cut from recordings, and the padded batches a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmer.data.recording import Stream

# Samples this close to a border belong to the later window, so neighbours never share or lose one.
BORDER_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of one recording. All times are seconds from the start of the window.

    Attributes:
        values: float32 ``(time, features)`` of each modality.
        masks: bool ``(time,)`` of each modality, True = real.
        times: float32 ``(time,)`` of each modality.
        label_times: float32 ``(frames,)``; None if the recording has one label or none.
        classes: int64 ``(frames,)``, -1 = unlabelled; None without class labels.
        targets: float32 ``(frames, values)``, NaN = unlabelled; None without value labels.
        identifier: Name of the recording.
        start: Seconds from the start of the recording to that of the window.
        seconds: Length of the window.
    """

    values: dict[str, NDArray[np.float32]]
    masks: dict[str, NDArray[np.bool_]]
    times: dict[str, NDArray[np.float32]]
    label_times: NDArray[np.float32] | None
    classes: NDArray[np.int64] | None
    targets: NDArray[np.float32] | None
    identifier: str
    start: float
    seconds: float

    @property
    def frames(self) -> int:
        """Number of label frames."""
        labels = self.classes if self.classes is not None else self.targets
        return 0 if labels is None else len(labels)


@dataclass
class Batch:
    """Windows padded on the right to one length per modality.

    A modality that no window has any sample of keeps one masked step, so that no dimension is
    empty.

    Attributes:
        values: float32 ``(batch, time, features)`` of each modality, 0 where the mask is False.
        masks: bool ``(batch, time)`` of each modality, True = real.
        times: float32 ``(batch, time)`` of each modality, seconds from the start of the window, so
            that nothing tells where in the recording the window lies.
        label_times: float32 ``(batch, frames)``, seconds from the start of the window; None if the
            labels are one per recording or there are none.
        label_mask: bool ``(batch, frames)``, True = a frame of the window (not padding), labelled
            or not.
        classes: int64 ``(batch, frames)``, -1 where unlabelled or padded; None without class
            labels.
        targets: float32 ``(batch, frames, values)``, NaN where unlabelled or padded; None without
            values.
        identifiers: Name of each window's recording.
        starts: float64 ``(batch,)``, seconds of each window in its recording. It is for the
            bookkeeping, not for a model, and stays on the CPU.
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    times: dict[str, Tensor]
    label_times: Tensor | None
    label_mask: Tensor
    classes: Tensor | None
    targets: Tensor | None
    identifiers: list[str]
    starts: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on a device.

        Args:
            device: Where to.
            non_blocking: Copy from pinned memory beside the computation.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU copies faster."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.identifiers)

    def _map(self, function: Any) -> Batch:
        changed: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "starts":
                continue
            if isinstance(value, Tensor):
                changed[part.name] = function(value)
            elif isinstance(value, dict):
                changed[part.name] = {name: function(tensor) for name, tensor in value.items()}
        return replace(self, **changed)


def collate(windows: Sequence[Window]) -> Batch:
    """Pad windows on the right into one batch.

    Args:
        windows: At least one. Each modality that any of them has is in the batch, masked for the
            others.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: If there is no window, a modality differs in its number of features, the labels
            differ in their number of values, or some windows have labels over time and others one
            for all.
    """
    if len(windows) == 0:
        raise ValueError("windows: at least one is needed, got none")
    names = list(dict.fromkeys(name for window in windows for name in window.values))
    values, masks, times = {}, {}, {}
    for name in names:
        columns = _one(
            f"features of {name}", (w.values[name].shape[1] for w in windows if name in w.values)
        )
        length = max(1, *(len(w.values[name]) if name in w.values else 0 for w in windows))
        padded = torch.zeros(len(windows), length, columns)
        mask = torch.zeros(len(windows), length, dtype=torch.bool)
        seconds = torch.zeros(len(windows), length)
        for row, window in enumerate(windows):
            if name in window.values:
                samples = len(window.values[name])
                padded.numpy()[row, :samples] = window.values[name]
                mask.numpy()[row, :samples] = window.masks[name]
                seconds.numpy()[row, :samples] = window.times[name]
        values[name], masks[name], times[name] = padded, mask, seconds
    label_times, label_mask, classes, targets = _collate_labels(windows)
    return Batch(
        values=values,
        masks=masks,
        times=times,
        label_times=label_times,
        label_mask=label_mask,
        classes=classes,
        targets=targets,
        identifiers=[window.identifier for window in windows],
        starts=torch.tensor([window.start for window in windows], dtype=torch.float64),
    )


def _collate_labels(
    windows: Sequence[Window],
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    count, frames = len(windows), max(1, *(window.frames for window in windows), 1)
    over_time = {
        w.label_times is not None for w in windows if w.classes is not None or w.targets is not None
    }
    if len(over_time) > 1:
        raise ValueError(
            "windows: some have labels over time and others one label for the recording"
        )
    label_times = torch.zeros(count, frames) if over_time == {True} else None
    label_mask = torch.zeros(count, frames, dtype=torch.bool)
    has_classes = any(window.classes is not None for window in windows)
    classes = torch.full((count, frames), -1, dtype=torch.int64) if has_classes else None
    widths = [window.targets.shape[1] for window in windows if window.targets is not None]
    width = _one("values per label", widths) if widths else 0
    targets = torch.full((count, frames, width), float("nan")) if widths else None
    for row, window in enumerate(windows):
        label_mask[row, : window.frames] = True
        if label_times is not None and window.label_times is not None:
            label_times.numpy()[row, : window.frames] = window.label_times
        if classes is not None and window.classes is not None:
            classes.numpy()[row, : window.frames] = window.classes
        if targets is not None and window.targets is not None:
            targets.numpy()[row, : window.frames] = window.targets
    return label_times, label_mask, classes, targets


def _one(what: str, numbers: Iterable[int]) -> int:
    found = set(numbers)
    if len(found) != 1:
        raise ValueError(f"windows: one number of {what} is needed, got {sorted(found)}")
    return found.pop()


def slice_stream(
    stream: Stream, start: float, end: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Cut ``start <= time < end`` out of a stream.

    Args:
        stream: The stream.
        start: Seconds from the recording's start.
        end: Seconds from the recording's start.

    Returns:
        Views of the values and the mask, and the times in float32 seconds from ``start``.
    """
    first, last = np.searchsorted(stream.times, (start - BORDER_TOLERANCE, end - BORDER_TOLERANCE))
    return (
        stream.values[first:last],
        stream.mask[first:last],
        relative(stream.times[first:last], start),
    )


def relative(times: NDArray[np.float64], start: float) -> NDArray[np.float32]:
    """Return times as float32 seconds from ``start``, never below 0."""
    return np.maximum(times - start, 0.0).astype(np.float32)
