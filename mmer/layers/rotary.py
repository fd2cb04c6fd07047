"""Rotary positions from timestamps: attention that knows the seconds between two steps.

Su et al., RoFormer (2021), with seconds in place of indices: channel pair p of queries and keys
turns once per ``wavelength_p`` seconds, so that their product depends on the difference of their
times alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotary_angles(
    times: Tensor, head_dim: int, min_wavelength: float, max_wavelength: float
) -> Tensor:
    """Angles of each step, in radians within one turn.

    Args:
        times: (batch, time) seconds.
        head_dim: width of a head; ``head_dim // 2`` channel pairs turn.
        min_wavelength: seconds in which the first pair turns once.
        max_wavelength: seconds in which the last pair turns once; those between lie in geometric
            steps.

    Returns:
        (batch, 1, time, head_dim // 2) float32, or float64 for float64 times.
    """
    pairs = head_dim // 2
    # Whole turns are taken away in float64: in float32 an hour's angles are off by a milliradian.
    exponent = torch.arange(pairs, device=times.device, dtype=torch.float64) / max(pairs - 1, 1)
    wavelength = min_wavelength * (max_wavelength / min_wavelength) ** exponent
    turns = times.to(torch.float64)[:, None, :, None] / wavelength
    angles = 2.0 * math.pi * (turns - turns.floor())
    return angles if times.dtype == torch.float64 else angles.to(torch.float32)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the channel pairs of ``x`` by ``angles``.

    Args:
        x: (batch, heads, time, head_dim). Pairs are (p, p + head_dim // 2); a last odd channel
            stays as it is.
        angles: (batch, 1, time, head_dim // 2).

    Returns:
        Same shape and dtype as ``x``.
    """
    pairs = angles.shape[-1]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine, rest), dim=-1)
