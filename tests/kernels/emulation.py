"""Runs the launches of the Triton backend in the PTX emulator, compiled for a GPU not here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmer.kernels.triton_backend.launch import Launch, Plan
from mmer.kernels.triton_backend.target import Target
from tests.ptx import Counters, Output, load


def emulate_launch(
    launch: Launch, target: Target, *, seed: int | None = None, check: bool = True
) -> Counters:
    """Execute one launch, with every check of the emulator; outputs start as NaN.

    Args:
        launch: with tensors on the CPU.
        target: what to compile for.
        seed: order of warps and programs, see the emulator.
        check: raise where a rule of the machine was broken.

    Returns:
        What was executed.
    """
    kernel, values = launch.compile(target)
    module = load(kernel.asm["ptx"])
    entry = module[module.names[0]]
    written = {id(x) for x in launch.outputs}
    arguments: list[Any] = [
        Output(x) if isinstance(x, Tensor) and id(x) in written else x for x in values
    ]
    # Triton appends pointers to scratch memory, which these kernels do not use.
    arguments += [None] * (len(entry.parameters) - len(arguments))
    return entry.launch(
        (launch.programs,),
        (32 * launch.configuration.warps,),
        arguments,
        kernel.metadata.shared,
        seed=seed,
        check=check,
    )


def emulate(plan: Plan, target: Target, *, seed: int | None = None) -> tuple[Tensor | None, ...]:
    """Execute a plan and return its results."""
    for launch in plan.launches:
        if launch.programs:
            emulate_launch(launch, target, seed=seed)
    return plan.outcome()


def counted(plan: Plan, target: Target) -> list[Counters]:
    """Execute a plan and return what each launch executed."""
    return [emulate_launch(launch, target) for launch in plan.launches if launch.programs]
