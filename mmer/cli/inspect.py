"""``mmer inspect``: what the GPU kernels need on a GPU, and what they execute, with no GPU."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DTYPES = ("bfloat16", "float16", "float32")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's parser."""
    parser = subparsers.add_parser(
        "inspect",
        description="Compile the GPU kernels for GPUs that need not be here and say what each "
        "needs: registers, spills, shared memory, occupancy, machine instructions. With --run, "
        "execute them under CPU emulation instead and count.",
    )
    parser.add_argument(
        "--backend", choices=("cuda", "triton"), action="append", help="default: both"
    )
    parser.add_argument(
        "--operator",
        choices=("shared", "bidirectional", "chunked"),
        action="append",
        help="default: all",
    )
    parser.add_argument(
        "--target", type=int, action="append", help="CUDA capability, 80 for A100; default: all"
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parser.add_argument(
        "--shape",
        default="300x200x64",
        help="time_a x time_b x head_dim to compile for, %(default)s by default",
    )
    parser.add_argument(
        "--run",
        metavar="SHAPE",
        dest="executed",
        help="execute one head of this shape under CPU emulation and print the counters; needs a "
        "source checkout, whose tests hold the emulator",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    from mmer.kernels.triton_backend.catalogue import OPERATORS
    from mmer.kernels.triton_backend.target import TARGETS

    targets = arguments.target or list(TARGETS)
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"--target must be one of {sorted(TARGETS)}, got {target}")
    operators = arguments.operator or list(OPERATORS)
    dtype = getattr(torch, arguments.dtype)
    executed = arguments.executed is not None
    option, text = ("--run", arguments.executed) if executed else ("--shape", arguments.shape)
    shape = _shape(option, text)
    if executed:
        print(f"executed under CPU emulation, one head, {dtype}")
    else:
        print(_static_head(dtype, shape))
    for backend in arguments.backend or ("triton", "cuda"):
        backend_lines = _triton if backend == "triton" else _cuda
        for line in backend_lines(operators, targets, dtype, shape, executed):
            print(line, flush=True)
    return 0


def _shape(option: str, text: str) -> Any:
    from mmer.kernels.triton_backend.catalogue import Shape

    if not re.fullmatch(r"\d+x\d+x\d+", text):
        raise ValueError(f"{option} must be like 300x200x64, time_a x time_b x head_dim: {text!r}")
    time_a, time_b, head_dim = map(int, text.split("x"))
    return Shape(1, 1, time_a, time_b, head_dim)


def _static_head(dtype: torch.dtype, shape: Any) -> str:
    from mmer.kernels.triton_backend.static import TABLE_HEAD

    steps = f"{shape.time_a} x {shape.time_b} steps, head_dim {shape.head_dim}"
    return f"static, {dtype}, {steps}\n{TABLE_HEAD}"


def _counted(name: str, target: int, counters: Any) -> str:
    mix = " ".join(f"{k} {n}" for k, n in counters.instructions.most_common(6))
    return (
        f"{name:<36} sm_{target} warp instructions "
        f"{counters.warp_instructions}, mma {counters.mma_flops / 1e6:.1f} Mflop, "
        f"ex2 {counters.exponentials}, "
        f"{sum(counters.sectors.values()) * 32} bytes; {mix}"
    )


def _cuda(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any, executed: bool
) -> Iterator[str]:
    from mmer.cli import _inspect_cuda

    reason = _inspect_cuda.why_not()
    if reason is not None:
        yield f"the CUDA kernels are left out: {reason}"
    elif executed:
        for kernel in _inspect_cuda.execute_kernels(operators, targets, dtype, shape):
            yield _counted(*kernel)
    else:
        yield from _inspect_cuda.compile_kernels(operators, targets, dtype, shape)


def _triton(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any, executed: bool
) -> Iterator[str]:
    from mmer.kernels.triton_backend.catalogue import plans
    from mmer.kernels.triton_backend.static import examine
    from mmer.kernels.triton_backend.target import TARGETS

    emulate_launch = _triton_emulation() if executed else None
    for operator in operators:
        for target in targets:
            if executed and target == 100:
                yield f"{operator} sm_100: the emulator does not know tcgen05"
                continue
            device = "cpu" if executed else "meta"
            for _, plan in plans(operator, shape, dtype, TARGETS[target], device=device):
                for launch in plan.launches:
                    if emulate_launch is not None:
                        counters = emulate_launch(launch, TARGETS[target])
                        yield _counted(launch.name, target, counters)
                    else:
                        report = examine(launch.compile(TARGETS[target]).kernel, target)
                        yield report.line(launch.name, target)


def _triton_emulation() -> Any:
    try:
        return import_module("tests.kernels.emulation").emulate_launch
    except ImportError as error:
        raise ValueError(
            "--run needs the emulator, which lies in tests/ of a source checkout: "
            "run it as `python -m mmer inspect --run ...` in the repository"
        ) from error
