"""The tests of this folder once more, on the Triton kernels as Triton's interpreter runs them.

``TRITON_INTERPRET`` must be set before Triton is imported, so they run in a process of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from mmer.kernels import shared, triton_backend

ROOT = Path(__file__).resolve().parents[2]

# A sample of what takes a backend as a parameter; `make test-all` runs all of it.
QUICK = (
    "test_error_rule and dtype0 and broadcast",
    "test_error_rule and dtype0 and newest",
    "test_error_rule_for_lengths and dtype0 and lengths1",
    "test_nothing_leaks_from_padding and nan and chunked",
    "test_rows_without_a_visible_key",
)
FILES = ("test_cross_attention.py", "test_chunked_attention.py", "test_boundary.py")


def run_interpreted(*arguments: str) -> int:
    """Run pytest under the interpreter and return how many tests passed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    return int(passed[1])


@pytest.mark.timeout(900)
def test_a_sample() -> None:
    files = [f"tests/kernels/{name}" for name in FILES]
    wanted = " or ".join(f"({name})" for name in QUICK)
    assert run_interpreted(*files, "-k", f"triton and ({wanted})") == 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FILES)
def test_everything(name: str) -> None:
    assert run_interpreted(f"tests/kernels/{name}", "-k", "triton", "--timeout", "3600") > 5


def test_bfloat16_is_refused_by_the_interpreter() -> None:
    code = (
        "import torch; from mmer import shared_cross_attention\n"
        "x = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)\n"
        "shared_cross_attention(x, x, x, x, backend='triton')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "interpreter computes bfloat16 wrongly" in done.stderr


def test_an_older_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.zeros(1, 1, 2, 4)] * 4
    definition = shared.operator.DEFINITION
    monkeypatch.setattr(triton_backend, "_installed_version", lambda: (3, 6))
    assert triton_backend.refuse(definition, tensors, None) == (
        "it needs Triton 3.7 or later, installed is 3.6"
    )
    monkeypatch.setattr(triton_backend, "_installed_version", lambda: (3, 7))
    assert triton_backend.refuse(definition, tensors, None) is None


def test_nothing_of_triton_is_imported_with_the_package() -> None:
    code = "import sys, mmer; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
