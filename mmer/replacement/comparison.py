"""What the replacement changes: the numbers, the time and the memory, in one process."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .swap import replace_attention

Call = Callable[[nn.Module], Iterable[Tensor]]


class Cost(NamedTuple):
    """What a call costs.

    Attributes:
        seconds: median time.
        peak_bytes: most memory in use during a call beyond what was in use before it, None where
            that cannot be measured. On the CPU this needs Linux.
    """

    seconds: float
    peak_bytes: int | None


class Comparison(NamedTuple):
    """A model before and after its attention was replaced.

    Attributes:
        difference: largest difference of the results, relative to the largest of them.
        before: cost with the library's attention.
        after: cost with the fused operators.
    """

    difference: float
    before: Cost
    after: Cost

    def __str__(self) -> str:
        """One line: difference, time and memory, with the factors that they shrink by."""
        words = [f"largest difference {self.difference:.1e}"]
        words.append(_change("time", 1e3 * self.before.seconds, 1e3 * self.after.seconds, "ms"))
        if self.before.peak_bytes is not None and self.after.peak_bytes is not None:
            peaks = self.before.peak_bytes / 2**20, self.after.peak_bytes / 2**20
            words.append(_change("peak memory", *peaks, "MiB"))
        return ", ".join(words)


def _change(what: str, before: float, after: float, unit: str) -> str:
    first, second = (f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (before, after))
    factor = f" ({before / after:.1f} x)" if after > 0 else ""
    return f"{what} {first} -> {second} {unit}{factor}"


def compare_attention(model: nn.Module, call: Call, *, repeats: int = 5) -> Comparison:
    """Run a model with its own attention and with the fused operators, turn by turn.

    Args:
        model: is left as it was.
        call: runs the model and returns tensors that should be equal, as ``lambda model:
            [model(x)]``. Gradients, if they are to be computed, have to be deleted or replaced by
            the call itself.
        repeats: how often each is timed, after one call that is not.

    Returns:
        The largest difference, and both costs.

    Raises:
        ValueError: nothing in the model can be replaced, or ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    wanted = [x.detach() for x in call(model)]
    with replace_attention(model) as replacement:
        if not replacement.replaced:
            raise ValueError(f"model must have attention that can be replaced: {replacement}")
        found = [x.detach() for x in call(model)]
    largest = max(float(x.abs().max()) for x in wanted)
    difference = max(float((x - y).abs().max()) for x, y in zip(found, wanted, strict=True))
    device = wanted[0].device
    del wanted, found

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        times[0].append(_seconds(model, call, device))
        with replace_attention(model):
            times[1].append(_seconds(model, call, device))
    before = _peak_bytes(model, call, device)
    with replace_attention(model):
        after = _peak_bytes(model, call, device)
    return Comparison(
        difference / max(largest, torch.finfo(torch.float32).tiny),
        Cost(statistics.median(times[0]), before),
        Cost(statistics.median(times[1]), after),
    )


def _seconds(model: nn.Module, call: Call, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call(model)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(model: nn.Module, call: Call, device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(model)
        return torch.cuda.max_memory_allocated(device) - before
    process = Path("/proc/self")
    try:
        # glibc: give back what is free but kept, so that using it again counts.
        ctypes.CDLL(None).malloc_trim(0)
        # Linux: forget the peak of this process so far.
        (process / "clear_refs").write_text("5")
    except (AttributeError, OSError):
        return None
    before = _status(process, "VmRSS")
    call(model)
    return _status(process, "VmHWM") - before


def _status(process: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{process / 'status'} has no {name}")
    return 1024 * int(found[1])
