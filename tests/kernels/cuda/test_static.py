"""What nvcc says of the CUDA kernels: registers, spills, and what is in the code. Static."""

from __future__ import annotations

import math
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.cuda.emulation import SOURCES
from tests.native.run import load_setup
from tests.ptx.compilers import has_nvcc

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")

OWN_FROM = load_setup().CUDA_KERNELS_OF_ARCHITECTURES
# Threads of a block, by the kernel's suffix; 128 for all others.
THREADS = {"rows128": 256, "rows384": 256}
KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\n.*?Used (\d+) registers",
    re.DOTALL,
)


def compile_source(name: str, columns: int, element: str, arch: str, folder: Path) -> str:
    command = ["nvcc", "-cubin", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    is_own = int(re.sub(r"\D", "", arch)) >= OWN_FROM.get(f"csrc/cuda/{name}.cu", math.inf)
    compiled_for = arch.replace("sm", "compute") if is_own else "compute_80"
    command += [f"-gencode=arch={compiled_for},code={arch}"]
    command += [f"-DMMER_ELEMENT={element}", f"-DMMER_ONLY_COLUMNS={columns}"]
    output = folder / f"{name}_{columns}_{element}_{arch}.cubin"
    done = subprocess.run(
        [*command, "-o", str(output), str(SOURCES / f"{name}.cu")],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def findings(report: str, arch: str, count: int) -> list[str]:
    """What is wrong with the ``count`` kernels that nvcc reports on."""
    kernels = KERNEL.findall(report)
    found = [] if len(kernels) == count else [f"{len(kernels)} kernels, not {count}: {report}"]
    for name, stack, stores, _, registers in kernels:
        spilled = max(int(stack), int(stores))
        if spilled > 0:
            found.append(f"{name} spills {spilled} bytes on {arch}")
        threads = THREADS.get(name.rpartition("_")[2], 128)
        # A block at least: the launch fails where its registers do not fit.
        if int(registers) * threads > 65536:
            found.append(f"{name} takes {registers} registers for {threads} threads on {arch}")
    return found


QUICK = [
    ("directed_forward", 64, 2),
    ("shared_forward", 64, 2),
    ("shared_short", 64, 1),
    ("owner_backward", 64, 6),
    ("once_backward", 64, 4),
]
CLASSES = (16, 32, 64, 128, 256)
ALL = [
    *(("directed_forward", columns, 2) for columns in CLASSES),
    *(("owner_backward", columns, 6) for columns in CLASSES),
    *(("shared_forward", columns, 1 if columns == 128 else 2) for columns in CLASSES[:4]),
    *(("shared_short", columns, 1) for columns in CLASSES[:3]),
    *(("once_backward", columns, 2 if columns == 128 else 4) for columns in CLASSES[:4]),
]


def check_all(kernels: list[tuple[str, int, int]], element: str, arch: str, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda x: compile_source(x[0], x[1], element, arch, folder), kernels)
    found = [
        finding
        for (_, _, count), report in zip(kernels, reports, strict=True)
        for finding in findings(report, arch, count)
    ]
    assert not found, "\n".join(found)


def test_registers_suffice(tmp_path: Path) -> None:
    check_all(QUICK, "bfloat16", "sm_80", tmp_path)
    check_all(QUICK[:1], "float32", "sm_80", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("element", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a", "sm_120a"])
def test_registers_suffice_on_any_architecture(element: str, arch: str, tmp_path: Path) -> None:
    halves = ("shared_forward", "shared_short", "once_backward")
    compiled = [x for x in ALL if element != "float32" or x[0] not in halves]
    check_all(compiled, element, arch, tmp_path)
