"""One step of a live stream: ``pytest benchmarks/bench_streaming.py``.

``mmer bench --operator chunked_attention_step`` shows the percentiles.
"""

from __future__ import annotations

from typing import Any

import pytest

from mmer.benchmark.streaming import PIECES, check_stream, draw_stream, make_step


@pytest.mark.parametrize("steps", PIECES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunked_attention_step(benchmark: Any, dtype: str, steps: int) -> None:
    check_stream(dtype)
    piece = draw_stream(steps, dtype)
    benchmark.group = f"{steps} steps, {dtype}"
    benchmark.pedantic(make_step(), (piece,), rounds=300, warmup_rounds=20)
