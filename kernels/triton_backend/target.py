"""The GPU that a launch is planned for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Target:
    """What of a GPU the tables and the arithmetic depend on.

    Attributes:
        capability: CUDA capability, 10 * major + minor; 80 stands for GPUs of AMD and for the
            interpreter.
        processors: number of streaming multiprocessors.
        hip: whether it is a GPU of AMD.
    """

    capability: int
    processors: int
    hip: bool = False

    @property
    def precision(self) -> str:
        """How products of float32 are formed: three TensorFloat-32 products, or plain float32.

        Halves are multiplied exactly either way. tf32x3 keeps 22 bits of each factor where float32
        has 24; AMD's compiler has plain float32 only.
        """
        return "ieee" if self.hip else "tf32x3"


# What kernels are planned for where there is no GPU: the interpreter, `mmer inspect`, tests.
TARGETS = {
    80: Target(80, 108),
    86: Target(86, 82),
    89: Target(89, 128),
    90: Target(90, 132),
    100: Target(100, 148),
    120: Target(120, 170),
}


@functools.cache
def target_of(device: torch.device) -> Target:
    """Describe a device."""
    if device.type != "cuda":
        return TARGETS[80]
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Target(80, properties.multi_processor_count, hip=True)
    capability = 10 * properties.major + properties.minor
    return Target(capability, properties.multi_processor_count)
