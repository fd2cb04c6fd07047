from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmer.data import (
    DATASETS,
    RecordingError,
    find_data_folder,
    folder,
    load_dataset,
    write_recordings,
)
from tests.data.cases import make_recording


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine without data: neither the variable nor a folder beside anything."""
    monkeypatch.delenv("MMER_DATA", raising=False)
    repository = tmp_path / "somewhere" / "repository"
    (repository / "mmer" / "data").mkdir(parents=True)
    monkeypatch.setattr(folder, "__file__", str(repository / "mmer" / "data" / "folder.py"))
    (tmp_path / "else" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else" / "work")
    return tmp_path


def test_the_variable_comes_first_then_the_repository_then_the_working_folder(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_work = nowhere / "else" / "shared" / "data"
    by_work.mkdir(parents=True)
    assert find_data_folder() == by_work
    by_repository = nowhere / "somewhere" / "shared" / "data"
    by_repository.mkdir(parents=True)
    assert find_data_folder() == by_repository
    named = nowhere / "named"
    named.mkdir()
    monkeypatch.setenv("MMER_DATA", str(named))
    assert find_data_folder() == named


def test_without_data_one_is_told_where_they_come_from_and_how_to_convert_them(
    nowhere: Path,
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_data_folder()
    message = str(caught.value)
    assert "set MMER_DATA" in message
    for words in (
        "https://github.com/italha-d/Stress-Predict-Dataset",
        "https://github.com/cwi-dis/CEAP-360VR-Dataset",
        "CMU-MOSI",
        "numpy.savez",
        "SXX_BVP int16 (n,) at 64 Hz",
    ):
        assert words in message


def test_a_variable_that_names_no_folder_is_an_error_not_a_fall_back(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "else" / "shared" / "data").mkdir(parents=True)
    monkeypatch.setenv("MMER_DATA", str(nowhere / "typo"))
    with pytest.raises(FileNotFoundError, match=r"MMER_DATA is .*typo, but there is no"):
        find_data_folder()


def test_a_named_data_set_that_is_not_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ceap360vr\.npz: there is no such file") as caught:
        load_dataset("ceap360vr", folder=tmp_path)
    assert "CEAP-360VR-Dataset" in str(caught.value)
    assert "Stress-Predict" not in str(caught.value)


def test_generated_recordings_need_nothing() -> None:
    recordings = load_dataset("generated", subjects=2, seconds=30.0)
    assert {r.source for r in recordings} == {"generated"}
    assert "generated" in DATASETS


def test_a_file_and_a_folder_of_the_projects_own(tmp_path: Path) -> None:
    write_recordings(tmp_path / "b.npz", [make_recording("b")])
    write_recordings(tmp_path / "a.npz", [make_recording("a1"), make_recording("a2")])
    assert [r.identifier for r in load_dataset(tmp_path / "b.npz")] == ["b"]
    assert [r.identifier for r in load_dataset(str(tmp_path))] == ["a1", "a2", "b"]
    write_recordings(tmp_path / "c.npz", [make_recording("b")])
    with pytest.raises(RecordingError, match="identifiers: 'b' comes twice"):
        load_dataset(tmp_path)


def test_what_is_of_no_known_kind(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", apples=1)
    with pytest.raises(RecordingError, match=r"format: missing, .* start with: apples"):
        load_dataset(tmp_path / "x.npz")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": {"apples": 1}}))
    with pytest.raises(RecordingError, match="neither MMSA's nor MulT's"):
        load_dataset(tmp_path / "x.pkl")
    (tmp_path / "x.txt").write_text("apples")
    with pytest.raises(RecordingError, match=r"not a complete \.npz archive"):
        load_dataset(tmp_path / "x.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nor any \.npz file"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no data set of this name"):
        load_dataset("stress_predicted")


def test_an_option_that_the_reader_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generate_recordings has no option people; it has subj"):
        load_dataset("generated", people=3)
    path = write_recordings(tmp_path / "x.npz", [make_recording()])
    with pytest.raises(ValueError, match="read_recordings has no option luminance; it has none"):
        load_dataset(path, luminance=True)


def test_an_error_survives_a_worker_process() -> None:
    error = RecordingError("file.npz", "S02_EDA", "missing")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "file.npz: S02_EDA: missing"
    assert (again.file, again.field, again.problem) == ("file.npz", "S02_EDA", "missing")
