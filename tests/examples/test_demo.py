"""The demo, on a small experiment: the table, the picture, and the way without data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mmer._console import wide_console
from tests.training.cases import tiny_config

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_table_and_picture(
    demo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(trainer__max_epochs=1, data__modalities=["EDA", "BVP"])
    monkeypatch.setattr(demo, "choose_config", lambda *_: config)
    for run in ("run-1", "run-2"):
        assert demo.main(["--output", str(tmp_path), "--workers", "1"]) == 0
        assert (tmp_path / run / "results.json").is_file()
        assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for text in ("EDA alone", "BVP alone", "EDA + BVP fused", "elapsed time alone", "timeline.png"):
        assert text in printed


def test_without_data_it_says_where_they_are_from_and_generates(
    demo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MMER_DATA", str(tmp_path))
    assert demo.choose_config(wide_console(), False).data.dataset == "generated"
    printed = capsys.readouterr().out
    assert "Stress-Predict" in printed
    assert "https://" in printed
    assert "GENERATED RECORDINGS" in printed
