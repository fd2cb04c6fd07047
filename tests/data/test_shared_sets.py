from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmer.data import (
    RecordingError,
    load_dataset,
    official_split,
    read_ceap360vr,
    read_mosi_utterances,
    read_stress_predict,
)


def stress_predict() -> Any:
    arrays = {}
    for person in ("S07", "S08"):
        arrays[f"{person}_y"] = np.array([0, 1] * 30, dtype=np.int8)
        arrays[f"{person}_EDA"] = np.linspace(0, 1, 240).astype(np.float32)
        arrays[f"{person}_TEMP"] = np.full(236, 33.0, dtype=np.float32)
        arrays[f"{person}_BVP"] = np.arange(60 * 64, dtype=np.int16)
        arrays[f"{person}_ACC"] = np.ones((60 * 32, 3), dtype=np.int8)
    return arrays


def ceap360vr() -> Any:
    arrays = {}
    for name, rate in (("P1_V1", 25), ("P1_V2", 30), ("P2_V1", 25)):
        frames = 60 * rate
        arrays[f"{name}_va"] = np.full((frames, 2), 5.0, dtype=np.float32)
        arrays[f"{name}_pd"] = np.arange(frames * 5, dtype=np.float32).reshape(frames, 5)
        arrays[f"{name}_head"] = np.ones((299, 2), dtype=np.float32)
        arrays[f"{name}_fix"] = np.array([[10, 20, 1.5, -2], [30, 60, 2, 8]], dtype=np.float32)
    return arrays


def mosi_utterances() -> Any:
    arrays = {}
    for part, videos in (("train", ["b", "b", "a"]), ("test", ["c", "c"])):
        count = len(videos)
        arrays[f"{part}_vid"] = np.array(videos)
        arrays[f"{part}_y"] = np.arange(count, dtype=np.int8) % 2
        for name, width in (("text", 4), ("audio", 3), ("video", 2)):
            arrays[f"{part}_{name}"] = np.arange(count * width, dtype=np.float32).reshape(count, -1)
    return arrays


SETS = {
    "stress_predict": (stress_predict, read_stress_predict),
    "ceap360vr": (ceap360vr, read_ceap360vr),
    "mosi_utterances": (mosi_utterances, read_mosi_utterances),
}


def write(path: Any, arrays: Any) -> Any:
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_stress_predict_from_a_small_file(tmp_path: Path) -> None:
    first, second = read_stress_predict(write(tmp_path / "x.npz", stress_predict()))
    assert (first.identifier, first.subject, first.group) == ("S07", "S07", "")
    assert {name: (s.rate, s.features) for name, s in first.streams.items()} == {
        "EDA": (4, 1), "TEMP": (4, 1), "BVP": (64, 1), "ACC": (32, 3),
    }  # fmt: skip
    assert first.class_names == ("rest", "stress")
    assert first.labels.times[:2].tolist() == [0.5, 1.5]
    assert first.streams["EDA"].present
    assert not second.streams["EDA"].present
    assert second.streams["TEMP"].present


def test_ceap360vr_from_a_small_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", ceap360vr())
    first, second, third = read_ceap360vr(path)
    assert (second.identifier, second.subject, second.group) == ("P1_V2", "P1", "V2")
    assert (third.subject, third.group) == ("P2", "V1")
    assert list(first.streams) == ["pupil", "head", "fixation"]
    assert first.streams["pupil"].rate == 25
    assert second.streams["pupil"].rate == 30
    assert first.streams["pupil"].values[1].tolist() == [5, 6]
    assert first.streams["head"].rate == 5
    np.testing.assert_allclose(second.streams["fixation"].times, [20 / 30, 2])
    np.testing.assert_allclose(second.streams["fixation"].values, [[1 / 3, 1.5, -2], [1, 2, 8]])
    assert first.value_names == ("valence", "arousal")
    assert first.labels.times[-1] == pytest.approx(1499 / 25)
    lit = read_ceap360vr(path, luminance=True)[0]
    assert lit.streams["luminance"].values[1, 0] == 8


def test_mosi_from_a_small_file(tmp_path: Path) -> None:
    made = read_mosi_utterances(write(tmp_path / "x.npz", mosi_utterances()))
    assert [r.identifier for r in made] == ["train/b", "train/a", "test/c"]
    assert [len(r.labels) for r in made] == [2, 1, 2]
    assert made[1].labels.classes.tolist() == [0]
    assert made[1].streams["text"].values.tolist() == [[8, 9, 10, 11]]
    assert made[0].labels.times.tolist() == made[0].streams["video"].times.tolist() == [0, 1]
    assert made[1].subject == made[1].group == "a"
    assert list(official_split(made)) == ["train", "test"]


