"""The build itself, run on a copy of the sources.

A copy because a build writes beside its sources, and because an import in the repository would find
the source tree rather than what was installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
BUILD = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
PIP_INSTALL = ("-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target")
USE = """
import json, torch
import mmer
from mmer._build import compiled_parts
tensors = [torch.randn(1, 2, time, 4) for time in (3, 3, 3, 5, 5, 5)]
assert mmer.bidirectional_cross_attention(*tensors)[0].shape == (1, 2, 3, 4)
print(json.dumps({"file": mmer.__file__, "parts": compiled_parts()}))
"""

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="needs a C++ compiler",
)
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc on the PATH")


@pytest.fixture
def tree(source_tree: Path, tmp_path: Path) -> Path:
    """A copy of the sources that a test may build in."""
    return Path(shutil.copytree(source_tree, tmp_path / "mmer", symlinks=True))


def use_installed(run_python: RunPython, target: Path) -> dict[str, Any]:
    """Use the package that was installed into a folder, in a process of its own."""
    # -S: an editable install would otherwise lend its compiled parts to this one.
    path = os.pathsep.join([str(target), sysconfig.get_path("platlib")])
    used = run_python("-S", "-c", USE, folder=target.parent, PYTHONPATH=path)
    assert used.returncode == 0, used.stderr
    report = json.loads(used.stdout)
    assert Path(report["file"]).is_relative_to(target)
    return report["parts"]


def build_wheel(run_python: RunPython, tree: Path, **changes: str) -> Path:
    done = run_python("-c", BUILD, "build_wheel", str(tree / "dist"), folder=tree, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


def build_information(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("mmer/_build_info.json"))


def python_files(root: Path) -> set[str]:
    """The modules that an installation must have, by their path in it."""
    files = {
        str(Path("mmer", package, path.relative_to(root / folder)))
        for folder, package in (("mmer", ""), ("kernels", "kernels"))
        for path in (root / folder).rglob("*.py")
    }
    assert "mmer/kernels/__init__.py" in files
    return files


def test_wheel_has_every_module(run_python: RunPython, tree: Path) -> None:
    wheel = build_wheel(run_python, tree, MMER_BUILD="none")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert set(names) == python_files(tree) | {"mmer/py.typed", "mmer/_build_info.json"}
    assert len(names) == len(set(names))
    assert wheel.name.startswith("mmer_attention-")


def test_sdist_builds_the_same_wheel(run_python: RunPython, tree: Path, tmp_path: Path) -> None:
    done = run_python("-c", BUILD, "build_sdist", str(tmp_path), folder=tree)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym()]
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert not (unpacked / "mmer" / "kernels").exists()
    for source in (tree / "csrc").iterdir():
        assert (unpacked / "csrc" / source.name).exists()
    assert python_files(unpacked) == python_files(tree)

    wheel = build_wheel(run_python, unpacked, MMER_BUILD="none")
    with zipfile.ZipFile(wheel) as archive:
        assert python_files(tree) <= set(archive.namelist())


def test_nothing_is_built_on_request(run_python: RunPython, tree: Path) -> None:
    information = build_information(build_wheel(run_python, tree, MMER_BUILD="none"))
    assert information["built"] == []
    assert set(information["left_out"]) == {"operators", "native", "cuda"}
    assert information["left_out"]["operators"] == "MMER_BUILD was none when mmer was built"


def test_install_with_a_failing_compiler(run_python: RunPython, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    done = run_python(*PIP_INSTALL, str(target), str(tree), folder=tmp_path, CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    parts = use_installed(run_python, target)
    for part, source in (("operators", "csrc/operators.cpp"), ("native", "csrc/native.cpp")):
        assert parts[part] == f"{source}: /bin/false failed with exit status 1"
    assert parts["cuda"] == "FORCE_CUDA was 0 when mmer was built"


@needs_compiler
def test_the_compilers_message_is_the_reason(run_python: RunPython, tree: Path) -> None:
    for name in ("operators", "native"):
        (tree / "csrc" / f"{name}.cpp").write_text('#error "this is on purpose"\n')
    information = build_information(build_wheel(run_python, tree, CXXFLAGS="-O0"))
    assert information["built"] == []
    for name in ("operators", "native"):
        assert information["left_out"][name].startswith(f"csrc/{name}.cpp: ")
        assert "this is on purpose" in information["left_out"][name]


@needs_compiler
def test_one_part_failing_leaves_the_other(run_python: RunPython, tree: Path) -> None:
    (tree / "csrc" / "native.cpp").write_text('#error "this is on purpose"\n')
    wheel = build_wheel(run_python, tree, CXXFLAGS="-O0")
    assert build_information(wheel)["built"] == ["operators"]
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
    assert libraries == ["mmer/_operators.so"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MMER_BUILD": "require", "CXX": "/bin/false"},
            "MMER_BUILD is require, but operators is left out: csrc/operators.cpp: /bin/false",
        ),
        ({"MMER_BUILD": "require", "CXX": "no-such-compiler"}, "no-such-compiler cannot be run"),
        ({"MMER_BUILD": "sometimes"}, "MMER_BUILD must be auto, require or none"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive integer"),
        ({"FORCE_CUDA": "maybe"}, "FORCE_CUDA must be 0 or 1, got 'maybe'"),
        (
            {"FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "FORCE_CUDA is 1, but cuda is left out: CUDA_HOME is /nowhere, where there is no bin",
        ),
        pytest.param(
            {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.6 7.5"},
            "the CUDA kernels need compute capability 8.0, not 7.5",
            marks=needs_nvcc,
        ),
        pytest.param(
            {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "Ampere"},
            "TORCH_CUDA_ARCH_LIST holds 'Ampere', wanted 8.0, 9.0a or 9.0+PTX",
            marks=needs_nvcc,
        ),
    ],
)
def test_a_build_that_must_fail(
    run_python: RunPython, tree: Path, changes: dict[str, str], message: str
) -> None:
    done = run_python("-c", BUILD, "build_wheel", str(tree / "dist"), folder=tree, **changes)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list(tree.glob("dist/*.whl"))


def test_a_part_left_out_does_not_stay_from_before(run_python: RunPython, tree: Path) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    stale = [tree / "mmer" / "_operators.so", tree / "mmer" / f"_native{suffix}"]
    for path in stale:
        path.write_bytes(b"stale")
    done = run_python("setup.py", "build_ext", "--inplace", folder=tree, MMER_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert not [path for path in stale if path.exists()]
    assert (tree / "mmer" / "_build_info.json").exists()


def test_an_incomplete_build_is_not_tested(run_python: RunPython, tree: Path) -> None:
    (tree / "tests").mkdir()
    shutil.copy(CONFTEST, tree / "tests")
    (tree / "tests" / "test_nothing.py").write_text("def test_nothing(): pass\n")
    refused = run_python("-m", "pytest", "-q", "tests", folder=tree, MMER_BUILD="require")
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "MMER_BUILD is require, but operators: nothing was built" in refused.stderr


@pytest.mark.slow
@needs_compiler
def test_complete_build(run_python: RunPython, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    done = run_python(
        *PIP_INSTALL, str(target), str(tree), folder=tmp_path, MMER_BUILD="require", MAX_JOBS="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = use_installed(run_python, target)
    assert [part for part, reason in parts.items() if reason is None] == ["operators", "native"]
    # The operators are bound through the dispatcher alone, which is why they serve every Python.
    assert b"PyObject" not in (target / "mmer" / "_operators.so").read_bytes()
    # A path of the machine that built it would be wrong on every other one.
    for library in (target / "mmer").glob("*.so"):
        assert str(tree).encode() not in library.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_compiler
@needs_nvcc
def test_cuda_is_built_for_a_torch_without_it(
    run_python: RunPython, tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "site"
    done = run_python(
        *(*PIP_INSTALL, str(target), str(tree)),
        folder=tmp_path,
        MMER_BUILD="require",
        FORCE_CUDA="1",
        TORCH_CUDA_ARCH_LIST="8.0",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = use_installed(run_python, target)
    if torch.version.cuda is None:
        assert parts["cuda"] == "_cuda.so is built, but this torch is a build without CUDA"
    else:
        assert parts["cuda"] is None
