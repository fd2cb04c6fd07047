"""The Triton kernels as compiled for GPUs that are not here, executed under CPU emulation.

Every case runs with all checks of the emulator: races, uninitialised and out-of-bounds accesses,
missing barriers, outputs left unwritten. ``make test`` runs a sample, ``make test-all`` the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.error_rule import assert_within_error_rule, random_mask, random_tensor

pytest.importorskip("triton", reason="Triton is not installed")

from mmer.kernels import bidirectional, chunk_summaries, chunked, shared
from mmer.kernels.bidirectional import triton as bidirectional_triton
from mmer.kernels.chunked import triton as chunked_triton
from mmer.kernels.registration import OperatorDefinition
from mmer.kernels.shared import triton as shared_triton
from mmer.kernels.triton_backend.target import TARGETS, Target
from tests.kernels.cases import make_pair, references_in_own_dtype
from tests.kernels.emulation import emulate

PLANNERS = {
    "shared": (shared.operator, shared_triton),
    "bidirectional": (bidirectional.operator, bidirectional_triton),
    "chunked": (chunked.operator, chunked_triton),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def padding(batch: int, time: int, seed: int) -> Tensor:
    """Padding in any place, no row all padding."""
    mask = random_mask(batch, time, seed=seed)
    mask[0] = random_mask(1, time, seed=seed + 1)[0]
    mask[:, time // 2] = True
    return mask


def to_oracle(
    definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any, dtype: torch.dtype
) -> tuple[list[Tensor], Any]:
    cast = [x.to(dtype) for x in tensors]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    changes = {
        name: value.to(dtype if name.startswith("summary") else wide)
        for name, value in options._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return cast, options._replace(**changes)


def plain_forward(
    definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in definition.forward(*tensors, options))


def check_case(
    operator: str,
    tensors: tuple[Tensor, ...],
    options: Any,
    target: Target,
    *,
    seed: int | None = None,
) -> None:
    """Forward and backward against float64, by the error rule."""
    module, planner = PLANNERS[operator]
    definition = module.DEFINITION
    dtype = tensors[0].dtype
    wide_tensors, wide_options = to_oracle(definition, tensors, options, torch.float64)
    truth = plain_forward(definition, wide_tensors, wide_options)
    results = emulate(planner.plan_forward(*tensors, options, target), target, seed=seed)
    outputs = definition.outputs
    with references_in_own_dtype():
        plain = definition.forward(*tensors, options)[:outputs]
    assert_within_error_rule(results[:outputs], plain, truth[:outputs])
    for ours, wanted in zip(results[outputs:], truth[outputs:], strict=True):
        assert torch.equal(ours > -math.inf, wanted > -math.inf)
        seen = wanted > -math.inf
        torch.testing.assert_close(
            ours[seen].double(), wanted[seen], rtol=1e-5, atol=1e-5, check_dtype=False
        )

    generator = torch.Generator().manual_seed(3)
    gradients = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        for x in (*results[:outputs], *results[outputs:])
    ]
    wanted_gradients = definition.backward(
        *[x.double() for x in gradients], *wide_tensors, wide_options
    )
    plan = planner.plan_backward(
        tuple(gradients[:outputs]),
        tuple(gradients[outputs:]),
        tensors,
        options,
        results[:outputs],
        results[outputs:],
        target,
    )
    ours = emulate(plan, target, seed=seed)
    pairs = [(x, y) for x, y in zip(ours, wanted_gradients, strict=True) if x is not None is not y]
    assert len(pairs) == sum(y is not None for y in wanted_gradients)
    with references_in_own_dtype():
        own = [x.to(dtype) for x in gradients]
        plain = [x for x in definition.backward(*own, *tensors, options) if x is not None]
    assert_within_error_rule([x for x, _ in pairs], plain, [y for _, y in pairs], factor=3.0)


def pair_case(
    operator: str, dtype: torch.dtype, *, masks: bool = False, **changes: Any
) -> tuple[tuple[Tensor, ...], Any]:
    case = make_pair(f"{operator}_cross_attention", dtype=dtype, **changes)
    if masks:
        batch = max(case.tensors[0].shape[0], case.tensors[-1].shape[0])
        case.options["mask_a"] = padding(batch, case.tensors[0].shape[2], 5)
        case.options["mask_b"] = padding(batch, case.sides[0][1].shape[2], 9)
    tensors = [x.detach() for x in case.tensors]
    return PLANNERS[operator][0].prepare(*tensors, **case.options)


PAIRS: dict[str, dict[str, Any]] = {
    "masks": {"batch": 1, "heads": 2, "time_a": 97, "time_b": 50, "head_dim": 64, "masks": True},
    "long": {"batch": 1, "heads": 1, "time_a": 150, "time_b": 97, "head_dim": 32},
    "everything": {
        "batch": (1, 2),
        "heads": 1,
        "head_dim": 12,
        "value_dim": 6,
        "masks": True,
        "times": True,
        "dropout_p": 0.3,
        "dropout_seed": 5,
    },
}
# Wider than what products of float32 take whole, and no multiple of what they take at a time.
PAIRS["wide"] = {
    "batch": 1,
    "heads": 1,
    "time_a": 33,
    "time_b": 50,
    "head_dim": 136,
    "value_dim": 72,
    "masks": True,
    "times": True,
    "dropout_p": 0.3,
    "dropout_seed": 5,
    "scale": -0.1,
}
# What a tile of 128 columns holds.
PAIRS["over 64"] = {
    "batch": 1,
    "heads": 1,
    "time_a": 97,
    "time_b": 70,
    "head_dim": 72,
    "value_dim": 100,
    "masks": True,
}
PAIRS["widest"] = {"batch": 1, "heads": 1, "time_a": 50, "time_b": 40, "head_dim": 256}
QUICK_PAIRS = {
    ("shared", "wide", "float32", 80),
    ("shared", "masks", "bfloat16", 80),
    ("shared", "long", "bfloat16", 90),
    ("shared", "everything", "float16", 120),
    ("bidirectional", "everything", "bfloat16", 90),
    ("shared", "masks", "float32", 80),
}


@pytest.mark.parametrize(
    ("operator", "variant", "dtype", "capability"),
    [
        pytest.param(
            *case,
            marks=() if case in QUICK_PAIRS else (pytest.mark.slow, pytest.mark.timeout(1800)),
        )
        for case in (
            (operator, variant, dtype, capability)
            for operator in ("shared", "bidirectional")
            for variant in PAIRS
            for dtype in DTYPES
            for capability in (80, 90, 120)
        )
    ],
)
def test_pairs(operator: str, variant: str, dtype: str, capability: int) -> None:
    tensors, options = pair_case(operator, DTYPES[dtype], **PAIRS[variant])
    check_case(operator, tensors, options, TARGETS[capability])


TWO_BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {"batch": 1, "heads": 1, "time_a": 128, "time_b": 128, "head_dim": 64},
    "masks": {"batch": 1, "heads": 2, "time_a": 97, "time_b": 70, "head_dim": 64, "masks": True},
    "dropout": {
        "batch": (1, 2),
        "heads": 1,
        "time_a": 100,
        "time_b": 150,
        "head_dim": 12,
        "value_dim": 6,
        "masks": True,
        "dropout_p": 0.3,
        "dropout_seed": 5,
    },
    "an empty block": {"batch": 1, "heads": 1, "time_a": 200, "time_b": 100, "head_dim": 16},
}


@pytest.mark.parametrize("variant", TWO_BLOCKS)
def test_two_blocks(variant: str) -> None:
    tensors, options = pair_case("shared", torch.bfloat16, **TWO_BLOCKS[variant])
    if variant == "an empty block":
        # The first block of the short side is all padding: the second one gives the reference.
        mask_b = torch.arange(100)[None] >= 70
        options = options._replace(mask_b=mask_b)
    target = dataclasses.replace(TARGETS[90], processors=1)
    launches = shared_triton.plan_forward(*tensors, options, target).launches
    assert [x.name for x in launches] == ["shared_two_block_forward"]
    check_case("shared", tensors, options, target)


CHUNKS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True, "chunk_size": 20, "lookback": 2},
    "masks and summaries": {"masked": True, "summarised": True, "chunk_size": 16, "lookahead": 1},
    "dropout": {"chunk_size": 64, "dropout_p": 0.3, "dropout_seed": 5, "summarised": True},
}
# Wider than what products of float32 take whole.
CHUNKS["wide"] = {"masked": True, "summarised": True, "chunk_size": 16, "head_dim": 136}
CHUNKS["over 64"] = {"masked": True, "summarised": True, "chunk_size": 16, "head_dim": 72}
QUICK_CHUNKS = {
    ("wide", "float32", 90),
    ("masks and summaries", "bfloat16", 80),
    ("causal", "float16", 90),
}


@pytest.mark.parametrize(
    ("variant", "dtype", "capability"),
    [
        pytest.param(
            *case,
            marks=() if case in QUICK_CHUNKS else (pytest.mark.slow, pytest.mark.timeout(1800)),
        )
        for case in (
            (variant, dtype, capability)
            for variant in CHUNKS
            for dtype in DTYPES
            for capability in (80, 90, 120)
        )
    ],
)
def test_chunks(variant: str, dtype: str, capability: int) -> None:
    options = dict(CHUNKS[variant])
    time = 97
    head_dim = options.pop("head_dim", 16)
    q, k, v = (
        random_tensor(1, 2, time, dim, dtype=DTYPES[dtype], seed=n)
        for n, dim in enumerate((head_dim, head_dim, head_dim // 2))
    )
    if options.pop("masked", False):
        options["mask"] = padding(1, time, 4)
    if options.pop("summarised", False):
        mask, chunk_size = options.get("mask"), options["chunk_size"]
        options["summaries"] = chunk_summaries(k, v, chunk_size, mask=mask)
    tensors, checked = chunked.operator.prepare(q, k, v, **options)
    check_case("chunked", tensors, checked, TARGETS[capability])


@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("form", ["once", "two blocks", "split"])
def test_references_far_from_the_scores(
    form: str, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A late key far above the first tile: the lazy reference and the common one must both give way.
    time_b = 60 if form == "once" else 90
    tensors, options = pair_case(
        "shared", torch.bfloat16, batch=1, heads=1, time_a=150, time_b=time_b, head_dim=16
    )
    tensors[0][:, :, 100] *= spread
    tensors[1][:, :, 40] *= spread
    monkeypatch.setattr(shared_triton, "forward_has_scores_once", lambda *_: form != "split")
    target = TARGETS[90 if form == "two blocks" else 80]
    results = emulate(shared_triton.plan_forward(*tensors, options, target), target)
    wide, wide_options = to_oracle(shared.operator.DEFINITION, tensors, options, torch.float64)
    truth = plain_forward(shared.operator.DEFINITION, wide, wide_options)
    for ours, wanted in zip(results[:2], truth[:2], strict=True):
        assert (ours - wanted).abs().max() <= 0.02 * wanted.abs().max()
    for ours, wanted in zip(results[2:], truth[2:], strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-3)


def test_the_order_of_warps_does_not_change_a_bit() -> None:
    tensors, options = pair_case(
        "shared", torch.bfloat16, batch=1, heads=1, time_a=97, time_b=80, head_dim=16
    )
    target = TARGETS[80]
    runs = [
        emulate(shared_triton.plan_forward(*tensors, options, target), target, seed=seed)
        for seed in (None, 1)
    ]
    for x, y in zip(*runs, strict=True):
        assert torch.equal(x, y)
