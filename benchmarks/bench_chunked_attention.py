"""Chunked temporal attention beside its peers, under pytest-benchmark.

``mmer bench`` measures the same in turns, with memory, tables and plots.
"""

from __future__ import annotations

from typing import Any

from mmer.benchmark.cases import Case, Shape

from .measured import every_case, run


@every_case("chunked_attention")
def test_chunked_attention(
    benchmark: Any, shape: Shape, dtype: str, direction: str, implementation: str
) -> None:
    run(benchmark, Case("chunked_attention", shape, dtype, direction), implementation)
