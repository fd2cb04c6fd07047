from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mmer._build import load_native, load_operators

ROOT = Path(__file__).resolve().parents[2]

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def native() -> ModuleType:
    module = load_native()
    if isinstance(module, str):
        pytest.skip(f"mmer._native is left out: {module}")
    return module


@pytest.fixture(scope="session")
def operators() -> None:
    reason = load_operators()
    if reason is not None:
        pytest.skip(f"the operators are left out: {reason}")


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as a clone has them: the symlink is kept, nothing is built."""
    target = tmp_path_factory.mktemp("sources") / "mmer"
    target.mkdir()
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    for name in ("csrc", "kernels", "mmer"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=built)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Run the interpreter in a folder, with a clean environment and the given changes to it.

    The CUDA kernels take minutes to compile: they are built only where a test says so.
    """

    def run(*words: str, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        ours = ("MMER_", "PYTHONPATH", "FORCE_CUDA", "TORCH_CUDA", "MAX_JOBS", "CXX")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env={**environment, "FORCE_CUDA": "0", **changes},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
