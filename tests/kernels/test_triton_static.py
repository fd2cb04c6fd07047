"""What the compilers say of every row of the Triton kernels' tables, for GPUs that are not here."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from mmer.kernels.triton_backend.catalogue import OPERATORS, Shape, plans
from mmer.kernels.triton_backend.static import examine
from mmer.kernels.triton_backend.target import TARGETS

CLASSES = {"one block": (300, 60), "two blocks": (300, 100), "longer": (300, 200)}
QUICK = {
    ("shared", "one block", "bfloat16", 64, 80),
    ("shared", "two blocks", "bfloat16", 64, 90),
    ("shared", "longer", "bfloat16", 64, 90),
    ("bidirectional", "longer", "float16", 64, 120),
    ("chunked", "longer", "bfloat16", 64, 86),
}
CASES = [
    (operator, length, dtype, head_dim, capability)
    for operator in OPERATORS
    for length in (CLASSES if operator == "shared" else ("longer",))
    for dtype in ("float32", "float16", "bfloat16")
    for head_dim in (64, 128, 256)
    for capability in TARGETS
]


@pytest.mark.parametrize(
    ("operator", "length", "dtype", "head_dim", "capability"),
    [pytest.param(*case, marks=() if case in QUICK else (pytest.mark.slow,)) for case in CASES],
)
@pytest.mark.timeout(1200)
def test_rows_keep_their_budgets(
    operator: str, length: str, dtype: str, head_dim: int, capability: int
) -> None:
    # A head for every processor: what lets two blocks run as one program.
    target = dataclasses.replace(TARGETS[capability], processors=1)
    shape = Shape(1, 1, *CLASSES[length], head_dim)
    for _, plan in plans(operator, shape, getattr(torch, dtype), target):
        for launch in plan.launches:
            report = examine(launch.compile(target).kernel, capability)
            row = launch.configuration
            assert report.spilled == 0, f"{launch.name} {row}: {report}"
            assert report.registers <= (row.registers or 255)
            assert report.shared_memory <= row.shared_memory
            assert report.programs >= 1
            if launch.name != "pair_delta":
                assert report.tensor_core_instructions > 0, report.mix
