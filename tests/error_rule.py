"""The error rule that every backend is held to, and the inputs it is checked on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LENGTHS = ((1, 1), (1, 17), (17, 63), (63, 1), (97, 97), (97, 300))


def random_tensor(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """``randn + 0.5``: a mean that is not 0 shows errors that cancel otherwise."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


def random_mask(*shape: int, seed: int, keep: float = 0.7) -> Tensor:
    """Padding in any place; the first row of several has no real step."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < keep
    if shape[0] > 1:
        mask[0] = False
    return mask


def assert_within_error_rule(
    ours: Sequence[Tensor],
    plain: Sequence[Tensor],
    oracle: Sequence[Tensor],
    *,
    factor: float = 2.0,
) -> None:
    """``max|ours - oracle| <= factor * (max|plain - oracle| + eps * max|oracle|)`` and finite
    everywhere.

    Args:
        ours: results of the backend under test.
        plain: the same results of plain PyTorch in the same dtype.
        oracle: the same results of plain PyTorch in float64.
        factor: 2 for outputs, 3 for gradients.
    """
    for number, (x, y, truth) in enumerate(zip(ours, plain, oracle, strict=True)):
        assert x.shape == truth.shape
        assert x.isfinite().all(), f"result {number} is not finite"
        if not x.numel():
            continue
        error = (x.double() - truth).abs().max().item()
        allowed = (y.double() - truth).abs().max().item()
        allowed += torch.finfo(x.dtype).eps * truth.abs().max().item()
        assert error <= factor * allowed + math.ulp(0.0), (
            f"result {number}: error {error:.3g}, allowed {factor} x {allowed:.3g}"
        )
