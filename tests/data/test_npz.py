from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmer.data import Labels, Recording, RecordingError, Stream, read_recordings, write_recordings
from tests.data.cases import make_recording

NAMES = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1)
NAMES = NAMES.filter(str.isprintable)


def assert_same(a: Any, b: Any) -> Any:
    for name in ("identifier", "subject", "group", "source", "class_names", "value_names"):
        assert getattr(a, name) == getattr(b, name)
    assert list(a.streams) == list(b.streams)
    for name in a.streams:
        x, y = a.streams[name], b.streams[name]
        assert x.rate == y.rate
        for part in ("values", "times", "mask"):
            np.testing.assert_array_equal(getattr(x, part), getattr(y, part))
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None:
        for part in ("classes", "values", "times"):
            np.testing.assert_array_equal(getattr(a.labels, part), getattr(b.labels, part))


@st.composite
def streams(draw: Any) -> Any:
    count, features = draw(st.integers(0, 12)), draw(st.integers(1, 3))
    values = draw(
        hnp.arrays(np.float32, (count, features), elements=st.floats(-(2.0**99), 2.0**99, width=32))
    )
    mask = draw(hnp.arrays(bool, count))
    if draw(st.booleans()):
        rate, start = draw(st.floats(0.01, 1e4)), draw(st.floats(0, 1e4))
        return Stream.regular(values, rate, start=start, mask=mask)
    times = draw(hnp.arrays(np.float64, count, elements=st.floats(0, 1e6)))
    return Stream.at(values, np.sort(times), mask=mask)


@st.composite
def recordings(draw: Any) -> Any:
    frames = draw(st.integers(0, 5))
    labels = draw(
        st.sampled_from(
            [
                None,
                Labels(classes=np.arange(frames) - 1, times=np.arange(frames)),
                Labels(values=np.array([[0.5, np.nan]])),
                Labels(
                    classes=np.zeros(frames, dtype=int),
                    values=np.full((frames, 1), np.nan),
                    times=np.arange(frames) + 0.5,
                ),
            ]
        )
    )
    return Recording(
        identifier=draw(NAMES),
        subject=draw(NAMES),
        group=draw(st.one_of(st.just(""), NAMES)),
        streams=draw(st.dictionaries(NAMES, streams(), min_size=1, max_size=3)),
        labels=labels,
        class_names=("a", "b", "c", "d", "e"),
        value_names=(),
        source=draw(st.sampled_from(["", "there.npz"])),
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.lists(recordings(), max_size=3, unique_by=lambda r: r.identifier))
def test_what_is_written_is_read(tmp_path: Path, given: Any) -> None:
    path = write_recordings(tmp_path / "x.npz", given, compress=False)
    read = read_recordings(path)
    assert len(read) == len(given)
    for a, b in zip(given, read, strict=True):
        assert_same(a, b)


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "hand.npz"
    np.savez(
        path,
        **{
            "format": "mmer-recordings",
            "version": 1,
            "identifiers": ["one"],
            "one/streams": ["pulse", "blink"],
            "one/streams/pulse/values": np.arange(8, dtype=np.int16),
            "one/streams/pulse/rate": 4,
            "one/streams/blink/values": np.ones((2, 1)),
            "one/streams/blink/times": np.array([0.3, 1.1]),
            "one/labels/classes": np.array([1], dtype=np.int8),
            "something/else": np.ones(3),
        },
    )
    (made,) = read_recordings(path)
    assert made.subject == "one"
    assert made.source == str(path)
    assert made.streams["pulse"].values[:, 0].tolist() == list(range(8))
    assert made.streams["pulse"].rate == 4.0
    assert made.streams["blink"].rate is None
    assert made.labels.times is None


def test_the_same_recordings_give_the_same_bytes(tmp_path: Path) -> None:
    a = write_recordings(tmp_path / "a.npz", [make_recording()]).read_bytes()
    assert write_recordings(tmp_path / "b.npz", [make_recording()]).read_bytes() == a


def test_an_older_file_stays_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recordings(tmp_path / "x.npz", [make_recording("old")])

    def fail(file: str, **arrays: Any) -> Any:
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_recordings(path, [make_recording("new")])
    assert read_recordings(path)[0].identifier == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_slashes_in_names_may_not_make_one_key_of_two(tmp_path: Path) -> None:
    a = Recording("a", "a", streams={"x/labels": Stream.regular([1.0], 1.0)})
    b = Recording(
        "a/streams/x",
        "b",
        streams={"y": Stream.regular([1.0], 1.0)},
        labels=Labels(values=np.array([[1.0]])),
    )
    with pytest.raises(ValueError, match="'a/streams/x/labels/values' twice"):
        write_recordings(tmp_path / "x.npz", [a, b])


