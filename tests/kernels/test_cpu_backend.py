"""What is particular to the CPU kernels: guards, blocks and groups, threads, instruction sets.

The other tests of this folder run on this backend as on every other one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmer.kernels import (
    available_backends,
    chunk_summaries,
    chunked_attention,
    cpu,
    explain,
    machine_reasons,
)
from tests.error_rule import assert_within_error_rule, random_mask, random_tensor
from tests.kernels.cases import OPERATORS, PairCase, make_pair
from tests.kernels.test_cross_attention import check_error_rule, gradients

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    "cpu" not in available_backends(), reason=f"no CPU kernels: {machine_reasons()['cpu']}"
)
operators = pytest.mark.parametrize("operator", OPERATORS)


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_both_ways(case: PairCase, backend: str, **options: Any) -> list[Tensor]:
    """Outputs, log-sum-exps and gradients, those through the log-sum-exps included."""
    tensors = list(case.tensors)
    if "decay" in case.options:
        case.options["decay"] = case.options["decay"].detach().requires_grad_()
        tensors.append(case.options["decay"])
    outputs = case.run(backend=backend, return_lse=True, **options)
    finite = [torch.where(x.isfinite(), x, 0.0) for x in outputs]
    return [*outputs, *gradients(tuple(finite), tuple(tensors))]


def run_chunked(
    inputs: tuple[Tensor, ...], backend: str, summarised: bool, **options: Any
) -> list[Tensor]:
    q, k, v = inputs
    if summarised:
        options["summaries"] = chunk_summaries(k, v, options["chunk_size"], mask=options["mask"])
    out, lse = chunked_attention(q, k, v, **options, return_lse=True, backend=backend)
    finite = torch.where(lse.isfinite(), lse, 0.0)
    return [out, lse, *gradients((out, finite), inputs)]


def assert_close(ours: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(ours, wanted, strict=True):
        largest = torch.where(y.isfinite(), y, 0.0).detach().abs().amax().item()
        torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-5 * max(1.0, largest))


@operators
def test_float64_is_refused(operator: str) -> None:
    case = make_pair(operator, time_a=3, time_b=4)
    with pytest.raises(
        RuntimeError, match=f"backend 'cpu' cannot run {operator}: .* not torch.float64"
    ):
        case.run(backend="cpu")
    explanation = explain(operator, *case.tensors)
    assert explanation.chosen == "reference"
    assert explanation.reasons["cpu"].startswith("refused: it computes in float32")


def spread(case: PairCase) -> None:
    case.tensors[0].mul_(3e3)


def one_query_far_out(case: PairCase) -> None:
    case.tensors[0][:, :, 3] *= 40.0


def one_key_far_out(case: PairCase) -> None:
    case.sides[0][1][:, :, 5] *= 40.0


def tiny(case: PairCase) -> None:
    for x in case.tensors:
        x.mul_(1e-20)


def tiny_values(case: PairCase) -> None:
    for _, _, value in case.sides:
        value.mul_(1e-20)


def denormal(case: PairCase) -> None:
    case.tensors[0].mul_(1e-39)


def negative_zeros(case: PairCase) -> None:
    case.tensors[0].fill_(-0.0)


@operators
@pytest.mark.parametrize(
    "change",
    [
        spread,
        one_query_far_out,
        one_key_far_out,
        tiny,
        tiny_values,
        denormal,
        negative_zeros,
    ],
)
@pytest.mark.parametrize("lengths", [(150, 140), (20, 30)])
def test_adversarial_scores(
    operator: str, change: Callable[[PairCase], None], lengths: tuple[int, int]
) -> None:
    case = make_pair(
        operator, dtype=torch.float32, batch=1, time_a=lengths[0], time_b=lengths[1], head_dim=16
    )
    with torch.no_grad():
        change(case)
    # A score of 1e4 is known to 1e-3 only: which of two roundings comes closer is a matter of luck.
    check_error_rule(case, "cpu", slack=20.0)


@operators
@pytest.mark.parametrize("lengths", [(150, 140), (20, 30), (400, 300)])
def test_identical_steps(operator: str, lengths: tuple[int, int]) -> None:
    # The gradients of queries and keys cancel to 0: only their noise can be judged.
    case = make_pair(operator, dtype=torch.float32, time_a=lengths[0], time_b=lengths[1])
    with torch.no_grad():
        for x in case.tensors:
            x.copy_(x[:, :, :1].clone().expand_as(x))
    truth = case.to(torch.float64)
    ours, wanted = case.run(backend="cpu"), truth.naive()[:2]
    assert_within_error_rule(ours, case.naive()[:2], wanted)
    pairs = zip(gradients(ours, case.tensors), gradients(wanted, truth.tensors), strict=True)
    for x, y in pairs:
        assert (x - y).abs().max() <= 1e-4 * max(1.0, y.abs().max().item())


@operators
def test_a_far_out_query_does_not_disturb_the_others(operator: str) -> None:
    case = make_pair(operator, dtype=torch.float32, batch=1, time_a=200, time_b=150, head_dim=64)
    calm = case.run(backend="cpu")[0]
    with torch.no_grad():
        case.sides[0][0][:, :, 7] *= 1e3
    wild = case.run(backend="cpu")[0]
    others = torch.arange(200) != 7
    torch.testing.assert_close(wild[:, :, others], calm[:, :, others], rtol=1e-5, atol=1e-6)


@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 5, 6, 12, 80, 256])
def test_odd_head_dims(operator: str, dtype: torch.dtype, head_dim: int) -> None:
    case = make_pair(
        operator,
        dtype=dtype,
        batch=1,
        time_a=90,
        time_b=150,
        head_dim=head_dim,
        value_dim=max(head_dim, 3),
        masks=True,
    )
    case.options["mask_a"][:] = random_mask(2, 90, seed=1)[1]
    check_error_rule(case, "cpu")


@operators
@pytest.mark.parametrize("lengths", [(1100, 260), (260, 1100)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("times", [False, True])
def test_groups_of_rows(
    operator: str, lengths: tuple[int, int], dropout_p: float, times: bool
) -> None:
    case = make_pair(
        operator,
        dtype=torch.float32,
        batch=1,
        heads=1,
        time_a=lengths[0],
        time_b=lengths[1],
        value_dim=5,
        times=times,
    )
    options = {"dropout_p": dropout_p, "dropout_seed": 5}
    ours, wanted = (run_both_ways(case, name, **options) for name in ("cpu", "reference"))
    assert_close(ours, wanted)


# A side of up to 64 steps is a single block: its tiles overwrite what others would add to.
@operators
@pytest.mark.parametrize("lengths", [(600, 500), (50, 500)])
def test_tiles_beyond_the_largest_gap_are_left_out(operator: str, lengths: tuple[int, int]) -> None:
    time_a, time_b = lengths
    case = make_pair(operator, dtype=torch.float32, batch=1, time_a=time_a, time_b=time_b)
    case.options["times_a"] = torch.linspace(30, 40, time_a)[None]
    case.options["times_b"] = torch.linspace(10, 70, time_b)[None]
    case.options["max_gap"] = 2.0
    assert_close(run_both_ways(case, "cpu"), run_both_ways(case, "reference"))


@operators
@pytest.mark.parametrize("lengths", [(300, 500), (50, 500), (500, 50), (1, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_padding_are_left_out(
    operator: str, lengths: tuple[int, int], dtype: torch.dtype
) -> None:
    case = make_pair(
        operator, dtype=dtype, time_a=lengths[0], time_b=lengths[1], head_dim=24, value_dim=10
    )
    for side, time in zip("ab", lengths, strict=True):
        mask = torch.ones(2, time, dtype=torch.bool)
        mask[0, 128:256] = False
        mask[1, :130] = time == 1
        case.options[f"mask_{side}"] = mask
    check_error_rule(case, "cpu")


@pytest.mark.parametrize("summarised", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 64, "lookback": 1, "lookahead": 1},
        {"chunk_size": 100, "lookback": 2, "causal": True},
        {"chunk_size": 7, "lookback": 3, "max_summaries": 5, "dropout_p": 0.2, "dropout_seed": 1},
        {"chunk_size": 1, "lookback": 150},
        {"chunk_size": 5000, "causal": True},
    ],
)
def test_chunked_blocks_and_groups(options: dict[str, Any], summarised: bool) -> None:
    inputs = tuple(
        random_tensor(1, 2, 1100, dim, dtype=torch.float32, seed=n).requires_grad_()
        for n, dim in enumerate((8, 8, 5))
    )
    if not summarised:
        options = {key: value for key, value in options.items() if key != "max_summaries"}
    options = {**options, "mask": random_mask(1, 1100, seed=4)}
    ours, wanted = (
        run_chunked(inputs, name, summarised, **options) for name in ("cpu", "reference")
    )
    assert_close(ours, wanted)


@operators
@pytest.mark.parametrize("shape", [(1, 1, 1100, 300), (3, 4, 70, 90)])
@pytest.mark.usefixtures("_restore_threads")
def test_threads_do_not_change_a_bit(operator: str, shape: tuple[int, ...]) -> None:
    batch, heads, time_a, time_b = shape
    case = make_pair(
        operator,
        dtype=torch.float32,
        batch=batch,
        heads=heads,
        time_a=time_a,
        time_b=time_b,
        masks=batch > 1,
        times=True,
    )
    for options in ({}, {"dropout_p": 0.2, "dropout_seed": 3}):
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(run_both_ways(case, "cpu", **options))
        for other in runs[1:]:
            assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


@pytest.mark.usefixtures("_restore_threads")
def test_threads_do_not_change_a_bit_of_chunked_attention() -> None:
    inputs = tuple(
        random_tensor(1, 1, 2500, 16, dtype=torch.float32, seed=n).requires_grad_()
        for n in range(3)
    )
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(
            run_chunked(inputs, "cpu", True, chunk_size=32, mask=random_mask(1, 2500, seed=1))
        )
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


@operators
def test_dropout_masks_are_those_of_the_reference(operator: str) -> None:
    # With values that pick out a key, an output is not 0 exactly where its weight is kept.
    time_a, time_b = 77, 131
    case = make_pair(operator, batch=2, time_a=time_a, time_b=time_b, dtype=torch.float32)
    tensors = [x.detach() for x in case.tensors]
    values = (3, 2) if operator == "shared_cross_attention" else (5, 2)
    tensors[values[0]] = torch.eye(time_b).expand(2, 2, -1, -1)
    tensors[values[1]] = torch.eye(time_a).expand(2, 2, -1, -1)
    ours, wanted = (
        OPERATORS[operator](*tensors, dropout_p=0.3, dropout_seed=-5, backend=name)
        for name in ("cpu", "reference")
    )
    for x, y in zip(ours, wanted, strict=True):
        assert torch.equal(x != 0, y != 0)


def test_chunked_dropout_masks_are_those_of_the_reference() -> None:
    time, chunk_size = 150, 9
    q = k = random_tensor(2, 2, time, 4, dtype=torch.float32, seed=0)
    chunks = -(-time // chunk_size)
    v = torch.eye(time, time + chunks).expand(2, 2, -1, -1)
    summary_v = torch.eye(time + chunks)[time:].expand(2, 2, -1, -1)
    summary_k = chunk_summaries(k, v, chunk_size)[0]
    ours, wanted = (
        chunked_attention(
            q,
            k,
            v,
            chunk_size,
            summaries=(summary_k, summary_v),
            dropout_p=0.3,
            dropout_seed=2**40 + 1,
            backend=name,
        )
        for name in ("cpu", "reference")
    )
    assert torch.equal(ours != 0, wanted != 0)


@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strides_do_not_change_a_bit(operator: str, dtype: torch.dtype) -> None:
    case = make_pair(operator, dtype=dtype, time_a=80, time_b=75)
    swapped = tuple(
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for x in case.tensors
    )
    other = PairCase(operator, swapped, case.options)
    for x, y in zip(run_both_ways(case, "cpu"), run_both_ways(other, "cpu"), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even(dtype: torch.dtype) -> None:
    # A query that sees one key passes its value on unchanged, then rounded by nothing at all.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = bits[bits.isfinite()].view(1, -1, 1, 256)
    one = torch.ones(1, values.shape[1], 1, 1, dtype=dtype)
    out_a, _ = OPERATORS["shared_cross_attention"](one, one, one, values, backend="cpu")
    # The bfloat16 instructions take denormal numbers as 0.
    flushed = dtype == torch.bfloat16 and cpu.kernel_capability() in ("avx512_bf16", "amx")
    tiny = torch.finfo(dtype).tiny
    is_denormal = values.abs() < tiny
    kept = torch.where(is_denormal, 0, values) if flushed else values
    assert torch.equal(out_a, kept)
    # The mean of two neighbours lies half-way, and is rounded as torch rounds it.
    if flushed:
        values = values[~is_denormal][: values.numel() // 512 * 256].view(1, -1, 1, 256)
    pairs = torch.stack((values[0, :, 0, :-1], values[0, :, 0, 1:]), dim=1)[None]
    one, zeros = one[:, : values.shape[1]], torch.zeros(1, values.shape[1], 2, 1, dtype=dtype)
    out_a, _ = OPERATORS["shared_cross_attention"](one, zeros, one, pairs, backend="cpu")
    mean = pairs[0].float().mean(dim=1).to(dtype)
    assert torch.equal(out_a[0, :, 0], torch.where(mean.abs() < tiny, 0, mean) if flushed else mean)


USE = """
import json, torch
from mmer.kernels import available_backends, cpu, machine_reasons
from tests.kernels.test_cpu_backend import make_pair, run_both_ways, run_chunked, random_mask
from tests.kernels.test_cpu_backend import OPERATORS, assert_close, random_tensor
torch.set_num_threads(1)
if "cpu" not in available_backends():
    print(json.dumps({"reason": machine_reasons()["cpu"]}))
