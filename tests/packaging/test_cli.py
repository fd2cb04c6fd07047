from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import mmer
from mmer.cli import COMMANDS, doctor, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], None]:
    """Put a function in place of what ``mmer predict`` runs."""

    def install(run: Callable[..., int]) -> None:
        module = ModuleType("mmer.cli.predict")
        module.add_parser = lambda subparsers: subparsers.add_parser("predict")
        module.run = run
        monkeypatch.setitem(sys.modules, "mmer.cli.predict", module)
        monkeypatch.setattr("mmer.cli.predict", module, raising=False)

    return install


def failing(error: BaseException) -> Callable[..., int]:
    def run(arguments: object) -> int:
        raise error

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"mmer {name}" in capsys.readouterr().out


def test_help_lists_every_command_and_imports_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COMMANDS:
        monkeypatch.setitem(sys.modules, f"mmer.cli.{name}", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert name in printed
        assert summary.split(",")[0] in " ".join(printed.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"mmer {mmer.__version__}\n"


@pytest.mark.parametrize("words", [[], ["cure"], ["doctor", "--xml"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: mmer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("model.heads must be positive,\n got 0"),
        FileNotFoundError(2, "No such file or directory", "absent.yaml"),
    ],
)
def test_a_users_mistake_is_told_in_one_line(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.delenv("MMER_DEBUG", raising=False)
    command(failing(error))
    assert main(["predict"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"mmer predict: error: {' '.join(str(error).split())}\n"


def test_debug_shows_the_traceback(
    command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMER_DEBUG", "1")
    command(failing(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        main(["predict"])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug")])
def test_a_bug_is_not_hidden(command: Callable[..., None], error: Exception) -> None:
    command(failing(error))
    with pytest.raises(type(error), match="a bug"):
        main(["predict"])


def test_a_missing_extra_is_named(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(failing(ModuleNotFoundError("absent", name="lightning.pytorch")))
    assert main(["predict"]) == 2
    printed = capsys.readouterr().err
    assert "needs lightning" in printed
    assert "pip install 'mmer-attention[train]'" in printed
    assert printed.count("\n") == 1


def test_a_missing_module_of_no_extra_is_a_bug(command: Callable[..., None]) -> None:
    command(failing(ModuleNotFoundError("absent", name="mmer.nonsense")))
    with pytest.raises(ModuleNotFoundError):
        main(["predict"])


def test_interrupt(command: Callable[..., None]) -> None:
    command(failing(KeyboardInterrupt()))
    assert main(["predict"]) == 130


def test_doctor_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    report = doctor.examine()
    assert mmer.__version__ in printed
    for part, reason in report["compiled_parts"].items():
        assert part in printed
        assert reason is None or f"left out: {reason}" in printed
    for backend in ("cuda", "triton", "cpu", "reference"):
        assert backend in printed
    assert "reference" in mmer.kernels.available_backends()


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["mmer"] == mmer.__version__
    assert set(report["compiled_parts"]) == {"operators", "native", "cuda"}
    assert report["compiled_parts"]["cuda"] is not None
    assert report["backends"]["reference"] is None
    usable = [name for name, reason in report["backends"].items() if reason is None]
    assert usable == list(mmer.kernels.available_backends())


def test_doctor_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(distribution: str) -> str | None:
        return None if distribution == "lightning" else "1.0"

    monkeypatch.setattr(doctor, "_version_of", absent)
    monkeypatch.setattr(doctor, "load_native", lambda: "no compiler")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "missing: lightning (pip install 'mmer-attention[train]')" in printed
    assert "mmer._native is left out" in printed


def test_doctor_reports_a_capability_that_cannot_be(
    native: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMER_CPU_CAPABILITY", "nonsense")
    assert main(["doctor"]) == 0
    assert "MMER_CPU_CAPABILITY must be one of" in capsys.readouterr().out


def test_doctor_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMER_DATA", str(tmp_path / "absent"))
    report = doctor.examine()
    assert report["data"]["folder"] is None
    assert report["data"]["problem"]


def test_commands_are_modules_with_the_two_functions() -> None:
    for name in COMMANDS:
        module = import_module(f"mmer.cli.{name}")
        assert callable(module.add_parser)
        assert callable(module.run)


def test_module_is_the_command(run_python: Callable[..., object]) -> None:
    done = run_python("-m", "mmer", "--version", folder=ROOT)
    assert done.stdout == f"mmer {mmer.__version__}\n"
