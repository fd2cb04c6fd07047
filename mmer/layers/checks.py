"""Checks of arguments: every error names the argument, what it got and what it wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from mmer.kernels.arguments import check_count, check_flag, check_number, check_scale

__all__ = [
    "check_choice",
    "check_count",
    "check_flag",
    "check_head_dim",
    "check_mask",
    "check_number",
    "check_probability",
    "check_scale",
    "check_sequence",
    "check_times",
]


def check_probability(name: str, value: object) -> float:
    """Return a number in [0, 1) as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside.
    """
    probability = check_number(name, value, low=0.0)
    if probability >= 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return probability


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_head_dim(embed_dim: int, num_heads: int, head_dim: int | None = None) -> int:
    """Return the width of a head, ``embed_dim / num_heads`` by default.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is less than 1, or ``num_heads`` does not divide ``embed_dim``.
    """
    check_count("embed_dim", embed_dim, low=1)
    check_count("num_heads", num_heads, low=1)
    if head_dim is not None:
        return check_count("head_dim", head_dim, low=1)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, {num_heads}, unless head_dim is given, "
            f"got {embed_dim}"
        )
    return embed_dim // num_heads


def check_sequence(name: str, x: object, features: int) -> None:
    """Check that ``x`` is a floating-point tensor (batch, time, features).

    Raises:
        TypeError: it is no floating-point tensor.
        ValueError: another shape.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")
    if x.dim() != 3 or x.shape[-1] != features:
        raise ValueError(f"{name} must have shape (batch, time, {features}), got {tuple(x.shape)}")


def check_mask(name: str, mask: object, x: Tensor) -> None:
    """Check that ``mask`` is None or a bool tensor (batch, time) that goes with ``x``.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: another shape or device.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool with True = real, got {mask.dtype}")
    _check_steps(name, mask, x)


def check_times(name: str, times: object, x: Tensor) -> None:
    """Check that ``times`` is None or a floating-point tensor (batch, time) that goes with ``x``.

    Raises:
        TypeError: it is no floating-point tensor.
        ValueError: another shape or device.
    """
    if times is None:
        return
    if not isinstance(times, Tensor):
        raise TypeError(f"{name} must be a tensor of seconds, got {type(times).__name__}")
    if not times.is_floating_point():
        raise TypeError(f"{name} must be floating point seconds, got {times.dtype}")
    _check_steps(name, times, x)


def _check_steps(name: str, steps: Tensor, x: Tensor) -> None:
    if steps.shape != x.shape[:2]:
        raise ValueError(
            f"{name} must have shape (batch, time) = {tuple(x.shape[:2])}, got {tuple(steps.shape)}"
        )
    if steps.device != x.device:
        raise ValueError(f"{name} must be on {x.device}, got {steps.device}")
