"""``mmer inspect``: what the Triton kernels need on a GPU, and what they execute, with no GPU."""

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
        description="Compile the Triton kernels for GPUs that need not be here and say what each "
        "needs: registers, spills, shared memory, occupancy, machine instructions. With --run, "
        "also execute them under CPU emulation and count.",
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
    lines = (
        _execute(operators, targets, dtype, _shape("--run", arguments.executed))
        if arguments.executed
        else _compile(operators, targets, dtype, _shape("--shape", arguments.shape))
    )
    for line in lines:
        print(line, flush=True)
    return 0


def _shape(option: str, text: str) -> Any:
    from mmer.kernels.triton_backend.catalogue import Shape

    if not re.fullmatch(r"\d+x\d+x\d+", text):
        raise ValueError(f"{option} must be like 300x200x64, time_a x time_b x head_dim: {text!r}")
    time_a, time_b, head_dim = map(int, text.split("x"))
    return Shape(1, 1, time_a, time_b, head_dim)


def _compile(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any
) -> Iterator[str]:
    from mmer.kernels.triton_backend.catalogue import plans
    from mmer.kernels.triton_backend.static import examine
    from mmer.kernels.triton_backend.target import TARGETS

    yield (
        f"static, {dtype}, {shape.time_a} x {shape.time_b} steps, head_dim {shape.head_dim}\n"
        f"{'kernel':<24}{'sm':>4}{'regs':>6}{'spilled':>9}{'shared':>8}{'warps':>7}"
        f"{'programs':>10}  instructions"
    )
    for operator in operators:
        for target in targets:
            for _, plan in plans(operator, shape, dtype, TARGETS[target]):
                for launch in plan.launches:
                    report = examine(launch.compile(TARGETS[target]).kernel, target)
                    mix = " ".join(f"{name} {n}" for name, n in report.mix.most_common(6))
                    yield (
                        f"{launch.name:<24}{target:>4}{report.registers:>6}{report.spilled:>9}"
                        f"{report.shared_memory:>8}{report.warps:>7}{report.programs:>10}  {mix}"
                    )


def _execute(
    operators: list[str], targets: list[int], dtype: torch.dtype, shape: Any
) -> Iterator[str]:
    from mmer.kernels.triton_backend.catalogue import plans
    from mmer.kernels.triton_backend.target import TARGETS

    try:
        emulate_launch = import_module("tests.kernels.emulation").emulate_launch
    except ImportError as error:
        raise ValueError(
            "--run needs the emulator, which lies in tests/ of a source checkout: "
            "run it as `python -m mmer inspect --run ...` in the repository"
        ) from error
    yield f"executed under CPU emulation, one head, {dtype}"
    for operator in operators:
        for target in targets:
            if TARGETS[target].capability == 100:
                yield f"{operator} sm_100: the emulator does not know tcgen05"
                continue
            for _, plan in plans(operator, shape, dtype, TARGETS[target], device="cpu"):
                for launch in plan.launches:
                    counters = emulate_launch(launch, TARGETS[target])
                    mix = " ".join(f"{k} {n}" for k, n in counters.instructions.most_common(6))
                    yield (
                        f"{launch.name:<24} sm_{target} warp instructions "
                        f"{counters.warp_instructions}, mma {counters.mma_flops / 1e6:.1f} Mflop, "
                        f"ex2 {32 * counters.instructions['ex2']}, "
                        f"{sum(counters.sectors.values()) * 32} bytes; {mix}"
                    )
