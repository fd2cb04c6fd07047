"""The command ``mmer inspect``."""

from __future__ import annotations

import re

import pytest

from mmer.cli import main
from tests.ptx.compilers import has_nvcc

pytest.importorskip("triton", reason="Triton is not installed")


def test_static_report(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--backend", "triton", "--operator", "bidirectional", "--target", "80"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("static")
    for name in ("pair_forward", "pair_delta", "bidirectional_backward"):
        line = re.search(rf"^{name}\s+80\s+(\d+)\s+(\d+)", printed, re.M)
        assert line is not None
        assert 0 < int(line[1]) <= 255
        assert int(line[2]) == 0
    assert "HMMA" in printed


def test_counters(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--backend", "triton", "--operator", "bidirectional"]
    assert main([*words, "--target", "80", "--run", "17x20x16"]) == 0
    printed = capsys.readouterr().out
    assert "executed under CPU emulation" in printed
    assert re.search(r"pair_forward +sm_80 warp instructions \d+, mma \d", printed)


@pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")
def test_cuda_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--backend", "cuda", "--operator", "shared", "--target", "80"]
    assert main([*words, "--shape", "17x20x16"]) == 0
    printed = capsys.readouterr().out
    for name in ("shared_short_bfloat16_16_rows64", "row_state_bfloat16"):
        assert re.search(rf"^{name} +80 +[1-9]\d* +0 ", printed, re.M)
    assert re.search(r"^once_backward_bfloat16_16_rows64 .* HMMA \d+", printed, re.M)
    assert main([*words, "--run", "17x20x16"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^shared_short_\w+ +sm_80 warp instructions \d+, mma 0\.\d", printed, re.M)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "70"], "--target must be one of"),
        (["--shape", "300"], "--shape must be like"),
        (["--run", "axb"], "--run must be like"),
    ],
)
def test_wrong_arguments(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *words]) == 2
    assert message in capsys.readouterr().err
