from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmer.data import RecordingError, collate, cut_window, load_dataset, official_split, read_mmsa


def part(
    count: int = 3,
    lengths: tuple[int, int, int] = (50, 40, 30),
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """One part of a feature file, all steps real unless told otherwise."""
    rng = np.random.default_rng(seed)
    text, audio, vision = lengths
    content = {
        "raw_text": np.array([f"said {i}" for i in range(count)]),
        "text": rng.standard_normal((count, text, 6)).astype(np.float32),
        "audio": rng.standard_normal((count, audio, 5)),
        "vision": rng.standard_normal((count, vision, 4)),
        "id": [f"video{i // 2}$_${i}" for i in range(count)],
        "regression_labels": np.linspace(-3, 3, count),
    }
    content.update(changes)
    return {name: value for name, value in content.items() if value is not None}


def write(tmp_path: Path, content: Any, protocol: int = 4) -> Any:
    path = tmp_path / "mmsa.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_unaligned_file(tmp_path: Path, protocol: int) -> None:
    tokens = np.zeros((3, 3, 50), dtype=np.float32)
    tokens[:, 1, :10] = 1
    train = part(text_bert=tokens, audio_lengths=[40, 20, 0], vision_lengths=np.array([30, 15, 6]))
    path = write(tmp_path, {"train": train, "test": part(1, seed=1)}, protocol)
    made = read_mmsa(path)
    assert [r.identifier for r in made] == [
        "train/video0$_$0", "train/video0$_$1", "train/video1$_$2", "test/video0$_$0",
    ]  # fmt: skip
    assert made[1].subject == made[1].group == "video0"
    assert made[1].source == str(path)
    assert {part: len(items) for part, items in official_split(made).items()} == {
        "train": 3, "test": 1,
    }  # fmt: skip
    streams = made[1].streams
    assert {name: len(stream) for name, stream in streams.items()} == {
        "text": 10, "audio": 20, "vision": 15,
    }  # fmt: skip
    np.testing.assert_array_equal(streams["audio"].values, train["audio"][1, :20].astype("f4"))
    assert all(stream.mask.all() for stream in streams.values())
    # All last as long as the longest, of which one step is a second.
    assert {name: stream.rate for name, stream in streams.items()} == {
        "text": 0.5, "audio": 1.0, "vision": 0.75,
    }  # fmt: skip
    assert made[1].duration == pytest.approx(20)
    assert not made[2].streams["audio"].present
    assert made[2].streams["audio"].features == 5
    assert made[0].labels.values.tolist() == [[-3.0]]
    assert made[0].labels.times is None
    assert made[0].value_names == ("sentiment",)


def test_known_rates(tmp_path: Path) -> None:
    path = write(tmp_path, {"train": part()})
    made = read_mmsa(path, rates={"text": 2.0, "audio": 20.0, "vision": 15.0})
    assert {n: s.rate for n, s in made[0].streams.items()} == {
        "text": 2.0, "audio": 20.0, "vision": 15.0,
    }  # fmt: skip
    with pytest.raises(RecordingError, match="rates has no rate of audio"):
        read_mmsa(path, rates={"text": 2.0})
    with pytest.raises(RecordingError, match=r"video0\$_\$0\.text: rate must be above 0"):
        read_mmsa(path, rates={"text": 0.0, "audio": 20.0, "vision": 15.0})


def test_an_aligned_file_keeps_its_steps_together(tmp_path: Path) -> None:
    content = part(2, (20, 20, 20))
    for name in ("text", "audio", "vision"):
        content[name][:, 12:] = 0
        content[name][:, :3] = 0
    content["vision"][:, 3:6] = 0
    content["audio"][:, 8] = 0
    made = read_mmsa(write(tmp_path, {"train": content}))[0]
    assert {len(stream) for stream in made.streams.values()} == {9}
    assert {stream.rate for stream in made.streams.values()} == {1.0}
    assert made.streams["text"].mask.all()
    assert made.streams["vision"].mask.tolist() == [False] * 3 + [True] * 6
    assert made.streams["audio"].mask.all(), "a silent step between others is real"


def test_what_is_not_finite_becomes_zero_and_stays_real(tmp_path: Path) -> None:
    content = part()
    content["audio"][0, 3] = [-np.inf, np.nan, np.inf, 1.0, 1e300]
    stream = read_mmsa(write(tmp_path, {"train": content}))[0].streams["audio"]
    assert stream.values[3].tolist() == [0, 0, 0, 1, 0]
    assert stream.mask[3]


def test_a_wholly_empty_modality_is_missing_in_a_batch(tmp_path: Path) -> None:
    content = part()
    content["vision"][1] = 0
    made = read_mmsa(write(tmp_path, {"train": content}))
    batch = collate([cut_window(recording) for recording in made])
    assert batch.masks["vision"].any(dim=1).tolist() == [True, False, True]
    assert batch.label_times is None
    assert batch.targets.shape == (3, 1, 1)


def test_the_entry_point_knows_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"train": part()})
    assert len(load_dataset(path)) == 3
    rates = {"text": 2.0, "audio": 20.0, "vision": 15.0}
    assert load_dataset(path, rates=rates)[0].streams["audio"].rate == 20.0


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ([1, 2], "train", "missing, and so are valid and test"),
        ({"other": {}}, "train", "missing, and so are valid and test"),
        ({"train": [1]}, "train", "must be a dictionary, got list"),
        ({"train": part(id=None)}, "train.id", "missing"),
        ({"train": part(id="abc")}, "train.id", "must be an array or a list, got str"),
        ({"train": part(id=["a", "b"])}, "train.text", r"shape \(2, any, any\), got"),
        ({"train": part(id=["a", "a", "b"])}, "id", "'train/a' comes twice"),
        ({"train": part(audio=None)}, "train.audio", "missing"),
        ({"train": part(audio=[1.0])}, "train.audio", "must be an array, got list"),
        ({"train": part(vision=np.ones((3, 5)))}, "train.vision", "must have shape"),
        ({"train": part(text=np.full((3, 5, 2), "x"))}, "train.text", "kind number, got <U1"),
        ({"train": part(regression_labels=None)}, "train.regression_labels", "missing"),
        (
            {"valid": part(regression_labels=np.ones(2))},
            "valid.regression_labels",
            "must be 3 numbers",
        ),
        (
            {"train": part(regression_labels=[0.0, np.nan, 1.0])},
            "train.regression_labels",
            "must be finite, got nan",
        ),
        ({"train": part(audio_lengths=[1, 2, 99])}, "train.audio_lengths", "at most 40, got 99"),
        ({"train": part(audio_lengths=[1, -2, 9])}, "train.audio_lengths", "at least 0, got -2"),
        ({"train": part(audio_lengths=[1.5, 2, 3])}, "train.audio_lengths", "kind integer"),
        ({"train": part(text_bert=np.ones((3, 3, 9)))}, "train.text_bert", "must have shape"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_the_field(
    tmp_path: Path, content: Any, field: str, words: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(RecordingError, match=words) as caught:
        read_mmsa(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field
