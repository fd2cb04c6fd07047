"""The CUDA C++ kernels for ``mmer inspect``: compiled by nvcc, or executed under CPU emulation.

Both need a source checkout, with the kernels and the launch plans of ``tests/kernels/cuda``.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

OPERATORS = {
    "shared": ("shared_cross_attention", 2),
    "bidirectional": ("bidirectional_cross_attention", 3),
    "chunked": ("chunked_attention", 0),
}


def why_not() -> str | None:
    """Return why the kernels cannot be inspected here, or None."""
    if shutil.which("nvcc") is None:
        return "no nvcc is on the PATH"
    try:
        _emulation()
    except ImportError:
        return "it needs a source checkout: run `python -m mmer inspect` in the repository"
    return None


def compile_kernels(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any
) -> Iterator[str]:
    """Yield a line for each kernel that would be launched, read off its machine code."""
    from mmer.kernels.triton_backend.static import Report, examine_cubin

    emulation = _emulation()
    for operator in operators:
        for target in targets:
            for launch in _launches(operator, target, dtype, shape, execute=False):
                plan = launch.plan
                source, defines = emulation.source_of(plan.kernel)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "kernel.cubin"
                    _compile(emulation.SOURCES / source, defines, target, path)
                    reports = examine_cubin(path, plan.shared_bytes, plan.threads // 32, target)
                report: Report = reports[plan.kernel]
                yield report.line(plan.kernel.removeprefix("mmer_"), target)


def execute_kernels(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any
) -> Iterator[tuple[str, int, Any]]:
    """Yield name, target and counters of each kernel that one call of an operator launches."""
    for operator in operators:
        for target in targets:
            for launch in _launches(operator, target, dtype, shape, execute=True):
                yield launch.plan.kernel.removeprefix("mmer_"), target, launch.counters


def _emulation() -> Any:
    return import_module("tests.kernels.cuda.emulation")


def _compile(source: Path, defines: dict[str, Any], target: int, path: Path) -> None:
    command = ["nvcc", "-cubin", "-O3", "-std=c++17", "--expt-relaxed-constexpr"]
    command += [f"-arch=sm_{target}", *(f"-D{name}={value}" for name, value in defines.items())]
    subprocess.run([*command, "-o", str(path), str(source)], check=True)


def _launches(
    operator: str, target: int, dtype: torch.dtype, shape: Any, *, execute: bool
) -> list[Any]:
    """Launches of a forward and a backward pass on a GPU, all of whose processors have a head."""
    import mmer.kernels

    name, projections = OPERATORS[operator]
    size_a = (shape.batch, shape.heads, shape.time_a, shape.head_dim)
    size_b = (shape.batch, shape.heads, shape.time_b, shape.head_dim)
    if operator == "chunked":
        sizes, options = [size_a] * 3, {"chunk_size": 64}
    elif operator == "shared":
        sizes, options = [size_a, size_b] * projections, {}
    else:
        sizes, options = [size_a] * projections + [size_b] * projections, {}
    inputs = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
    # No block of the kernels takes more than one of 8.0 has.
    shared_bytes = (99 if target in (86, 89, 120) else 163) * 1024
    with _emulation().emulated_backend(
        arch=f"sm_{target}", shared_bytes=shared_bytes, execute=execute
    ) as machine:
        results = getattr(mmer.kernels, name)(*inputs, backend="cuda", **options)
        outputs = [results] if operator == "chunked" else list(results)
        torch.autograd.grad(outputs, inputs, [torch.randn_like(x) for x in outputs])
    launches: list[Any] = machine.launches
    return launches
