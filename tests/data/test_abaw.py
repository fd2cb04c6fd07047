from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmer.data import RecordingError, load_dataset, read_abaw

HEADER = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
FRAMES = 90


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    rng = np.random.default_rng(0)
    (tmp_path / "annotations").mkdir()
    for modality in ("clip", "wav2vec"):
        (tmp_path / "features" / modality).mkdir(parents=True)
    for name, end in (("1-30-640x480", "txt"), ("7_left", "csv"), ("7_right", "csv")):
        classes = rng.integers(-1, 8, FRAMES)
        lines = HEADER + "\n".join(map(str, classes)) + "\n"
        (tmp_path / "annotations" / f"{name}.{end}").write_text(lines)
        values = rng.standard_normal((FRAMES, 6)).astype(np.float32)
        values[3] = np.nan
        np.save(tmp_path / "features" / "clip" / f"{name}.npy", values)
    sound = rng.standard_normal((150, 4)).astype(np.float16)
    np.savez(tmp_path / "features" / "wav2vec" / "7_left.npz", values=sound, rate=50.0)
    np.save(tmp_path / "features" / "wav2vec" / "7_right.npy", sound)
    return tmp_path


def read(folder: Path, **options: Any) -> Any:
    options.setdefault("rates", {"wav2vec": 50.0})
    return read_abaw(folder / "annotations", folder / "features", **options)


def test_a_folder_of_videos(folder: Path) -> None:
    first, left, right = read(folder)
    assert [r.identifier for r in (first, left, right)] == ["1-30-640x480", "7_left", "7_right"]
    assert [r.group for r in (first, left, right)] == ["1-30-640x480", "7", "7"]
    assert left.class_names == tuple(HEADER.strip().split(","))
    assert len(left.labels) == FRAMES
    assert left.labels.classes.min() == -1
    np.testing.assert_allclose(left.labels.times, np.arange(FRAMES) / 30)
    assert list(first.streams) == ["clip"]
    assert left.streams["wav2vec"].rate == right.streams["wav2vec"].rate == 50.0
    assert left.streams["clip"].rate == 30.0
    assert np.flatnonzero(~left.streams["clip"].mask).tolist() == [3]
    assert left.source.endswith("7_left.csv")


def test_the_entry_point_knows_the_folder(folder: Path) -> None:
    assert len(load_dataset(folder, rates={"wav2vec": 50.0})) == 3


def test_files_without_a_header_and_at_another_rate(folder: Path) -> None:
    file = folder / "annotations" / "7_left.csv"
    file.write_text(file.read_text().removeprefix(HEADER))
    made = read(folder, frame_rate=29.97, tolerance=0.5)
    assert len(made[1].labels) == FRAMES
    assert made[1].labels.times[-1] == pytest.approx(89 / 29.97)


def test_valence_and_arousal(folder: Path) -> None:
    lines = ["valence,arousal", "0.5,-1", "-5,-5", "-5,0.25"] + ["0,0"] * (FRAMES - 3)
    (folder / "annotations" / "7_left.csv").write_text("\n".join(lines))
    made = read(folder)[1]
    assert made.value_names == ("valence", "arousal")
    assert made.class_names == ()
    assert made.labels.classes is None
    np.testing.assert_array_equal(
        made.labels.values[:3], [[0.5, -1], [np.nan, np.nan], [np.nan, 0.25]]
    )


def test_features_at_times_of_their_own(folder: Path) -> None:
    path = folder / "features" / "wav2vec" / "7_left.npz"
    np.savez(path, values=np.ones((3, 4)), times=np.array([0.1, 0.5, 2.9]))
    stream = read(folder)[1].streams["wav2vec"]
    assert stream.rate is None
    assert stream.times.tolist() == [0.1, 0.5, 2.9]


def write_labels(text: Any, name: str = "7_left.csv") -> Any:
    return lambda folder: (folder / "annotations" / name).write_text(text)


def write_features(array: np.ndarray, name: str = "clip/7_left.npy") -> Any:
    return lambda folder: np.save(folder / "features" / name, array)


@pytest.mark.parametrize(
    ("damage", "file", "field", "words"),
    [
        (write_labels(HEADER + "0\n8\n"), "7_left.csv", "line 3", "one of 8 expressions, got 8"),
        (write_labels("0\n-2\n"), "7_left.csv", "line 2", "got -2"),
        (write_labels("0\n1.5\n"), "7_left.csv", "line 2", "got 1.5"),
        (write_labels("0\nx\n"), "7_left.csv", "line 2", "must be 1 numbers, got 'x'"),
        (write_labels("0\n\n1\n"), "7_left.csv", "line 2", "must be 1 numbers, got ''"),
        (write_labels("0\nnan\n"), "7_left.csv", "line 2", "must be 1 numbers"),
        (write_labels("0\n1,2\n"), "7_left.csv", "line 2", "must be 1 numbers"),
        (write_labels("1,2,3\n"), "7_left.csv", "line 1", "1 or 2 numbers, got 3"),
        (write_labels("0.5,2\n"), "7_left.csv", "line 1", "from -1 to 1"),
        (write_labels(HEADER), "7_left.csv", "line 1", "there is no frame"),
        (write_labels(""), "7_left.csv", "line 1", "there is no frame"),
        (
            lambda folder: (folder / "annotations" / "7_left.csv").write_bytes(b"\xff\xfe\x00"),
            "7_left.csv",
            "file",
            "is not text",
        ),
        (write_labels("a,a\n0\n"), "7_left.csv", "line 1", "must name different expressions"),
        (
            write_labels("0\n" * 9, "9.csv"),
            "9.csv",
            "features",
            "there are none for 9",
        ),
        (
            write_features(np.ones((200, 6))),
            "7_left.npy",
            "values",
            "200 samples at 30 Hz last 6.7 s, but the recording lasts 3.0 s",
        ),
        (write_features(np.ones(90)), "7_left.npy", "file", "must have shape"),
        (write_features(np.full((90, 6), "x")), "7_left.npy", "file", "kind number"),
        (write_features(np.full((90, 2), [np.nan, 1.0])), "7_left.npy", "values", "must be finite"),
        (
            lambda folder: (folder / "features" / "clip" / "7_left.npy").write_bytes(b"\x93NUMPY"),
            "7_left.npy",
            "file",
            "cannot be read as .npy",
        ),
        (
            lambda folder: np.savez(folder / "features" / "clip" / "7_left.npz", values=np.ones(3)),
            "7_left.npy",
            "file",
            "there is 7_left.npz too",
        ),
        (
            lambda folder: np.savez(folder / "features" / "wav2vec" / "7_left.npz", other=1),
            "7_left.npz",
            "values",
            "missing",
        ),
        (
            lambda folder: np.savez(
                folder / "features" / "wav2vec" / "7_left.npz",
                values=np.ones((2, 4)),
                times=[0.0, 60.0],
            ),
            "7_left.npz",
            "times",
            "end at 60.0 s, the labels at 3.0 s",
        ),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_the_field(
    folder: Path, damage: Any, file: str, field: str, words: str
) -> None:
    damage(folder)
    with pytest.raises(RecordingError, match=words) as caught:
        read(folder)
    assert caught.value.file.endswith(file)
    assert caught.value.field == field


def test_folders_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_abaw(tmp_path / "none", folder / "features")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.csv or \.txt file"):
        read_abaw(tmp_path / "empty", folder / "features")
    with pytest.raises(FileNotFoundError, match="no folder of a modality"):
        read_abaw(folder / "annotations", tmp_path / "empty")
    with pytest.raises(ValueError, match="no modality sound"):
        read(folder, rates={"sound": 1.0})
