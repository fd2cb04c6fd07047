from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmer.data import RecordingError, load_dataset, official_split, read_mult


def part(
    count: int = 3,
    lengths: tuple[int, int, int] = (50, 40, 30),
    padding: tuple[int, int, int] = (30, 15, 5),
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """One part of a feature file, padded with zeros on the left."""
    rng = np.random.default_rng(seed)
    content = {}
    for name, length, zeros in zip(("text", "audio", "vision"), lengths, padding, strict=True):
        content[name] = rng.standard_normal((count, length, 4)).astype(np.float32)
        content[name][:, :zeros] = 0
    content["labels"] = rng.uniform(-3, 3, (count, 1, 1))
    content["id"] = np.array([[b"v1", b"0.5", b"2.5"], [b"v1", b"3", b"4"], [b"v2", b"0", b"1"]])[
        :count
    ]
    content.update(changes)
    return {name: value for name, value in content.items() if value is not None}


def write(tmp_path: Path, content: Any, protocol: int = 4) -> Any:
    path = tmp_path / "mosi_data.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_the_left_padding_is_cut_and_the_rest_is_real(tmp_path: Path) -> None:
    content = part()
    content["text"][0, 40] = 0
    content["text"][0, -1] = 0
    path = write(tmp_path, {"train": content, "valid": part(1), "test": part(2)})
    made = read_mult(path)
    assert {p: len(items) for p, items in official_split(made).items()} == {
        "train": 3, "valid": 1, "test": 2,
    }  # fmt: skip
    first = made[0]
    assert first.identifier == "train/00000_v1"
    assert first.subject == first.group == "v1"
    lengths = {name: len(stream) for name, stream in first.streams.items()}
    assert lengths == {"text": 20, "audio": 25, "vision": 25}
    assert all(stream.mask.all() for stream in first.streams.values())
    np.testing.assert_array_equal(first.streams["text"].values, content["text"][0, 30:])
    assert first.streams["text"].rate == 0.8
    assert all(stream.times[0] == 0 for stream in first.streams.values())
    assert first.labels.values[0, 0] == pytest.approx(content["labels"][0, 0, 0])
    assert first.value_names == ("sentiment",)


def test_aligned_modalities_keep_their_places(tmp_path: Path) -> None:
    path = write(tmp_path, {"test": part(1, (20, 20, 20), (8, 8, 12))})
    streams = read_mult(path)[0].streams
    assert {len(stream) for stream in streams.values()} == {12}
    assert streams["vision"].mask.tolist() == [False] * 4 + [True] * 8
    assert streams["text"].mask.all()


def test_an_utterance_without_a_modality(tmp_path: Path) -> None:
    content = part()
    content["audio"][2] = 0
    made = read_mult(write(tmp_path, {"train": content}))[2]
    assert not made.streams["audio"].present
    assert made.streams["text"].present


def test_the_labels_of_iemocap(tmp_path: Path) -> None:
    yes = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
    labels = np.stack([1 - yes, yes], axis=2)
    made = read_mult(write(tmp_path, {"train": part(labels=labels, id=None)}))
    assert made[0].value_names == ("neutral", "happy", "sad", "angry")
    assert np.concatenate([r.labels.values for r in made]).tolist() == yes.tolist()
    assert made[0].identifier == made[0].subject == "train/00000"


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
def test_a_sentiment_in_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    made = read_mult(write(tmp_path, {"train": part(labels=np.arange(3.0).reshape(shape))}))
    assert [r.labels.values.tolist() for r in made] == [[[0.0]], [[1.0]], [[2.0]]]


def test_silence_becomes_zero(tmp_path: Path) -> None:
    content = part()
    content["audio"][0, 20, 1] = -np.inf
    stream = read_mult(write(tmp_path, {"train": content}))[0].streams["audio"]
    assert stream.values[5, 1] == 0
    assert stream.mask[5]


@pytest.mark.parametrize("protocol", [0, 2])
def test_names_as_objects_and_old_protocols(tmp_path: Path, protocol: int) -> None:
    names = np.array([["v1", "0"], ["v2", "1"], ["v3", "2"]], dtype=object)
    made = load_dataset(write(tmp_path, {"train": part(id=names)}, protocol))
    assert [r.subject for r in made] == ["v1", "v2", "v3"]


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ({}, "train", "missing, and so are valid and test"),
        ({"train": part(labels=None)}, "train.labels", "missing"),
        ({"train": part(labels=np.full((3, 1, 1), np.nan))}, "train.labels", "must be finite"),
        ({"train": part(labels=np.ones((3, 2, 5)))}, "train.labels", "must be .n, targets, 1."),
        ({"train": part(labels=["a", "b", "c"])}, "train.labels", "kind number"),
        ({"train": part(text=None)}, "train.text", "missing"),
        ({"train": part(text=np.ones((2, 5, 4)))}, "train.text", r"\(3, any, any\), got"),
        ({"train": part(id=["a"])}, "train.id", "must name 3 utterances"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_the_field(
    tmp_path: Path, content: Any, field: str, words: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(RecordingError, match=words) as caught:
        read_mult(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field
