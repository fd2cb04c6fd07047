"""What all transforms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from mmer.data.recording import Recording


class Transform(ABC):
    """A step from recording to recording."""

    @abstractmethod
    def _changed(self, recording: Recording) -> Recording:
        """The changed recording: what a subclass has to say."""

    def __call__(self, recording: Recording) -> Recording:
        """Return the changed recording.

        Args:
            recording: A recording; left as it is.
        """
        return self._changed(recording)

    def apply(self, recordings: Iterable[Recording]) -> list[Recording]:
        """Return the changed recordings; some steps look at several recordings at once.

        Args:
            recordings: Recordings; left as they are.
        """
        return [self(recording) for recording in recordings]


def frame_count(recording: Recording, seconds: float) -> int:
    """Number of frames of equal length that cover a recording, at least 1.

    Args:
        recording: The recording.
        seconds: Length of a frame.
    """
    return max(1, int(np.ceil(recording.duration / seconds - 1e-6)))


def check_positive(name: str, number: float) -> None:
    """Refuse a number that is not above 0 and finite.

    Args:
        name: What it is, for the message.
        number: The number.

    Raises:
        ValueError: If it is not.
    """
    if not number > 0 or not np.isfinite(number):
        raise ValueError(f"{name} must be above 0, got {number}")
