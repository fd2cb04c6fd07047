"""What the Triton kernels execute, against two calls of a FlashAttention-style kernel of our own.

    python -m benchmarks.counters
    python -m benchmarks.counters --capability 80 --shape mosei-50x375 --direction forward

One head of each shape is executed under CPU emulation: the kernels as compiled for a GPU that is
not here. Products, exponentials, bytes and instructions are counts of that execution; the time is
modelled from them and was not measured. Instructions are those of PTX, without moves between
registers. Exponentials are divided by time_a * time_b, those of padding among them: 50 steps are
padded to 64, and 375 to 384.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mmer.kernels.triton_backend.catalogue import Shape, plans
from mmer.kernels.triton_backend.launch import Launch, Plan
from mmer.kernels.triton_backend.static import examine
from mmer.kernels.triton_backend.target import TARGETS, Target
from tests.kernels.emulation import emulate_launch

from . import flash_baseline

# batch * heads, time_a, time_b; the shapes of shapes.py that fit an emulator, and two classes more.
SHAPES = {
    "mosei-50x375": (80, 50, 375),
    "mosei-50x500": (80, 50, 500),
    "128x128": (256, 128, 128),
    "abaw-300x300": (64, 300, 300),
    "abaw-300x1500": (64, 300, 1500),
    "lightglue-512": (4, 512, 512),
    "lightglue-1024": (4, 1024, 1024),
}
HEAD_DIM = 64


class Counts(NamedTuple):
    """What the launches of one head executed, and the modelled time of all heads."""

    launches: int
    mma_flops: int
    exponentials: int
    instructions: int
    bytes: int
    microseconds: float


class Machine(NamedTuple):
    """What the model knows of a GPU."""

    clock: float  # cycles per second
    mma_flops: float  # floating point operations per cycle and processor, bfloat16
    bandwidth: float  # bytes per second of the cache that all processors share


MACHINES = {80: Machine(1.41e9, 2048, 4.0e12), 90: Machine(1.7e9, 4096, 5.5e12)}
_LAUNCH_SECONDS = 3e-6


def count(runs: Sequence[Plan], heads: int, target: Target) -> Counts:
    """Execute plans of one head."""
    machine = MACHINES[target.capability]
    launches = flops = exponentials = instructions = moved = 0
    seconds = 0.0
    for launch in (launch for plan in runs for launch in plan.launches):
        counters = emulate_launch(launch, target)
        executed = counters.warp_instructions - counters.instructions["mov"]
        sectors = 32 * sum(counters.sectors.values())
        launches += 1
        flops += counters.mma_flops
        exponentials += 32 * counters.instructions["ex2"]
        instructions += executed
        moved += sectors
        seconds += _modelled(
            launch, target, machine, heads, counters.mma_flops, counters.instructions["ex2"],
            executed, sectors,
        )  # fmt: skip
    return Counts(launches, flops, exponentials, instructions, moved, seconds * 1e6)


def _modelled(
    launch: Launch,
    target: Target,
    machine: Machine,
    heads: int,
    flops: int,
    exponentials: int,
    instructions: int,
    moved: int,
) -> float:
    """Seconds of a launch: the slowest unit of the busiest processor, and the launch itself.

    70 % of the tensor cores' peak; 16 exponentials and 4 warp instructions a cycle, fewer where few
    warps hide the latency.
    """
    programs = launch.programs
    busiest = math.ceil(programs * heads / target.processors)
    report = examine(launch.compile(target).kernel, target.capability, with_mix=False)
    warps = min(report.programs, busiest) * launch.configuration.warps / 4
    hidden = warps / (warps + 1)
    cycles = max(
        flops / programs / (0.7 * machine.mma_flops),
        exponentials * 32 / programs / 16,
        instructions / programs / 4 / hidden,
    )
    memory = moved * heads / machine.bandwidth
    return max(cycles * busiest / machine.clock, memory) + _LAUNCH_SECONDS


def ours(time_a: int, time_b: int, direction: str, heads: int, target: Target) -> list[Plan]:
    """Our launches of one head; the forward has run where the backward is wanted.

    The head is planned for its share of the processors, so that it takes the form that all take.
    """
    shape = Shape(1, 1, time_a, time_b, HEAD_DIM)
    share = dataclasses.replace(target, processors=math.ceil(target.processors / heads))
    planned = dict(plans("shared", shape, torch.bfloat16, share, device="cpu"))
    if direction == "backward":
        for launch in planned["forward"].launches:
            emulate_launch(launch, target)
    return [planned[direction]]


def baseline(time_a: int, time_b: int, direction: str, target: Target) -> list[Plan]:
    """The launches of two calls of the baseline."""
    made = []
    a, b, v_a, v_b = (torch.randn(1, time, HEAD_DIM).bfloat16() for time in (time_a, time_b) * 2)
    for q, k, v in ((a, b, v_b), (b, a, v_a)):
        forward = flash_baseline.plan_forward(q, k, v)
        if direction == "forward":
            made.append(forward)
            continue
        for launch in forward.launches:
            emulate_launch(launch, target)
        out, lse = forward.results
        assert out is not None
        assert lse is not None
        made.append(flash_baseline.plan_backward(torch.randn_like(out), q, k, v, out, lse))
    return made


def table(names: Sequence[str], directions: Sequence[str], capability: int) -> list[str]:
    """The lines of the table."""
    target = TARGETS[capability]
    lines = [
        f"bfloat16, head_dim {HEAD_DIM}, one head, sm_{capability}; executed under CPU emulation, "
        "time of all heads modelled",
        "| shape | direction | kernels | launches | mma Mflop | ex2 a score | k instructions | "
        "KiB | modelled us | instructions, ours / two calls |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        heads, time_a, time_b = SHAPES[name]
        for direction in directions:
            torch.manual_seed(0)
            results = {}
            for kind, runs in (
                ("two calls", baseline(time_a, time_b, direction, target)),
                ("ours", ours(time_a, time_b, direction, heads, target)),
            ):
                counts = count(runs, heads, target)
                results[kind] = counts
                ratio = ""
                if kind == "ours":
                    ratio = f"{counts.instructions / results['two calls'].instructions:.2f}"
                lines.append(
                    f"| {name} | {direction} | {kind} | {counts.launches} | "
                    f"{counts.mma_flops / 1e6:.1f} | "
                    f"{counts.exponentials / (time_a * time_b):.2f} | "
                    f"{counts.instructions / 1e3:.1f} | {counts.bytes / 1024:.0f} | "
                    f"{counts.microseconds:.1f} | {ratio} |"
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", type=int, default=90, choices=sorted(MACHINES))
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="default: all")
    parser.add_argument("--direction", choices=("forward", "backward"), help="default: both")
    arguments = parser.parse_args()
    directions = [arguments.direction] if arguments.direction else ["forward", "backward"]
    lines = table(arguments.shape or list(SHAPES), directions, arguments.capability)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