def test_two_recordings_of_one_name_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="identifier 'r' comes twice"):
        write_recordings(tmp_path / "x.npz", [make_recording(), make_recording()])
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        write_recordings(tmp_path / "none" / "x.npz", [make_recording()])
    assert not list(tmp_path.iterdir())


BROKEN = {
    "no format": ({"format": None}, "format", "missing"),
    "another format": ({"format": "other"}, "format", "must be 'mmer-recordings', got 'other'"),
    "a later version": ({"version": 2}, "version", "this release reads 1, got 2"),
    "a fractional version": ({"version": 1.5}, "version", "kind integer, got float64"),
    "no identifiers": ({"identifiers": None}, "identifiers", "missing"),
    "a name twice": ({"identifiers": ["r", "r"]}, "identifiers", "'r' comes twice"),
    "no streams": ({"r/streams": None}, "r/streams", "missing"),
    "an unknown stream": ({"r/streams": ["z"]}, "r/streams/z/values", "missing"),
    "numbers as names": ({"r/streams": [1, 2]}, "r/streams", "kind string, got int64"),
    "an empty subject": ({"r/subject": ""}, "r", "Recording.subject must not be empty"),
    "text as values": ({"r/streams/slow/values": ["a"]}, "r/streams/slow/values", "kind number"),
    "a cube": ({"r/streams/slow/values": np.ones((2, 2, 2))}, "r/streams/slow", "Stream.values"),
    "NaN values": (
        {"r/streams/slow/values": np.full((10, 1), np.nan)},
        "r/streams/slow",
        "must be finite where the mask is True",
    ),
    "no rate, no times": (
        {"r/streams/slow/rate": None},
        "r/streams/slow/times",
        "there is no rate",
    ),
    "a rate of zero": ({"r/streams/slow/rate": 0.0}, "r/streams/slow", "rate must be above 0"),
    "a wrong rate": (
        {"r/streams/slow/times": np.arange(10.0)},
        "r/streams/slow",
        "Stream.rate is 0.5 Hz, but the times are those of 1 Hz",
    ),
    "a mask of numbers": ({"r/streams/slow/mask": np.ones(10)}, "r/streams/slow/mask", "kind bool"),
    "a short mask": ({"r/streams/slow/mask": np.ones(3, bool)}, "r/streams/slow", "one length"),
    "falling times": (
        {"r/streams/event/times": np.arange(7.0)[::-1]},
        "r/streams/event",
        "never decrease",
    ),
    "NaN times": (
        {"r/streams/event/times": np.full(7, np.nan)},
        "r/streams/event/times",
        "must be finite",
    ),
    "fractional classes": ({"r/labels/classes": np.ones(20)}, "r/labels/classes", "kind integer"),
    "an unnamed class": ({"r/labels/classes": np.full(20, 9)}, "r", "holds class 9"),
    "infinite labels": (
        {"r/labels/values": np.full((20, 2), np.inf)},
        "r/labels",
        "finite or NaN",
    ),
    "labels without times": ({"r/labels/times": None}, "r/labels", "Labels.times may be None only"),
    "pickled objects": (
        {"r/streams/slow/values": np.array([None, {}], dtype=object)},
        "r/streams/slow/values",
        "holds pickled objects",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_the_field(tmp_path: Path, case: str) -> None:
    changes, field, words = BROKEN[case]
    path = write_recordings(tmp_path / "x.npz", [make_recording()])
    with np.load(path) as file:
        arrays = dict(file)
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(RecordingError) as caught:
        read_recordings(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field
    assert words in caught.value.problem
    assert str(caught.value).startswith(f"{path}: {field}: ")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive(tmp_path: Path, share: float) -> None:
    path = write_recordings(tmp_path / "x.npz", [make_recording()])
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordingError, match=r"x\.npz: file: not a complete \.npz archive"):
        read_recordings(path)


def test_an_archive_with_damaged_bytes(tmp_path: Path) -> None:
    path = write_recordings(tmp_path / "x.npz", [make_recording(seconds=2000)], compress=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"cannot be read .*CRC"):
        read_recordings(path)


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"
    header += b" " * (118 - 1 - len(header)) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 80
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("format.npy", member)
    with pytest.raises(RecordingError, match="promises 8000000000128 bytes, but there are 208"):
        read_recordings(path)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_recordings(tmp_path / "none.npz")
