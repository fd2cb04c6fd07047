"""Where the data are, and one entry point for all of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmer.data.abaw import read_abaw
from mmer.data.arrays import ArrayFile, check_unique
from mmer.data.errors import RecordingError
from mmer.data.generate import generate_recordings
from mmer.data.mmsa import recordings_of_mmsa
from mmer.data.mult import recordings_of_mult
from mmer.data.npz import read_recordings
from mmer.data.pickles import load_pickle
from mmer.data.recording import Recording
from mmer.data.shared_sets import (
    ORIGINALS,
    read_ceap360vr,
    read_mosi_utterances,
    read_stress_predict,
)

VARIABLE = "MMER_DATA"
SHARED_SETS: dict[str, Callable[..., list[Recording]]] = {
    "stress_predict": read_stress_predict,
    "ceap360vr": read_ceap360vr,
    "mosi_utterances": read_mosi_utterances,
}
DATASETS = (*SHARED_SETS, "generated")
PICKLE_ENDINGS = (".pkl", ".pickle", ".p")


def find_data_folder() -> Path:
    """Find the folder of the shared data sets.

    Returns:
        The folder in the environment variable ``MMER_DATA``, else ``../shared/data`` beside the
        repository, else beside the working folder.

    Raises:
        FileNotFoundError: If there is none; it says where the originals come from and how to
            convert them.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if folder.is_dir():
            return folder
        raise FileNotFoundError(
            f"{VARIABLE} is {named}, but there is no such folder. {_where_from()}"
        )
    repository = Path(__file__).resolve().parents[2]
    for start in (repository, Path.cwd()):
        folder = start.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder with recordings: set {VARIABLE} to one, or make ../shared/data. "
        f"{_where_from()}"
    )


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Recording]:
    """Read recordings, whatever they are in.

    Args:
        name_or_path: One of :data:`DATASETS`; or the path of an ``.npz`` file (of the project's own
            format or one of the shared data sets, told apart by their keys), of a pickle (MMSA or
            MulT, told apart by their fields), of a folder with ``annotations`` and ``features``
            (ABAW), or of a folder of ``.npz`` files of the project's own format.
        folder: Where the named data sets are; found by :func:`find_data_folder` by default.
        **options: Further arguments of the reader, or of
            :func:`~mmer.data.generate_recordings`.

    Returns:
        The recordings.

    Raises:
        RecordingError: If a file is broken or of no known kind.
        FileNotFoundError: If there is nothing there; for a named data set it says where the
            original is.
        ValueError: If the reader has no such option.
    """
    name = os.fspath(name_or_path)
    if name == "generated":
        return _call(generate_recordings, options)
    if name in SHARED_SETS:
        path = (find_data_folder() if folder is None else Path(folder)) / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file. {_where_from(name)}")
        return _call(SHARED_SETS[name], options, path)
    path = Path(name)
    if path.is_dir():
        return _read_folder(path, options)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: there is no such file or folder, and no data set of this name "
            f"({', '.join(DATASETS)})"
        )
    if path.suffix.lower() in PICKLE_ENDINGS:
        return _read_pickle(path, options)
    return _read_archive(path, options)


def _read_archive(path: Path, options: dict[str, Any]) -> list[Recording]:
    with ArrayFile(path) as file:
        if "format" in file:
            reader: Callable[..., list[Recording]] = read_recordings
        elif any(key.endswith("_BVP") for key in file.keys):
            reader = read_stress_predict
        elif any(key.endswith("_va") for key in file.keys):
            reader = read_ceap360vr
        elif "train_vid" in file or "test_vid" in file:
            reader = read_mosi_utterances
        else:
            some = ", ".join(file.keys[:5]) or "none"
            raise RecordingError(
                path,
                "format",
                f"missing, and the keys are those of no known data set (they start with: {some})",
            )
    return _call(reader, options, path)


def _read_pickle(path: Path, options: dict[str, Any]) -> list[Recording]:
    content = load_pickle(path)
    parts = list(content.values()) if isinstance(content, dict) else []
    for field, build in (("regression_labels", recordings_of_mmsa), ("labels", recordings_of_mult)):
        if any(isinstance(part, dict) and field in part for part in parts):
            return _call(build, options, path, content)
    raise RecordingError(
        path,
        "regression_labels",
        "missing, and so are the labels of MulT: neither MMSA's nor MulT's",
    )


def _read_folder(path: Path, options: dict[str, Any]) -> list[Recording]:
    if (path / "annotations").is_dir() and (path / "features").is_dir():
        return _call(read_abaw, options, path / "annotations", path / "features")
    files = sorted(path.glob("*.npz"))
    if not files:
        raise FileNotFoundError(
            f"{path}: neither the folders annotations and features nor any .npz file is in it"
        )
    recordings = [r for file in files for r in _call(read_recordings, options, file)]
    check_unique(path, "identifiers", (recording.identifier for recording in recordings))
    return recordings


def _call(
    reader: Callable[..., list[Recording]], options: dict[str, Any], *arguments: Any
) -> list[Recording]:
    known = list(inspect.signature(reader).parameters)[len(arguments) :]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(
            f"{reader.__name__} has no option {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    return reader(*arguments, **options)


def _where_from(name: str | None = None) -> str:
    names = ORIGINALS if name is None else (name,)
    return "The originals, and what the files must hold:\n" + "\n".join(
        f"- {ORIGINALS[name]}" for name in names
    )