BROKEN = {
    "stress_predict": [
        ({"S08_y": None, "S07_y": None}, "SXX_y", "missing"),
        ({"S07_BVP": None}, "S07_BVP", "missing"),
        ({"S07_y": np.zeros(0, dtype=int)}, "S07_y", "is empty"),
        ({"S07_y": np.full(60, 2)}, "S07_y", "at most 1, got 2"),
        ({"S07_y": np.full(60, np.nan)}, "S07_y", "kind integer, got float64"),
        ({"S07_EDA": np.full(240, np.nan)}, "S07_EDA", "must be finite, got nan"),
        ({"S07_EDA": np.full((240, 2), 1.0)}, "S07_EDA", r"shape \(any\), got \(240, 2\)"),
        ({"S07_EDA": np.full(240, "x")}, "S07_EDA", "kind number"),
        ({"S07_ACC": np.ones(60 * 32)}, "S07_ACC", r"shape \(any, 3\)"),
        (
            {"S07_BVP": np.ones(60 * 32)},
            "S07_BVP",
            "1920 samples at 64 Hz last 30.0 s, but the recording lasts 60.0 s",
        ),
    ],
    "ceap360vr": [
        ({"P1_V1_va": None, "P1_V2_va": None, "P2_V1_va": None}, "PN_VM_va", "missing"),
        ({"P1_V1_head": None}, "P1_V1_head", "missing"),
        ({"X_va": np.ones((3, 2))}, "X_va", "key must be PN_VM_va"),
        ({"P1_V1_va": np.full((1500, 2), np.nan)}, "P1_V1_va", "must be finite"),
        ({"P1_V1_va": np.full((1500, 2), 9.5)}, "P1_V1_va", "at most 9, got 9.5"),
        ({"P1_V1_va": np.full((1800, 2), 5)}, "P1_V1_va", "1800 samples at 25 Hz last 72.0 s"),
        ({"P1_V2_pd": np.ones((900, 5))}, "P1_V2_pd", "900 samples at 30 Hz"),
        ({"P1_V2_pd": np.ones((1800, 1))}, "P1_V2_pd", "2 or more"),
        ({"P1_V2_head": np.ones((600, 2))}, "P1_V2_head", "wrong rate or length"),
        ({"P1_V2_fix": np.array([[9.0, 5, 0, 0]])}, "P1_V2_fix", "ends before it starts"),
        ({"P1_V2_fix": np.array([[9.0, 9999, 0, 0]])}, "P1_V2_fix", "at most 1800"),
        ({"P1_V2_fix": np.array([[9.0, 90, 0, 0], [1, 2, 0, 0]])}, "P1_V2_fix", "never decrease"),
    ],
    "mosi_utterances": [
        ({"train_vid": None}, "train_vid", "missing"),
        ({"test_text": None}, "test_text", "missing"),
        ({"train_vid": np.array(["a", "b", "a"])}, "train_vid", "'a' comes twice"),
        ({"train_vid": np.arange(3)}, "train_vid", "kind string"),
        ({"train_y": np.zeros(2, dtype=int)}, "train_y", r"shape \(3\), got \(2,\)"),
        ({"train_y": np.full(3, -1)}, "train_y", "at least 0, got -1"),
        ({"test_audio": np.full((2, 3), np.inf)}, "test_audio", "must be finite, got inf"),
        ({"test_video": np.ones((3, 2))}, "test_video", r"shape \(2, any\)"),
    ],
}


@pytest.mark.parametrize(
    ("name", "changes", "field", "words"),
    [(name, *case) for name, cases in BROKEN.items() for case in cases],
)
def test_a_broken_file_is_refused_with_its_name_and_the_field(
    tmp_path: Path, name: str, changes: Any, field: str, words: str
) -> None:
    make, read = SETS[name]
    path = write(tmp_path / "broken.npz", {**make(), **changes})
    with pytest.raises(RecordingError, match=words) as caught:
        read(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field


@pytest.mark.parametrize("name", SETS)
def test_a_truncated_file(tmp_path: Path, name: str) -> None:
    make, read = SETS[name]
    path = write(tmp_path / "x.npz", make())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecordingError, match="not a complete"):
        read(path)


@pytest.mark.parametrize("name", SETS)
def test_the_entry_point_knows_the_file_by_its_keys(tmp_path: Path, name: str) -> None:
    make, read = SETS[name]
    path = write(tmp_path / "anything.npz", make())
    assert [r.identifier for r in load_dataset(path)] == [r.identifier for r in read(path)]


def test_the_real_stress_predict(data_folder: Path) -> None:
    recordings = load_dataset("stress_predict", folder=data_folder)
    assert [r.identifier for r in recordings] == [f"S{n:02d}" for n in range(2, 30)]
    assert all(50 <= r.duration / 60 <= 60 for r in recordings)
    assert sum(len(r.labels) for r in recordings) == 92_386
    missing = [(r.identifier, n) for r in recordings for n, s in r.streams.items() if not s.present]
    assert missing == [("S08", "EDA")]


def test_the_real_ceap360vr(data_folder: Path) -> None:
    recordings = load_dataset("ceap360vr", folder=data_folder)
    assert len(recordings) == 24 * 8
    assert len({r.subject for r in recordings}) == 24
    assert {r.group for r in recordings} == {f"V{n}" for n in range(1, 9)}
    assert {round(r.duration) for r in recordings} == {60}
    assert all("luminance" not in r.streams for r in recordings)


def test_the_real_mosi(data_folder: Path) -> None:
    parts = official_split(load_dataset("mosi_utterances", folder=data_folder))
    assert {part: len(r) for part, r in parts.items()} == {"train": 62, "test": 31}
    assert {part: sum(len(x.labels) for x in r) for part, r in parts.items()} == {
        "train": 1447, "test": 752,
    }  # fmt: skip
    lengths = [len(r.labels) for r in (*parts["train"], *parts["test"])]
    assert (min(lengths), max(lengths)) == (9, 63)
    assert not {r.subject for r in parts["train"]} & {r.subject for r in parts["test"]}
    widths = {n: s.features for n, s in parts["train"][0].streams.items()}
    assert widths == {"text": 100, "audio": 73, "video": 100}
