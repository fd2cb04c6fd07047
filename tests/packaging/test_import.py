from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmer
from mmer import _build

ROOT = Path(__file__).resolve().parents[2]

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

# A module that is None in sys.modules cannot be imported.
WITHOUT_EXTRAS = """
import sys
from mmer._extras import EXTRAS
for distributions in EXTRAS.values():
    for module in distributions.values():
        sys.modules[module] = None
"""
ATTEND = """
import torch
import mmer
tensors = [torch.randn(2, 3, time, 4) for time in (5, 5, 5, 7, 7, 7)]
out_a, out_b = mmer.bidirectional_cross_attention(*tensors)
assert out_a.shape == (2, 3, 5, 4)
assert out_b.shape == (2, 3, 7, 4)
"""


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Look for the compiled parts in an empty folder, and remember nothing of it."""
    for name in ("load_operators", "load_cuda", "load_native"):
        monkeypatch.setattr(_build, name, getattr(_build, name).__wrapped__)
    monkeypatch.setattr(_build, "_OPERATORS", tmp_path / "_operators.so")
    monkeypatch.setattr(_build, "_CUDA", tmp_path / "_cuda.so")
    monkeypatch.setattr(_build, "_NATIVE", "mmer._native_that_is_absent")
    monkeypatch.setattr(_build, "_BUILD_INFO", tmp_path / "_build_info.json")
    return tmp_path


def test_public_names() -> None:
    assert set(mmer.__all__) >= {
        "ChunkedAttentionState",
        "bidirectional_cross_attention",
        "chunked_attention",
        "chunked_attention_step",
        "shared_cross_attention",
    }
    for name in mmer.__all__:
        assert getattr(mmer, name) is not None


def test_import_adds_only_operators_and_layers_to_torch(run_python: RunPython) -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import mmer; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = run_python("-c", code, folder=ROOT)
    assert done.returncode == 0, done.stderr
    added = {
        name
        for name in done.stdout.split()
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    parts = ("mmer.kernels", "mmer.layers", "mmer.replacement")
    assert {name for name in added if not name.startswith(parts)} <= {"mmer", "mmer._build"}


def test_operators_work_without_any_extra(run_python: RunPython) -> None:
    done = run_python("-c", WITHOUT_EXTRAS + ATTEND, folder=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_built(nothing_here: Path) -> None:
    parts = _build.compiled_parts()
    assert set(parts) == {"operators", "native", "cuda"}
    for reason in parts.values():
        assert reason is not None
        assert "nothing was built" in reason


def test_reasons_are_those_of_the_build(nothing_here: Path) -> None:
    left_out = {"operators": "no compiler", "native": "no pybind11", "cuda": "no kernels"}
    recorded = json.dumps({"built": [], "left_out": left_out})
    (nothing_here / "_build_info.json").write_text(recorded)
    assert _build.compiled_parts() == left_out


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"left_out": 3}', "{"])
def test_damaged_build_information_does_no_harm(nothing_here: Path, content: str) -> None:
    (nothing_here / "_build_info.json").write_text(content)
    for reason in _build.compiled_parts().values():
        assert reason is not None
        assert "_build_info.json cannot be read" in reason


def test_a_library_that_does_not_load_is_a_reason(nothing_here: Path) -> None:
    (nothing_here / "_operators.so").write_bytes(b"not a library")
    reason = _build.load_operators()
    assert reason is not None
    assert "_operators.so is built, but does not load" in reason


def test_a_module_that_does_not_load_is_a_reason(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing_here / "mmer_damaged.so").write_bytes(b"not a library")
    monkeypatch.syspath_prepend(nothing_here)
    monkeypatch.setattr(_build, "_NATIVE", "mmer_damaged")
    reason = _build.load_native()
    assert isinstance(reason, str)
    assert "mmer_damaged is built, but does not load" in reason


def test_a_module_of_another_version_is_a_reason(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing_here / "mmer_stale.py").write_text(
        "def build_information(): return {'version': '0.0.9'}"
    )
    monkeypatch.syspath_prepend(nothing_here)
    monkeypatch.setattr(_build, "_NATIVE", "mmer_stale")
    assert _build.load_native() == (
        f"mmer_stale is of mmer 0.0.9, not {mmer.__version__}; build it again"
    )
