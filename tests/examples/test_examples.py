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
