"""The machine that is measured on: what it is, and what it can reach at best, measured."""

from __future__ import annotations

import datetime
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import mmer
from mmer._build import load_native

_COPY_ELEMENTS = 2**27
_FOLDER = Path(mmer.__file__).resolve().parent


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Return what a result must be read with.

    Returns:
        ``cpu``, ``device``, ``capability`` (the set of CPU kernels), ``threads``, ``python``,
        ``torch``, ``mmer``, ``commit`` (None outside of a checkout; with ``+`` if it has changes)
        and ``date``.
    """
    return {
        "cpu": cpu_model(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "capability": _capability(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mmer": mmer.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def measure_peaks(device: str = "cpu") -> dict[str, float]:
    """Measure what the machine reaches at best with all threads of torch.

    Returns:
        Floating point operations a second: ``float32``, and ``bfloat16`` where it is faster by
        instructions of its own; and ``memory``, bytes a second of a large copy. What cannot be
        measured is absent.
    """
    peaks = {"memory": _copy_bandwidth(device)}
    if device != "cpu":
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            peaks[name] = _product_speed(device, dtype)
        return peaks
    native = load_native()
    if isinstance(native, str):
        return peaks
    found = native.measure_arithmetic_peaks(torch.get_num_threads())
    return peaks | found | bfloat16_peak(found)


def bfloat16_peak(found: dict[str, float]) -> dict[str, float]:
    """Return the best of the peaks of bfloat16 instructions, if there is one."""
    best = max((speed for name, speed in found.items() if name.endswith("_bf16")), default=None)
    return {} if best is None else {"bfloat16": best}


def cpu_model() -> str:
    """Return the model of the CPU, as precisely as the system says it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _capability() -> str | None:
    if "cpu" not in mmer.kernels.available_backends():
        return None
    from mmer.kernels.cpu import kernel_capability

    return kernel_capability()


def _commit() -> str | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(_FOLDER), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", str(_FOLDER / "__init__.py")):
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _copy_bandwidth(device: str) -> float:
    source = torch.ones(_COPY_ELEMENTS, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / _best_of(5, lambda: target.copy_(source), device)


def _product_speed(device: str, dtype: torch.dtype) -> float:
    size = 8192
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best_of(5, lambda: matrix @ matrix, device)


def _best_of(repetitions: int, function: Any, device: str) -> float:
    from mmer.benchmark.timing import synchronize

    best = float("inf")
    for _ in range(repetitions):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
