"""Counts what the CUDA kernels execute for one head, beside two calls of a FlashAttention-2 kernel.

    python -m benchmarks.cuda_counters

Both passes stand beside two calls of a FlashAttention-2 kernel of our own (flash_two_calls.cu).
Its backward adds up the queries' gradient by atomics, as FlashAttention-2 does by default; ours has
none and gives the same bits every time. Two calls leave two gradients of each ``qk``: adding them
up is counted, clearing what the atomics add to is not.

Executed under emulation, never on a GPU: the counts are exact and the same on every machine.
Instructions are those of PTX, without moves between registers, which ptxas leaves out. The times
are **modelled** from them: the busiest multiprocessor's tensor cores, shared memory, exponentials
and instruction issue, whichever takes longest, at 65 % of its peak; global memory at its bandwidth;
1.5 us for each launch. mma.sync multiplies at the rate given, PTX instructions count as machine
instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmer.kernels import shared_cross_attention
from tests.error_rule import random_tensor
from tests.kernels.cuda.emulation import SOURCES, Launch, emulated_backend
from tests.ptx import Counters, InOut, Kernel, Output, Struct, compile_cuda

BASELINE = Path(__file__).with_name("flash_two_calls.cu")
HEAD_DIM = 64
SHAPES = (
    ("MulT on MOSEI", 16, 5, 50, 375),
    ("ABAW windows", 8, 8, 300, 300),
    ("LightGlue", 1, 4, 512, 512),
)
SCALE_LOG2 = HEAD_DIM**-0.5 / math.log(2.0)
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
            executed(counters) / self.instructions,
        )
        memory = heads * counters.global_bytes / self.bandwidth
        compute = share * clocks / EFFICIENCY / self.clock_ghz / 1e3
        return max(compute, memory) + LAUNCH_US * launches


GPUS = (
    Gpu("A100", 108, 1.41, 1024, 128, 16, 4, 1.55e6),
    Gpu("H100", 132, 1.7, 1024, 128, 16, 4, 3.35e6),
)


def executed(counters: Counters) -> int:
    """Instructions of warps, without moves."""
    return counters.warp_instructions - counters.instructions["mov"]


def baseline(name: str) -> Kernel:
    """A kernel of the baseline."""
    options = ["--expt-relaxed-constexpr"]
    return compile_cuda(BASELINE, "sm_80", include=[SOURCES], options=options)[name]


def flash_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Counters, int]:
    """Output and log-sum-exp of one direction, what was counted, and the blocks."""
    out, lse = torch.empty_like(query), torch.empty(query.shape[2])
    numbers = [np.int32(query.shape[2]), np.int32(key.shape[2]), np.float32(SCALE_LOG2)]
    arguments = Struct([query, key, value, Output(out), Output(lse), *numbers, np.int32(0)])
    blocks = -(-query.shape[2] // 64)
    counters = baseline("flash_call").launch((blocks,), (128,), [arguments], 5 * 64 * HEAD_DIM * 2)
    return out, lse, counters, blocks


def two_calls(tensors: tuple[torch.Tensor, ...]) -> tuple[Counters, int]:
    """Counters of two calls of the baseline, and their blocks; checked against plain PyTorch."""
    qk_a, qk_b, v_a, v_b = tensors
    total, blocks = Counters(), 0
    for query, key, value in ((qk_a, qk_b, v_b), (qk_b, qk_a, v_a)):
        out, _, counters, launched = flash_call(query, key, value)
        total, blocks = total + counters, blocks + launched
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    return total, blocks


def flash_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grad_out: torch.Tensor
) -> tuple[list[torch.Tensor], Counters]:
    """Gradients of one direction, checked against PyTorch's, and counters of its kernels."""
    out, lse, _, _ = flash_call(query, key, value)
    queries, keys = query.shape[2], key.shape[2]
    delta, grad_sum = torch.empty(queries), torch.zeros(queries, HEAD_DIM)
    gradients = [torch.empty_like(x) for x in (query, key, value)]
    grad_query, grad_key, grad_value = map(Output, gradients)
    scale = HEAD_DIM**-0.5
    counters = row_kernel("flash_delta", queries, [out, grad_out, None, Output(delta), None])
    saved = [query, key, value, grad_out, lse, delta, InOut(grad_sum), grad_key, grad_value]
    numbers = [np.int32(queries), np.int32(keys), np.float32(SCALE_LOG2), np.float32(scale)]
    shared_bytes = 6 * 64 * HEAD_DIM * 2 + 64 * (64 * 2 + 16) + 4 * 64 * 4
    counters = counters + baseline("flash_backward").launch(
        (-(-keys // 64),), (128,), [Struct([*saved, *numbers])], shared_bytes
    )
    counters = counters + row_kernel(
        "flash_round", queries, [None, None, grad_sum, None, grad_query], scale
    )
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs)
    for ours, wanted in zip(
        gradients, torch.autograd.grad(expected, inputs, grad_out), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=5e-2, atol=5e-2)
    return gradients, counters


def row_kernel(name: str, rows: int, pointers: list[Any], scale: float = 1.0) -> Counters:
    """Counters of a kernel of the baseline that takes rows, eight lanes each."""
    arguments = Struct([*pointers, np.int32(rows), np.float32(scale)])
    return baseline(name).launch((-(-rows // 16),), (128,), [arguments])


def two_backward_calls(
    tensors: tuple[torch.Tensor, ...], grad_outs: Sequence[torch.Tensor]
) -> Counters:
    """Counters of two calls of the baseline, and of adding up what both find for each qk."""
    qk_a, qk_b, v_a, v_b = tensors
    (query_a, key_b, _), of_a = flash_backward(qk_a, qk_b, v_b, grad_outs[0])
    (query_b, key_a, _), of_b = flash_backward(qk_b, qk_a, v_a, grad_outs[1])
    total = of_a + of_b
    for first, second in ((query_a, key_a), (query_b, key_b)):
        added = torch.empty_like(first)
        rows = first.shape[2]
        total = total + row_kernel("flash_add", rows, [first, second, None, None, Output(added)])
        torch.testing.assert_close(added, first + second)
    return total


def ours(tensors: tuple[torch.Tensor, ...], multiprocessors: int) -> tuple[Counters, int, int]:
    """Counters of our forward on a GPU of that size, its blocks and its launches."""
    with emulated_backend(multiprocessors=multiprocessors) as machine:
        shared_cross_attention(*tensors, backend="cuda")
    counters = sum((launch.counters for launch in machine.launches), Counters())
    return counters, machine.launches[0].plan.blocks, len(machine.launches)


def backward_launches(
    tensors: tuple[torch.Tensor, ...], grad_outs: Sequence[torch.Tensor], **machine: int
) -> list[Launch]:
    """Kernels of our backward pass on such a machine (`emulated_backend`)."""
    inputs = tuple(x.clone().requires_grad_() for x in tensors)
    with emulated_backend(**machine) as emulated:
        outputs = shared_cross_attention(*inputs, backend="cuda")
        emulated.launches.clear()
        torch.autograd.grad(outputs, inputs, grad_outs)
    return emulated.launches


def backward(
    tensors: tuple[torch.Tensor, ...], grad_outs: Sequence[torch.Tensor], **machine: int
) -> Counters:
    """Counters of our backward pass on such a machine."""
    launches = backward_launches(tensors, grad_outs, **machine)
    return sum((launch.counters for launch in launches), Counters())


def row(form: str, counters: Counters, base: Counters, times: Sequence[float] = ()) -> str:
    """A line of the table."""
    mma, ex2 = sum(counters.mma.values()), counters.instructions["ex2"]
    wavefronts = sum(counters.wavefronts.values())
    counted = (mma, ex2, executed(counters), wavefronts)
    of_two = (executed(counters) / executed(base), counters.global_bytes / base.global_bytes)
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
        forms = {
            "two calls": (*two_calls(tensors), 2),
            "one launch": ours(tensors, 1000),
            "S once": ours(tensors, 1),
        }
        base = forms["two calls"][0]
        for form, (counters, blocks, launches) in forms.items():
            times = [gpu.modelled_us(counters, batch * heads, blocks, launches) for gpu in GPUS]
            print(row(form, counters, base, times))
        grad_outs = [
            random_tensor(1, 1, time, HEAD_DIM, dtype=torch.bfloat16, seed=n)
            for n, time in enumerate((time_a, time_b), start=4)
        ]
        base = two_backward_calls(tensors, grad_outs)
        print(row("two calls, backward", base, base))
        # So little shared memory leaves no room for S once.
        for form, machine in (
            ("S once for each row, backward", {"shared_bytes": 1024}),
            ("few heads, backward", {"multiprocessors": 1000}),
            ("S once, backward", {"multiprocessors": 1}),
        ):
            launches = backward_launches(tensors, grad_outs, **machine)
            times = [
                sum(
                    gpu.modelled_us(launch.counters, batch * heads, launch.plan.blocks, 1)
                    for launch in launches
                )
                for gpu in GPUS
            ]
            counters = sum((launch.counters for launch in launches), Counters())
            print(row(form, counters, base, times))


if __name__ == "__main__":
    main()
