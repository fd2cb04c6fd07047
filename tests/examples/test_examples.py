"""The short examples run and print what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["drop_in", "drop_in_own_module", "stream"])
def test_differences_are_rounding(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    differences = [float(x) for x in re.findall(r"\d\.\de[+-]\d\d", printed)]
    assert differences
    assert max(differences) < 1e-5


@pytest.mark.parametrize(
    ("name", "library", "arguments"),
    [
        ("drop_in_lightglue", "kornia", ["--points", "48"]),
        ("drop_in_grounding_dino", "transformers", ["--positions", "600", "--tokens", "20"]),
        ("drop_in_lucidrains", "local_attention", ["--shorter", "16"]),
    ],
)
def test_drop_ins_print_equality_and_gain(
    name: str, library: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    example["main"]([*arguments, "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "-> Fused" in printed
    lines = re.findall(
        r"largest difference (\S+), time (\S+) -> (\S+) ms \(.* x\)(?:, peak memory .* MiB)?",
        printed,
    )
    assert len(lines) == 2
    for difference, before, after in lines:
        assert float(difference) < 1e-5
        assert float(before) > 0
        assert float(after) > 0