else:
    for operator in OPERATORS:
        for times in (False, True):
            case = make_pair(
                operator, dtype=torch.float32, time_a=90, time_b=150, head_dim=20, value_dim=7,
                masks=True, times=times,
            )
            for options in ({}, {"dropout_p": 0.1, "dropout_seed": 2}):
                wanted = run_both_ways(case, "reference", **options)
                assert_close(run_both_ways(case, "cpu", **options), wanted)
    inputs = tuple(
        random_tensor(2, 2, 90, 8, dtype=torch.float32, seed=n).requires_grad_() for n in range(3)
    )
    options = {"chunk_size": 8, "mask": random_mask(2, 90, seed=1)}
    wanted = run_chunked(inputs, "reference", True, **options)
    assert_close(run_chunked(inputs, "cpu", True, **options), wanted)
    print(json.dumps({"capability": cpu.kernel_capability()}))
"""


def run_with_capability(capability: str, code: str = USE) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "MMER_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("capability", ["portable", "neon", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set_agrees_with_the_reference(capability: str) -> None:
    report = run_with_capability(capability)
    if "but this CPU has only" in report.get("reason", ""):
        pytest.skip(report["reason"])
    assert report == {"capability": capability}


def test_an_unknown_capability_is_a_reason() -> None:
    report = run_with_capability("sse9")
    assert "MMER_CPU_CAPABILITY must be one of" in report["reason"]


MEMORY = """
import json, resource, torch
from mmer import shared_cross_attention
tensors = [torch.randn(1, 1, time, 64, requires_grad=True) for time in (18_000, 3_000) * 2]
small = [x[:, :, :200].detach().requires_grad_() for x in tensors]
def step(tensors):
    out_a, out_b = shared_cross_attention(*tensors, backend="cpu")
    torch.autograd.grad((out_a.sum(), out_b.sum()), tensors)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = step(small)
