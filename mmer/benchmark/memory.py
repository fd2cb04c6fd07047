"""Peak memory of a call beyond its inputs and results, each in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmer.benchmark.cases import Case, ChunkShape, PairShape
from mmer.benchmark.implementations import PEERS, our_implementations
from mmer.benchmark.problem import Problem, Unavailable, make_problem
from mmer.benchmark.timing import synchronize

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TIMEOUT, _FAREWELL = 300, 10
_M_MMAP_THRESHOLD = -3
# One head is divided among threads into ever more parts up to 8,192 steps, and then no further.
GROWTH_LENGTHS = (8_192, 12_288, 16_384)


def measure_memory(name: str, case: Case, device: str = "cpu") -> int:
    """Measure the peak memory of one call in a fresh process.

    The process has run the implementation on a tiny case (one that compiles: on the case itself)
    before it looks at its memory. What it reports is exact to about a mebibyte.

    Args:
        name: Name of the implementation.
        case: What it computes.
        device: Where.

    Returns:
        Bytes beyond inputs and results.

    Raises:
        Unavailable: It cannot be measured here; the message says why.
    """
    if device == "cpu" and not sys.platform.startswith("linux"):
        raise Unavailable("peak memory on the CPU is measured on Linux only")
    # A server that has imported all but run nothing: its children start with what it has at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_measure_here, args=(sender, name, case, device, torch.get_num_threads())
    )
    process.start()
    sender.close()
    try:
        if not receiver.poll(_TIMEOUT):
            raise Unavailable(f"it took longer than {_TIMEOUT} s")
        result = receiver.recv()
    except EOFError:
        raise Unavailable("its process died, probably for lack of memory") from None
    finally:
        process.join(_FAREWELL)
        process.kill()
        process.join()
    if isinstance(result, str):
        raise Unavailable(result)
    return int(result)


def measure_growth(name: str, dtype: str, direction: str) -> list[tuple[int, int]]:
    """Measure how the memory of shared cross-attention grows with both lengths.

    Args:
        name: Name of the implementation.
        dtype: Name of the dtype.
        direction: Forward or forward + backward.

    Returns:
        (length, bytes beyond inputs and results) of one head of dimension 64, N = M = length.
    """
    return [
        (
            length,
            measure_memory(
                name,
                Case(
                    "shared_cross_attention",
                    PairShape(f"growth-{length}", 1, 1, length, length, 64),
                    dtype,
                    direction,
                ),
            ),
        )
        for length in GROWTH_LENGTHS
    ]


def is_linear(growth: Sequence[tuple[int, int]], slack: int = 2**21) -> bool:
    """Return whether memory grows no faster than the length, up to a slack in bytes."""
    (first_length, first_bytes), (last_length, last_bytes) = growth[0], growth[-1]
    return last_bytes <= last_length / first_length * first_bytes + slack


def _measure_here(sender: object, name: str, case: Case, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        result: int | str = _peak_of_call(name, case, device)
    except Unavailable as reason:
        result = str(reason)
    except Exception as error:
        result = f"{type(error).__name__}: {error}".splitlines()[0]
    sender.send(result)  # type: ignore[attr-defined]


def _peak_of_call(name: str, case: Case, device: str) -> int:
    known = {x.name: x for x in our_implementations(device)} | PEERS
    implementation = known[name]
    if device == "cpu":
        # Otherwise the allocator keeps ever larger blocks that were freed, and uses them again.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**16)
    if not implementation.compiles:
        implementation.prepare(make_problem(_tiny(case), device))()
    problem = make_problem(case, device)
    call = implementation.prepare(problem)
    if implementation.compiles:
        call()
    results = _result_bytes(problem)
    if device != "cpu":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before - results)
    _CLEAR.write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before - results)


def _tiny(case: Case) -> Case:
    shape = case.shape
    if isinstance(shape, ChunkShape):
        return replace(case, shape=shape._replace(batch=1, heads=1, time=2 * shape.chunk_size))
    return replace(case, shape=shape._replace(batch=1, heads=1, time_a=16, time_b=16))


def _result_bytes(problem: Problem) -> int:
    from mmer.benchmark.cases import BACKWARD

    results = problem.output_gradients
    if problem.case.direction == BACKWARD:
        results = (*results, *problem.inputs)
    return sum(x.nbytes for x in results)


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Unavailable(f"{_STATUS} has no {field}")
