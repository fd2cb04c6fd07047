"""The project's own format: recordings as plain arrays in one ``.npz``, nothing pickled.

Anything that can write ``numpy.savez`` can write it. Keys, where ``ID`` is the identifier of a
recording and ``NAME`` the name of one of its streams:

======================== ================= ====================================================
key                      type              meaning
======================== ================= ====================================================
format                   string            "mmer-recordings"
version                  integer           1
identifiers              strings           the recordings, in order
ID/subject               string            the person; the identifier if absent
ID/group                 string            the video or stimulus; "" if absent
ID/source                string            where it came from; the path of this file if absent
ID/streams               strings           names of the streams, in order
ID/streams/NAME/values   (time, features)  samples, any real type, finite where real; or (time,)
ID/streams/NAME/rate     number            samples per second; absent if irregular
ID/streams/NAME/start    number            seconds of the first sample; 0 if absent
ID/streams/NAME/times    (time,)           seconds of each sample from the recording's start; by
                                           default they follow from rate and start
ID/streams/NAME/mask     bool (time,)      True = real; all real if absent
ID/labels/classes        integer (frames,) -1 = unlabelled; absent without classes
ID/labels/values         (frames, targets) NaN = unlabelled; absent without values
ID/labels/times          (frames,)         seconds of each frame; absent if one label is for all
ID/class_names           strings           names of the classes; none if absent
ID/value_names           strings           names of the columns of the values; none if absent
======================== ================= ====================================================

Further keys are left alone.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmer.data.arrays import ArrayFile, check_unique
from mmer.data.errors import RecordingError, reading
from mmer.data.recording import Labels, Recording, Stream

FORMAT = "mmer-recordings"
VERSION = 1


def write_recordings(
    path: str | os.PathLike[str], recordings: Sequence[Recording], *, compress: bool = True
) -> Path:
    """Write recordings into one archive; an older file stays until the new one is complete.

    Args:
        path: File to write; replaced if it exists. Should end in ``.npz``.
        recordings: What to write; identifiers must differ.
        compress: Smaller but slower.

    Returns:
        The path.

    Raises:
        ValueError: If two recordings have one identifier, or slashes in names give one key twice.
        FileNotFoundError: If the folder does not exist.
    """
    path = Path(path)
    identifiers = [recording.identifier for recording in recordings]
    for identifier, count in Counter(identifiers).items():
        if count > 1:
            raise ValueError(f"recordings: identifier {identifier!r} comes twice")
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "identifiers": np.array(identifiers, dtype=np.str_),
    }
    for recording in recordings:
        for entry, array in _entries(recording).items():
            key = f"{recording.identifier}/{entry}"
            if key in arrays:
                raise ValueError(f"recordings: slashes in their names give {key!r} twice")
            arrays[key] = array
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            (np.savez_compressed if compress else np.savez)(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_recordings(path: str | os.PathLike[str]) -> list[Recording]:
    """Read the recordings of one archive.

    Args:
        path: File written by :func:`write_recordings` or to the same description.

    Returns:
        The recordings, in the order of ``identifiers``.

    Raises:
        RecordingError: If a key is missing or does not hold what it should.
        FileNotFoundError: If there is no such file.
    """
    with ArrayFile(path) as file:
        if file.text("format") != FORMAT:
            raise RecordingError(path, "format", f"must be {FORMAT!r}, got {file.text('format')!r}")
        version = int(file.array("version", kind="integer", shape=())[()])
        if version != VERSION:
            raise RecordingError(path, "version", f"this release reads {VERSION}, got {version}")
        identifiers = file.texts("identifiers")
        check_unique(path, "identifiers", identifiers)
        return [_read(file, identifier) for identifier in identifiers]


def _entries(recording: Recording) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "subject": recording.subject,
        "group": recording.group,
        "source": recording.source,
        "streams": np.array(list(recording.streams), dtype=np.str_),
        "class_names": np.array(recording.class_names, dtype=np.str_),
        "value_names": np.array(recording.value_names, dtype=np.str_),
    }
    for name, stream in recording.streams.items():
        key = f"streams/{name}"
        entries[f"{key}/values"] = stream.values
        if not stream.mask.all():
            entries[f"{key}/mask"] = stream.mask
        start = float(stream.times[0]) if len(stream) else 0.0
        if stream.rate is not None:
            entries[f"{key}/rate"] = stream.rate
            entries[f"{key}/start"] = start
        if stream.rate is None or not np.array_equal(
            stream.times, start + np.arange(len(stream)) / stream.rate
        ):
            entries[f"{key}/times"] = stream.times
    labels = recording.labels
    if labels is not None:
        for part in ("classes", "values", "times"):
            if getattr(labels, part) is not None:
                entries[f"labels/{part}"] = getattr(labels, part)
    return entries


def _read(file: ArrayFile, identifier: str) -> Recording:
    streams = {}
    for name in file.texts(f"{identifier}/streams"):
        streams[name] = _read_stream(file, f"{identifier}/streams/{name}")

    def text(part: str, otherwise: str) -> str:
        key = f"{identifier}/{part}"
        return file.text(key) if key in file else otherwise

    def texts(part: str) -> tuple[str, ...]:
        key = f"{identifier}/{part}"
        return file.texts(key) if key in file else ()

    with reading(file.path, identifier):
        return Recording(
            identifier=identifier,
            subject=text("subject", identifier),
            group=text("group", ""),
            streams=streams,
            labels=_read_labels(file, f"{identifier}/labels"),
            class_names=texts("class_names"),
            value_names=texts("value_names"),
            source=text("source", str(file.path)),
        )


def _read_stream(file: ArrayFile, key: str) -> Stream:
    values = file.array(f"{key}/values")
    columns = values[:, None] if values.ndim == 1 else values
    mask = file.array(f"{key}/mask", kind="bool") if f"{key}/mask" in file else None
    rate = float(file.array(f"{key}/rate", shape=())) if f"{key}/rate" in file else None
    times = None
    if f"{key}/times" in file:
        times = file.array(f"{key}/times", shape=(None,), finite=True)
    elif rate is None:
        raise RecordingError(file.path, f"{key}/times", "missing, and there is no rate")
    with reading(file.path, key):
        if times is not None:
            real = np.ones(len(columns), dtype=bool) if mask is None else mask
            return Stream(columns, times, real, rate)
        start = float(file.array(f"{key}/start", shape=())) if f"{key}/start" in file else 0.0
        assert rate is not None
        return Stream.regular(columns, rate, start=start, mask=mask)


def _read_labels(file: ArrayFile, key: str) -> Labels | None:
    parts: dict[str, Any] = {}
    for part, kind in (("classes", "integer"), ("values", "number"), ("times", "number")):
        if f"{key}/{part}" in file:
            parts[part] = file.array(f"{key}/{part}", kind=kind)
    if "classes" not in parts and "values" not in parts:
        return None
    with reading(file.path, key):
        return Labels(**parts)