print(json.dumps({"growth": step(tensors) - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_memory_is_linear_in_both_lengths() -> None:
    # One 18,000 x 3,000 matrix of scores has 206 MiB, and eager PyTorch keeps several.
    assert run_with_capability("", MEMORY)["growth"] < 150


LONG_PAIR = MEMORY.replace("(18_000, 3_000)", "(18_000, 30_000)")

LONG_CHUNKS = """
import json, resource, torch
from mmer import chunked_attention
def peak(time):
    q, k, v = (torch.randn(1, 1, time, 64, requires_grad=True) for _ in range(3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = chunked_attention(q, k, v, 64, backend="cpu")
    torch.autograd.grad(out.sum(), (q, k, v))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
peak(1_000)
print(json.dumps({"shorter": peak(75_000), "longer": peak(300_000)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_a_long_recording_fits_in_memory() -> None:
    # One 18,000 x 30,000 matrix of scores has 2,060 MiB; half an hour of video beside its sound.
    assert run_with_capability("", LONG_PAIR)["growth"] < 1000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_chunked_memory_is_linear_in_the_length() -> None:
    growth = run_with_capability("", LONG_CHUNKS)
    # Outputs and gradients alone have 74 MiB for each 75,000 steps.
    assert growth["longer"] < 5 * max(growth["shorter"], 74)
