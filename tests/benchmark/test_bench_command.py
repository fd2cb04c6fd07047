"""``mmer bench`` from the command line to its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mmer.benchmark import machine, streaming
from mmer.benchmark.problem import Unavailable
from mmer.cli import bench, main

PEAKS = {"memory": 1e10, "float32": 1e11, "amx_bf16": 1e12, "bfloat16": 1e12}


@pytest.fixture(autouse=True)
def _known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure_peaks", lambda device: dict(PEAKS))


def run(folder: Path, *words: str) -> int:
    return main(["bench", "--seconds", "0.001", "--threads", "1", "--output", str(folder), *words])


def test_files_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shapes = ("--shape", "1,2,20,30,8", "--shape", "1,2,50,8,16,1")
    assert run(tmp_path, *shapes, "--peers", "sdpa,eager,flash-attention", "--no-memory") == 0
    printed = capsys.readouterr().out
    for text in ("1x2x20x30x8", "1x2x50x8x16x1", "it is for GPUs", "x best peer", "bars.png"):
        assert text in printed

    rows = list(csv.DictReader((tmp_path / "bench.csv").open()))
    content = json.loads((tmp_path / "bench.json").read_text())
    assert len(rows) == len(content["rows"]) == 2 * 2 * 2 * 4
    assert list(rows[0]) == list(content["rows"][0])
    assert set(content) == {"machine", "peaks", "rows", "streaming", "memory_growth", "notes"}
    assert content["peaks"] == PEAKS
    assert {"cpu", "capability", "threads", "torch", "mmer", "commit", "date"} <= set(
        content["machine"]
    )
    for row in content["rows"]:
        assert (row["reason"] is None) == (row["median_seconds"] is not None)
        if row["reason"] is None:
            assert row["rounds"] >= 3
            low, high = row["first_quartile_seconds"], row["third_quartile_seconds"]
            assert low <= row["median_seconds"] <= high
            speed = row["useful_operations"] / row["median_seconds"]
            assert row["operations_per_second"] == pytest.approx(speed)
            assert row["share_of_float32_peak"] == pytest.approx(speed / 1e11)
            narrow = row["dtype"] == "bfloat16"
            share = row["share_of_bfloat16_peak"]
            assert share == (pytest.approx(speed / 1e12) if narrow else None)
            assert row["times_best_peer"] > 0
    for name in ("bars.png", "roofline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_streaming_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--operator", "chunked_attention_step", "--dtype", "float32")
    assert run(tmp_path, *words) == 0
    assert "50 steps a second" in " ".join(capsys.readouterr().out.split())
    latencies = json.loads((tmp_path / "bench.json").read_text())["streaming"]
    assert [x["steps"] for x in latencies] == list(streaming.PIECES)
    assert all(0 < x["p50"] <= x["p99"] for x in latencies)
    assert not (tmp_path / "bars.png").exists()


def test_a_wrong_stream_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    step = streaming.chunked_attention_step
    monkeypatch.setattr(streaming, "chunked_attention_step", lambda *x: step(*x) * 1.001)
    with pytest.raises(Unavailable, match="is wrong in float32"):
        streaming.measure_latency("float32", pieces=(1,), count=1)


def test_ours_that_fails_the_gate_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmer.benchmark.gate.OUTPUT_FACTOR", 1e-9)
    words = ("--shape", "1,1,20,30,8", "--peers", "sdpa", "--no-memory", "--dtype", "float32")
    assert run(tmp_path, *words, "--direction", "forward") == 1
    assert "wrong: error" in capsys.readouterr().out
    ours, peer = csv.DictReader((tmp_path / "bench.csv").open())
    assert ours["median_seconds"] == peer["median_seconds"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "1,2"], "--shape must be"),
        (["--dtype", "int8"], "--dtype must be of"),
        (["--operator", "attention"], "--operator must be of"),
        (["--peers", "numpy"], "--peers: there is no 'numpy'"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--seconds", "0"], "--seconds must be positive"),
    ],
)
def test_wrong_words(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_memory_that_is_not_linear_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(results: object, *_: object) -> None:
        results.growth["forward"] = [(1_000, 2**22), (4_000, 2**26)]

    monkeypatch.setattr(bench, "_measure_growth", grow)
    monkeypatch.setattr(bench, "_measure_cases", lambda *_: None)
    monkeypatch.setattr(bench, "_measure_streaming", lambda *_: None)
    monkeypatch.setattr("mmer.benchmark.plots.plot_results", lambda *_: [])
    assert run(tmp_path) == 1
