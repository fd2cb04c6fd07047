"""Runs Triton's interpreter as a GPU would compute, and leaves out what it cannot do."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("backend") == "triton" and parameters.get("dtype") == torch.bfloat16:
            reason = "Triton's interpreter computes bfloat16 wrongly; the emulator tests it"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def products_independent_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter form equal sums for equal products, wherever they stand in a tile.

    A tensor core does. NumPy's float32 products differ in the last bit from place to place, so that
    gradients which are differences of equal sums (one visible key: 0) would keep that bit.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(_: Any, a: Any, b: Any, accumulator: Any, *__: Any) -> Any:
        products = np.matmul(a.data, b.data, dtype=np.float64).astype(accumulator.data.dtype)
        return interpreter.TensorHandle(products + accumulator.data, accumulator.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
