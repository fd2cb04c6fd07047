from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib

import mmer
from mmer._extras import EXTRAS, extra_with, install_command

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"[a-z0-9-]+==[0-9][0-9A-Za-z.]*")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", text)[0] for text in requirements}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert all(PIN.fullmatch(line) for line in lines)
    return dict(line.split("==") for line in lines)


def test_names(project: dict[str, Any]) -> None:
    assert project["name"] == "mmer-attention"
    assert project["scripts"] == {"mmer": "mmer.cli:main"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_doctor_and_errors_know_the_extras(project: dict[str, Any], extra: str) -> None:
    assert set(EXTRAS[extra]) == names(project["optional-dependencies"][extra])


def test_every_direct_dependency_is_pinned(project: dict[str, Any]) -> None:
    direct = set(names(project["dependencies"]))
    for requirements in project["optional-dependencies"].values():
        direct |= names(requirements)
    assert direct - {"mmer-attention"} <= set(pins())
    assert pins()["torch"] == "2.13.0"
    assert pins()["triton"] == "3.8.0"


@pytest.mark.parametrize("distributions", EXTRAS.values(), ids=EXTRAS)
def test_modules_of_the_extras_have_the_stated_names(distributions: dict[str, str]) -> None:
    for distribution, module in distributions.items():
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        assert find_spec(module) is not None, distribution


def test_the_extra_of_a_module() -> None:
    assert extra_with("lightning.pytorch") == "train"
    assert extra_with("triton") == "triton"
    assert extra_with("torch") is None
    assert install_command("train") == "pip install 'mmer-attention[train]'"


def test_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{mmer.__version__}]" in changelog
