"""On a GPU: first whether the Triton and CUDA kernels are right on it, then how fast they are.

    make gpu

Every number is printed only after the same kernel agreed with float64 in the same run. The table
names the GPU and goes to the terminal and to ``benchmarks/results/gpu-<name>.md``.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmer import shared_cross_attention
from mmer.kernels import available_backends, machine_reasons

from .shapes import PAIR_SHAPES, PairShape

Implementation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
_REPEATS = 20


def two_sdpa_calls(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
    """PyTorch's own fused attention, once for each direction."""
    return (
        scaled_dot_product_attention(qk_a, qk_b, v_b),
        scaled_dot_product_attention(qk_b, qk_a, v_a),
    )


def two_flash_attention_calls() -> Implementation | None:
    """FlashAttention once for each direction, if it can be imported."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None

    def run(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
        a, b, value_a, value_b = (x.transpose(1, 2) for x in (qk_a, qk_b, v_a, v_b))
        out_a, out_b = flash_attn_func(a, b, value_b), flash_attn_func(b, a, value_a)
        return out_a.transpose(1, 2), out_b.transpose(1, 2)

    return run


def two_flex_attention_calls() -> Implementation:
    """FlexAttention, compiled, once for each direction."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def run(qk_a: Tensor, qk_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, ...]:
        return compiled(qk_a, qk_b, v_b), compiled(qk_b, qk_a, v_a)

    return run


def implementations() -> dict[str, Implementation]:
    """Ours and the peers that are here."""
    found: dict[str, Implementation] = {"two SDPA calls": two_sdpa_calls}
    flash = two_flash_attention_calls()
    if flash is not None:
        found["two FlashAttention calls"] = flash
    found["two FlexAttention calls"] = two_flex_attention_calls()
    for name in available_backends():
        if name in ("cuda", "triton"):
            found[f"mmer {name}"] = lambda *x, name=name: shared_cross_attention(*x, backend=name)
    return found


def make_inputs(shape: PairShape, dtype: torch.dtype) -> list[Tensor]:
    """Random tensors of a shape on the GPU."""
    times = (shape.time_a, shape.time_b) * 2
    size = (shape.batch, shape.heads)
    return [
        torch.randn(*size, time, shape.head_dim, device="cuda", dtype=dtype, requires_grad=True)
        for time in times
    ]


def gradients(implementation: Implementation, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Outputs and gradients of their sum."""
    outputs = implementation(*inputs)
    made = torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])
    return (*outputs, *made)


def largest_error(implementation: Implementation, shape: PairShape, dtype: torch.dtype) -> float:
    """Largest difference from float64, relative, over outputs and gradients."""
    small = shape._replace(batch=1, heads=2, time_a=min(shape.time_a, 1024))
    inputs = make_inputs(small, dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    truth = gradients(lambda *x: shared_cross_attention(*x, backend="reference"), wide)
    return max(
        ((x.double() - y).abs().max() / y.abs().max()).item()
        for x, y in zip(gradients(implementation, inputs), truth, strict=True)
    )


def milliseconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Median and spread (90th less 10th percentile) of a function on the GPU."""
    for _ in range(5):
        function()
    times = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    times.sort()
    return statistics.median(times), times[int(0.9 * _REPEATS)] - times[int(0.1 * _REPEATS)]


def table(gpu: str) -> list[str]:
    """Measure everything; one line a shape, dtype and implementation."""
    lines = [
        f"Measured on {gpu}, torch {torch.__version__}; shared cross-attention.",
        "",
        "| shape | dtype | implementation | error against float64 | forward ms | spread | "
        "forward + backward ms | spread |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for shape in PAIR_SHAPES:
        for dtype in (torch.bfloat16, torch.float16):
            for name, implementation in implementations().items():
                try:
                    error = largest_error(implementation, shape, dtype)
                except Exception as problem:
                    lines.append(f"| {shape} | {dtype} | {name} | cannot run: {problem!r:.80} |")
                    continue
                if error > 64 * torch.finfo(dtype).eps:
                    lines.append(f"| {shape} | {dtype} | {name} | WRONG: {error:.1e} |")
                    continue
                inputs = make_inputs(shape, dtype)
                with torch.no_grad():
                    forward = milliseconds(lambda f=implementation, x=inputs: f(*x))
                both = milliseconds(lambda f=implementation, x=inputs: gradients(f, x))
                numbers = " | ".join(f"{x:.3f}" for x in (*forward, *both))
                lines.append(f"| {shape} | {dtype} | {name} | {error:.1e} | {numbers} |")
                print(lines[-1], flush=True)
    return lines


def main() -> int:
    """Print and write the table, or say why there is none."""
    if not torch.cuda.is_available():
        print(
            "make gpu needs a GPU that torch can use, and sees none here.\n"
            f"triton: {machine_reasons()['triton']}\ncuda: {machine_reasons()['cuda']}",
            file=sys.stderr,
        )
        return 1
    gpu = torch.cuda.get_device_name()
    lines = table(gpu)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"gpu-{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-').lower()}.md"
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"written to {path}")
    return 1 if any("WRONG" in line for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
