"""Checked reading of ``.npz`` and ``.npy`` files: whatever is wrong names the file and the key."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mmer.data.errors import RecordingError

# What a broken or truncated archive makes zipfile, zlib and numpy raise.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
KINDS = {"number": "fiu", "integer": "iu", "bool": "b", "string": "U"}


class ArrayFile:
    """An ``.npz`` archive, read one checked array at a time; nothing in it is unpickled.

    Args:
        path: The archive.

    Raises:
        RecordingError: If it cannot be read as an archive of arrays.
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except BROKEN as error:
            raise RecordingError(
                self.path, "file", f"not a complete .npz archive ({error})"
            ) from error
        self.keys = tuple(n[: -len(".npy")] for n in self._zip.namelist() if n.endswith(".npy"))
        self._known = frozenset(self.keys)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def array(
        self,
        key: str,
        *,
        kind: str = "number",
        shape: tuple[int | None, ...] | None = None,
        finite: bool = False,
        low: float | None = None,
        high: float | None = None,
    ) -> NDArray[Any]:
        """Read one array.

        Args:
            key: Its name in the archive.
            kind: "number", "integer", "bool" or "string".
            shape: Its shape, None for any length; None for any shape.
            finite: Whether NaN and infinity are refused.
            low: Smallest value allowed.
            high: Largest value allowed.

        Returns:
            The array.

        Raises:
            RecordingError: If it is missing, broken, or not as described.
        """
        if key not in self._known:
            raise RecordingError(self.path, key, "missing")
        name = f"{key}.npy"
        try:
            with self._zip.open(name) as member:
                _check_size(member, self._zip.getinfo(name).file_size)
            with self._zip.open(name) as member:
                array = npy_format.read_array(member, allow_pickle=False)
                if member.read(1):
                    raise ValueError("more bytes than its header tells of")
        except BROKEN as error:
            raise RecordingError(self.path, key, f"cannot be read ({error})") from error
        check_array(
            self.path, key, array, kind=kind, shape=shape, finite=finite, low=low, high=high
        )
        return array

    def text(self, key: str) -> str:
        """Read one string.

        Args:
            key: Its name in the archive.

        Returns:
            The string.

        Raises:
            RecordingError: If it is missing, broken, or not a single string.
        """
        return str(self.array(key, kind="string", shape=())[()])

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a row of strings.

        Args:
            key: Its name in the archive.

        Returns:
            The strings.

        Raises:
            RecordingError: If it is missing, broken, or not a row of strings.
        """
        array = self.array(key, kind="string", shape=(None,))
        return tuple(str(text) for text in array)


def read_npy(path: str | os.PathLike[str], **description: Any) -> NDArray[Any]:
    """Read one checked ``.npy`` file.

    Args:
        path: The file.
        **description: As in :meth:`ArrayFile.array`.

    Returns:
        The array.

    Raises:
        RecordingError: If it is broken or not as described.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            _check_size(file, path.stat().st_size)
        with path.open("rb") as file:
            array = npy_format.read_array(file, allow_pickle=False)
    except BROKEN as error:
        raise RecordingError(path, "file", f"cannot be read as .npy ({error})") from error
    check_array(path, "file", array, **description)
    return array


def check_array(
    file: str | os.PathLike[str],
    field: str,
    array: NDArray[Any],
    *,
    kind: str = "number",
    shape: tuple[int | None, ...] | None = None,
    finite: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Check an array against a description, as in :meth:`ArrayFile.array`.

    Args:
        file: Where it was read from.
        field: Its name there.
        array: The array.
        kind: "number", "integer", "bool" or "string".
        shape: Its shape, None for any length; None for any shape.
        finite: Whether NaN and infinity are refused.
        low: Smallest value allowed.
        high: Largest value allowed.

    Raises:
        RecordingError: If it is not as described.
    """
    if array.dtype.kind not in KINDS[kind]:
        raise RecordingError(file, field, f"must be of kind {kind}, got {array.dtype}")
    if shape is not None and not (
        array.ndim == len(shape)
        and all(want is None or want == got for want, got in zip(shape, array.shape, strict=True))
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise RecordingError(file, field, f"must have shape ({wanted}), got {array.shape}")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise RecordingError(file, field, f"must be finite, got {array[place]} at {place}")
    for limit, beyond, words in ((low, np.less, "at least"), (high, np.greater, "at most")):
        if limit is not None and array.size and beyond(array, limit).any():
            place = tuple(int(i) for i in np.argwhere(beyond(array, limit))[0])
            raise RecordingError(
                file, field, f"must be {words} {limit:g}, got {array[place]} at {place}"
            )


def check_duration(
    file: str | os.PathLike[str],
    field: str,
    samples: int,
    rate: float,
    seconds: float,
    tolerance: float,
) -> None:
    """Check that a stream lasts as long as it should, so that its rate is what it is taken for.

    Args:
        file: Where it was read from.
        field: Its name there.
        samples: Length of the stream.
        rate: Samples per second.
        seconds: How long it should last.
        tolerance: Seconds it may differ by.

    Raises:
        RecordingError: If it does not.
    """
    if abs(samples / rate - seconds) > tolerance:
        raise RecordingError(
            file,
            field,
            f"wrong rate or length: {samples} samples at {rate:g} Hz last {samples / rate:.1f} s, "
            f"but the recording lasts {seconds:.1f} s",
        )


def check_unique(file: str | os.PathLike[str], field: str, names: Iterable[str]) -> None:
    """Check that no name comes twice.

    Args:
        file: Where they were read from.
        field: What they are.
        names: The names.

    Raises:
        RecordingError: If one does.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RecordingError(file, field, f"{name!r} comes twice")
        seen.add(name)


def _check_size(file: Any, size: int) -> None:
    """Compare what a ``.npy`` header promises with the bytes there are, before any are reserved."""
    version = npy_format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy_format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy_format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format is not supported")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not read")
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if promised != size:
        raise ValueError(f"its header promises {promised} bytes, but there are {size}")
