"""``mmer doctor``: what is installed and built here, what is not, and why."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mmer
import mmer.kernels
from mmer._build import compiled_parts, load_native
from mmer._extras import EXTRAS, install_command

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's parser."""
    parser = subparsers.add_parser(
        "doctor",
        description="Say what is installed and built here, what is left out and why, "
        "which backends can run, and where the data are.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    report = examine()
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def examine() -> dict[str, Any]:
    """Examine the installation and the machine.

    Returns:
        The report, ready for JSON. ``compiled_parts`` and ``backends`` give None for what is
        usable, and a reason for what is not.
    """
    available = mmer.kernels.available_backends()
    return {
        "versions": {
            "mmer": mmer.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": installed_version("numpy"),
        },
        "folder": str(Path(mmer.__file__).resolve().parent),
        "machine": _machine(),
        "compiled_parts": compiled_parts(),
        "build": _build(),
        "backends": {
            name: None if name in available else reason
            for name, reason in mmer.kernels.machine_reasons().items()
        },
        "optional_packages": {
            extra: {distribution: _version_of(distribution) for distribution in distributions}
            for extra, distributions in EXTRAS.items()
        },
        "data": _data(),
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the report as text for a terminal: a section a paragraph, a finding a line."""
    machine, data = report["machine"], report["data"]
    sections = {
        "versions": {**report["versions"], "folder": report["folder"]},
        "machine": {
            "system": machine["system"],
            "gpus": ", ".join(machine["gpus"]) or "none that torch can use",
            "threads": machine["threads"],
            "cpu features": " ".join(machine["cpu_features"]) or "unknown",
            "cpu capability": machine["cpu_capability"] or machine["cpu_capability_problem"],
        },
        "compiled parts": {
            name: "usable" if reason is None else f"left out: {reason}"
            for name, reason in report["compiled_parts"].items()
        },
        "build": _spaced(report["build"] or {"unknown": "mmer._native is left out"}),
        "backends": {
            name: "can run here" if reason is None else f"cannot run: {reason}"
            for name, reason in report["backends"].items()
        },
        "optional packages": {
            extra: " ".join(_words_of_extra(extra, versions))
            for extra, versions in report["optional_packages"].items()
        },
        # The first sentence says what is missing, the rest where to get it.
        "data": {"folder": data["folder"] or data["problem"].partition(". ")[0]},
    }
    width = max(len(name) for findings in sections.values() for name in findings)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in findings.items())])
        for title, findings in sections.items()
    )


def _spaced(findings: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", " "): text for name, text in findings.items()}


def _machine() -> dict[str, Any]:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    native = load_native()
    features: list[str] = []
    capability: str | None = None
    problem: str | None = None
    if isinstance(native, str):
        problem = "unknown, mmer._native is left out"
    else:
        features = [name for name, present in native.cpu_features().items() if present]
        try:
            capability = native.cpu_capability()
        except ValueError as error:
            problem = str(error)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
        "threads": torch.get_num_threads(),
        "cpu_features": features,
        "cpu_capability": capability,
        "cpu_capability_problem": problem,
    }


def _build() -> dict[str, str] | None:
    native = load_native()
    return None if isinstance(native, str) else dict(native.build_information())


def _version_of(distribution: str) -> str | None:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return None


def _words_of_extra(extra: str, versions: dict[str, str | None]) -> Iterator[str]:
    present = [f"{name} {version}" for name, version in versions.items() if version is not None]
    missing = [name for name, version in versions.items() if version is None]
    yield ", ".join(present)
    if missing:
        yield f"missing: {', '.join(missing)} ({install_command(extra)})"


def _data() -> dict[str, str | None]:
    from mmer.data import find_data_folder

    try:
        return {"folder": str(find_data_folder()), "problem": None}
    except FileNotFoundError as error:
        return {"folder": None, "problem": str(error)}
