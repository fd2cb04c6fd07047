"""Executes the PTX that nvcc and Triton emit, on the CPU, and watches every rule of the machine.

See "Debug a GPU kernel without a GPU" in CONTRIBUTING.md.
"""

from tests.ptx.arguments import InOut, Output, Packed, Scratch, Struct
from tests.ptx.compilers import compile_cuda, compile_triton
from tests.ptx.counters import Counters
from tests.ptx.findings import CHECKS, Finding, KernelFault, PtxError
from tests.ptx.launch import Kernel, LoadedModule, load

__all__ = [
    "CHECKS",
    "Counters",
    "Finding",
    "InOut",
    "Kernel",
    "KernelFault",
    "LoadedModule",
    "Output",
    "Packed",
    "PtxError",
    "Scratch",
    "Struct",
    "compile_cuda",
    "compile_triton",
    "load",
]
