"""What a run has found, and its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmer.benchmark.cases import DTYPES, Case, ChunkShape
from mmer.benchmark.implementations import ENGINE, OURS
from mmer.benchmark.memory import is_linear
from mmer.benchmark.streaming import Latency
from mmer.benchmark.timing import Timing

# What eager PyTorch offers without a compiler: the first comparison of every table.
PLAIN_TORCH = ("sdpa", "eager")


@dataclass
class Row:
    """One implementation of one case.

    Attributes:
        case: What was computed.
        implementation: Its name.
        kind: Ours, or which kind of peer.
        version: Version of its distribution.
        reason: Why there is no time, or None.
        error: Largest error as a share of what the error rule allows.
        timing: Its times; None if it did not pass the gate or could not run.
        memory: Peak bytes beyond inputs and results.
        memory_reason: Why there is no memory, or None.
    """

    case: Case
    implementation: str
    kind: str
    version: str = ""
    reason: str | None = None
    error: float | None = None
    timing: Timing | None = None
    memory: int | None = None
    memory_reason: str | None = None

    @property
    def speed(self) -> float | None:
        """Useful floating point operations a second."""
        return None if self.timing is None else self.case.operations / self.timing.median


@dataclass
class Results:
    """Everything a run has found.

    Attributes:
        machine: See :func:`mmer.benchmark.machine.describe_machine`.
        peaks: See :func:`mmer.benchmark.machine.measure_peaks`.
        rows: One for each case and implementation.
        latencies: Of streaming.
        growth: Direction -> (length, bytes) of our shared cross-attention.
        notes: What could not be measured, and why.
    """

    machine: dict[str, Any]
    peaks: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    growth: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def cases(self) -> list[Case]:
        """The cases, in order."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def of(self, case: Case) -> list[Row]:
        """The rows of a case."""
        return [row for row in self.rows if row.case == case]

    def best(self, case: Case, kinds: Sequence[str] = (), names: Sequence[str] = ()) -> Row | None:
        """The fastest measured row of a case, of some kinds or names."""
        measured = [
            row
            for row in self.of(case)
            if row.timing is not None
            and (not kinds or row.kind in kinds)
            and (not names or row.implementation in names)
        ]
        return min(measured, key=lambda row: row.timing.median if row.timing else 0.0, default=None)

    def best_peer(self, case: Case) -> Row | None:
        """The fastest of what is not ours."""
        kinds = {row.kind for row in self.rows} - {OURS}
        return self.best(case, kinds=tuple(kinds)) if kinds else None

    def share_of_peak(self, row: Row, peak: str) -> float | None:
        """Speed as a share of a measured peak; bfloat16's concerns bfloat16 alone."""
        if row.speed is None or peak not in self.peaks:
            return None
        if peak != "float32" and peak != row.case.dtype:
            return None
        return row.speed / self.peaks[peak]

    def times_faster(self, row: Row, other: Row | None) -> float | None:
        """How many times faster a row is than another."""
        if row.speed is None or other is None or other.speed is None:
            return None
        return row.speed / other.speed

    @property
    def refused(self) -> list[Row]:
        """Those of ours that did not pass the gate."""
        return [row for row in self.rows if row.kind == OURS and row.timing is None]


def record(results: Results, row: Row) -> dict[str, Any]:
    """Return a row as flat values, one column each; None where there is none."""
    case, shape, timing = row.case, row.case.shape, row.timing
    chunks = shape if isinstance(shape, ChunkShape) else None
    first, third = (None, None) if timing is None else timing.quartiles
    plain = results.best(case, names=PLAIN_TORCH)
    engine = results.best(case, kinds=(ENGINE,))
    return {
        "operator": case.operator,
        "shape": shape.name,
        "batch": shape.batch,
        "heads": shape.heads,
        "time_a": shape.time if isinstance(shape, ChunkShape) else shape.time_a,
        "time_b": None if isinstance(shape, ChunkShape) else shape.time_b,
        "head_dim": shape.head_dim,
        "chunk_size": chunks and chunks.chunk_size,
        "lookback": chunks and chunks.lookback,
        "lookahead": chunks and chunks.lookahead,
        "dtype": case.dtype,
        "direction": case.direction,
        "threads": results.machine["threads"],
        "implementation": row.implementation,
        "version": row.version,
        "reason": row.reason,
        "error_share": row.error,
        "rounds": None if timing is None else len(timing.seconds),
        "median_seconds": None if timing is None else timing.median,
        "first_quartile_seconds": first,
        "third_quartile_seconds": third,
        "useful_operations": case.operations,
        "operations_per_second": row.speed,
        "share_of_float32_peak": results.share_of_peak(row, "float32"),
        "share_of_bfloat16_peak": results.share_of_peak(row, "bfloat16"),
        "times_plain_torch": results.times_faster(row, plain),
        "times_engines": results.times_faster(row, engine),
        "times_best_peer": results.times_faster(row, results.best_peer(case)),
        "extra_memory_bytes": row.memory,
        "extra_memory_reason": row.memory_reason,
    }


def write_results(results: Results, folder: Path) -> list[Path]:
    """Write ``bench.csv`` (a line for each row) and ``bench.json`` (everything).

    Args:
        results: What to write.
        folder: Where to; made if it is not there.

    Returns:
        The files.
    """
    from mmer.training.files import replace_file

    records = [record(results, row) for row in results.rows]
    table, whole = folder / "bench.csv", folder / "bench.json"
    if records:
        with (
            replace_file(table) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    content = {
        "machine": results.machine,
        "peaks": results.peaks,
        "rows": records,
        "streaming": [asdict(x) | {"seconds": x.seconds} for x in results.latencies],
        "memory_growth": {
            direction: {"lengths_and_bytes": growth, "linear": is_linear(growth)}
            for direction, growth in results.growth.items()
        },
        "notes": results.notes,
    }
    with replace_file(whole) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [table, whole] if records else [whole]


def bytes_moved(case: Case) -> int:
    """Bytes of inputs and outputs (and of their gradients), each read or written once."""
    from math import prod

    from mmer.benchmark.cases import BACKWARD

    elements = sum(prod(shape) for shape in case.input_shapes + case.output_shapes)
    return elements * DTYPES[case.dtype].itemsize * (2 if case.direction == BACKWARD else 1)
