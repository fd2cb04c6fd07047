"""Counts what the CUDA kernels execute for one head, beside two calls of a FlashAttention-2 kernel.

    python -m benchmarks.cuda_counters

The backward pass stands beside two calls of these kernels' own backward, which like ours adds up
nothing by atomics: seven products a direction, where ours makes five for both roles of a row.

Executed under emulation, never on a GPU: the counts are exact and the same on every machine. The
times are **modelled** from them: the busiest multiprocessor's tensor cores, shared memory,
exponentials and instruction issue, whichever takes longest, at 65 % of its peak; global memory at
its bandwidth; 1.5 us for each launch. mma.sync multiplies at the rate given, PTX instructions count
as machine instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmer.kernels import bidirectional_cross_attention, shared_cross_attention
from tests.error_rule import random_tensor
from tests.kernels.cuda.emulation import SOURCES, emulated_backend
from tests.ptx import Counters, Output, Struct, compile_cuda

BASELINE = Path(__file__).with_name("flash_two_calls.cu")
HEAD_DIM = 64
SHAPES = (
    ("MulT on MOSEI", 16, 5, 50, 375),
    ("ABAW windows", 8, 8, 300, 300),
    ("LightGlue", 1, 4, 512, 512),
)
EFFICIENCY, LAUNCH_US = 0.65, 1.5


@dataclass(frozen=True)
class Gpu:
    """What a multiprocessor does in a clock, and what all share."""

    name: str
    multiprocessors: int
    clock_ghz: float
    multiply_adds: int
    shared_bytes: int
    exponentials: int
    instructions: int
    bandwidth: float  # bytes a microsecond

    def modelled_us(self, counters: Counters, heads: int, blocks: int, launches: int) -> float:
        """Modelled time of a call whose counters are those of one head in ``blocks`` blocks."""
        total = heads * blocks
        # Waves of blocks, one a multiprocessor: the last one counts in full while there are few.
        busiest = math.ceil(total / self.multiprocessors)
        share = (
            busiest if total < 6 * self.multiprocessors else total / self.multiprocessors
        ) / blocks
        clocks = max(
            counters.mma_flops / 2 / self.multiply_adds,
            128 * sum(counters.wavefronts.values()) / self.shared_bytes,
            counters.exponentials / self.exponentials,
            counters.warp_instructions / self.instructions,
        )
        memory = heads * counters.global_bytes / self.bandwidth
        compute = share * clocks / EFFICIENCY / self.clock_ghz / 1e3
        return max(compute, memory) + LAUNCH_US * launches


GPUS = (
    Gpu("A100", 108, 1.41, 1024, 128, 16, 4, 1.55e6),
    Gpu("H100", 132, 1.7, 1024, 128, 16, 4, 3.35e6),
)


def two_calls(tensors: tuple[torch.Tensor, ...]) -> tuple[Counters, int]:
    """Counters of two calls of the baseline, and their blocks; checked against plain PyTorch."""
    qk_a, qk_b, v_a, v_b = tensors
    kernel = compile_cuda(
        BASELINE, "sm_80", include=[SOURCES], options=["--expt-relaxed-constexpr"]
    )["flash_call"]
    counters, blocks = Counters(), 0
    for query, key, value in ((qk_a, qk_b, v_b), (qk_b, qk_a, v_a)):
        out, lse = torch.empty_like(query), torch.empty(query.shape[2])
        scale = HEAD_DIM**-0.5 / math.log(2.0)
        numbers = [np.int32(query.shape[2]), np.int32(key.shape[2]), np.float32(scale), np.int32(0)]
        arguments = Struct([query, key, value, Output(out), Output(lse), *numbers])
        grid = -(-query.shape[2] // 64)
        counters = counters + kernel.launch((grid,), (128,), [arguments], 5 * 64 * HEAD_DIM * 2)
        blocks += grid
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    return counters, blocks


def ours(tensors: tuple[torch.Tensor, ...], multiprocessors: int) -> tuple[Counters, int]:
    """Counters of our forward on a GPU of that size, and its blocks."""
    with emulated_backend(multiprocessors=multiprocessors) as machine:
        shared_cross_attention(*tensors, backend="cuda")
    (launch,) = machine.launches
    return launch.counters, launch.plan.blocks


def backward(tensors: tuple[torch.Tensor, ...], *, shared: bool) -> Counters:
    """Counters of a backward pass; two calls leave two gradients of each ``qk``, not summed."""
    qk_a, qk_b, v_a, v_b = (x.clone().requires_grad_() for x in tensors)
    with emulated_backend(multiprocessors=1000) as machine:
        if shared:
            outputs = shared_cross_attention(qk_a, qk_b, v_a, v_b, backend="cuda")
        else:
            outputs = bidirectional_cross_attention(
                qk_a, qk_a, v_a, qk_b, qk_b, v_b, backend="cuda"
            )
        machine.launches.clear()
        gradients = [torch.randn_like(x) for x in outputs]
        torch.autograd.grad(outputs, (qk_a, qk_b, v_a, v_b), gradients)
    return sum((launch.counters for launch in machine.launches), Counters())


def row(form: str, counters: Counters, base: Counters, times: Sequence[float] = ()) -> str:
    """A line of the table."""
    mma, ex2 = sum(counters.mma.values()), counters.instructions["ex2"]
    wavefronts = sum(counters.wavefronts.values())
    counted = (mma, ex2, counters.warp_instructions, wavefronts)
    of_two = (
        counters.warp_instructions / base.warp_instructions,
        counters.global_bytes / base.global_bytes,
    )
    return (
        f"  {form:<32}"
        + "".join(f"{number / 1e3:>7.1f}k" for number in counted)
        + f"{counters.global_bytes / 1024:>7.0f}"
        + ("".join(f"{time:>10.1f}" for time in times) or " " * 10 * len(GPUS))
        + "   {:.2f} x instr., {:.2f} x bytes".format(*of_two)
    )


def main() -> None:
    """Print the table."""
    print("per head, bfloat16, head_dim 64, executed under emulation; times modelled, see above")
    print(f"{'':<34}{'mma':>8}{'ex2':>8}{'instr.':>8}{'wavefr.':>8}{'KiB':>7}", end="")
    print("".join(f"{gpu.name + ' us':>10}" for gpu in GPUS))
    for name, batch, heads, time_a, time_b in SHAPES:
        tensors = tuple(
            random_tensor(1, 1, time, HEAD_DIM, dtype=torch.bfloat16, seed=n)
            for n, time in enumerate((time_a, time_b, time_a, time_b))
        )
        print(f"{name}, B{batch} H{heads} {time_a}x{time_b}")
        forms = {"two calls": (*two_calls(tensors), 2), "one launch": (*ours(tensors, 1000), 1)}
        if min(time_a, time_b) <= 320:
            forms["S once"] = (*ours(tensors, 1), 1)
        base = forms["two calls"][0]
        for form, (counters, blocks, launches) in forms.items():
            times = [gpu.modelled_us(counters, batch * heads, blocks, launches) for gpu in GPUS]
            print(row(form, counters, base, times))
        base = backward(tensors, shared=False)
        print(row("two calls, backward", base, base))
        print(row("S once for each row, backward", backward(tensors, shared=True), base))


if __name__ == "__main__":
    main()
