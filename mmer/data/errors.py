"""The error of a broken recording: it names the file and the field."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class RecordingError(ValueError):
    """A file that does not hold what it should.

    Attributes:
        file: Path of the file.
        field: The key or part of the file that is wrong, "file" for the file as a whole.
        problem: What was found, and what was wanted.
    """

    def __init__(self, file: str | os.PathLike[str], field: str, problem: str) -> None:
        super().__init__(os.fspath(file), field, problem)
        self.file = os.fspath(file)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.problem}"


@contextmanager
def reading(file: str | os.PathLike[str], field: str) -> Iterator[None]:
    """Turn what the data types reject inside the block into an error that names file and field.

    Args:
        file: The file that is being read.
        field: What is being built from it.

    Raises:
        RecordingError: If the block raises a ValueError or TypeError that is not one already.
    """
    try:
        yield
    except RecordingError:
        raise
    except (ValueError, TypeError) as error:
        raise RecordingError(file, field, str(error)) from error
