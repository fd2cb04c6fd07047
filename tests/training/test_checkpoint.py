"""Checkpoints: whole or not there, harmless to read, refused by name when broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from mmer.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from mmer.training.files import replace_file
from mmer.training.recognizer import load_recognizer

WHOLE = {"state_dict": {"weight": torch.arange(1000.0)}, "mmer": {"format_version": 1}}


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


def test_round_trip_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.ckpt"
    write_checkpoint(WHOLE, path)
    write_checkpoint({**WHOLE, "epoch": 2}, path)
    again = read_checkpoint(path)
    assert torch.equal(again["state_dict"]["weight"], torch.arange(1000.0))
    assert again["epoch"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(WHOLE, path)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_checkpoint({"state_dict": lambda: None}, path)
    with pytest.raises(FileNotFoundError), replace_file(path) as temporary:
        temporary.rename(tmp_path / "nothing" / "here")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(WHOLE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.ckpt: truncated, corrupt"):
        read_checkpoint(path)


def test_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(WHOLE, path)
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(500.0, 504.0).numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"a\.ckpt: truncated, corrupt"):
        read_checkpoint(path)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**WHOLE, "payload": Payload()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no section 'mmer'"),
        ([1, 2], "no section 'state_dict'"),
        ({**WHOLE, "mmer": {"format_version": 99}}, "format_version is 99"),
        ({**WHOLE, "mmer": {}}, "format_version is None"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: .*{message}"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.ckpt: no such checkpoint file"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_parts_that_do_not_fit_are_named(trained: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained / "best.ckpt")
    checkpoint["mmer"]["recognizer"]["embed_dim"] = 16
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: its parts do not fit"):
        load_recognizer(tmp_path / "a.ckpt")
