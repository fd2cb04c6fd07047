"""Validation of arguments, one way for all operators and backends: before anything is computed.

Every message names the argument, what it got and what it wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .attend import compute_dtype
from .pairs import NO_TIMES, PairOptions

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEAD_DIM = 256


def check_tensor(name: str, value: object) -> Tensor:
    """Return ``value`` if it is a strided tensor.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    return value


def check_attention_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Check that all are (batch, heads, time, dim) of one dtype, device and number of heads.

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: an argument has another number of dimensions, heads, device or a dim outside
            1..256.
    """
    first_name, first = "", None
    for name, value in tensors.items():
        tensor = check_tensor(name, value)
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must have shape (batch, heads, time, dim), got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}"
            )
        if not 1 <= tensor.shape[3] <= MAX_HEAD_DIM:
            raise ValueError(
                f"{name} must have a last dimension from 1 to {MAX_HEAD_DIM}, got {tensor.shape[3]}"
            )
        if first is None:
            first_name, first = name, tensor
            continue
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {first_name}, {first.device}, got {tensor.device}"
            )
        if tensor.shape[1] != first.shape[1]:
            raise ValueError(
                f"{name} must have as many heads as {first_name}, {first.shape[1]}, "
                f"got {tensor.shape[1]}"
            )


def check_same_size(axis: int, what: str, tensors: Mapping[str, Tensor]) -> int:
    """Check that all tensors have one size along ``axis``, called ``what``, and return it.

    Raises:
        ValueError: a tensor differs from the first.
    """
    names = list(tensors)
    size = tensors[names[0]].shape[axis]
    for name in names[1:]:
        if tensors[name].shape[axis] != size:
            raise ValueError(
                f"{name} must have the {what} of {names[0]}, {size}, "
                f"got {tensors[name].shape[axis]}"
            )
    return size


def check_mask(
    name: str, mask: object, batches: tuple[int, ...], time: int, device: torch.device
) -> Tensor | None:
    """Return a mask (batch, time) of bool, or None.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: another shape or device.
    """
    if mask is None:
        return None
    mask = check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool with True = real, got {mask.dtype}")
    _check_steps(name, mask, batches, time, device)
    return mask


def check_times(
    name: str, times: object, batches: tuple[int, ...], time: int, device: torch.device
) -> Tensor:
    """Return times (batch, time) in seconds.

    Raises:
        TypeError: they are no floating point tensor.
        ValueError: another shape or device, or they require a gradient.
    """
    times = check_tensor(name, times)
    if not times.is_floating_point():
        raise TypeError(f"{name} must be floating point seconds, got {times.dtype}")
    if times.requires_grad:
        raise ValueError(f"{name} must not require a gradient: times are data, detach them")
    _check_steps(name, times, batches, time, device)
    return times


def _check_steps(
    name: str, tensor: Tensor, batches: tuple[int, ...], time: int, device: torch.device
) -> None:
    # Compared one by one: torch.compile does not trace `in` on sizes.
    fits = tensor.dim() == 2 and any(tensor.shape[0] == batch for batch in batches)
    if not fits or tensor.shape[1] != time:
        wanted = " or ".join(f"({batch}, {time})" for batch in dict.fromkeys(batches))
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def check_number(name: str, value: object, *, low: float, high: float = math.inf) -> float:
    """Return a number in ``[low, high]`` as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN or outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
    return float(value)


def check_count(name: str, value: object, *, low: int) -> int:
    """Return an integer of at least ``low``.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_scale(scale: object, head_dim: int) -> float:
    """Return the factor on the scores, ``head_dim ** -0.5`` by default.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite.
    """
    if scale is None:
        return float(head_dim**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    # Not math.isfinite: torch.compile(dynamic=True) gives a symbolic number.
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def check_dropout(
    dropout_p: object, dropout_seed: object, device: torch.device
) -> tuple[float, Tensor | None]:
    """Return the probability and the seed, drawn from torch's generator if None.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a probability outside [0, 1], or a seed that is not 0-dim.
    """
    probability = check_number("dropout_p", dropout_p, low=0.0, high=1.0)
    if isinstance(dropout_seed, Tensor):
        if dropout_seed.dtype != torch.int64:
            raise TypeError(f"dropout_seed must be int64, got {dropout_seed.dtype}")
        if dropout_seed.dim() != 0:
            raise ValueError(f"dropout_seed must be 0-dim, got shape {tuple(dropout_seed.shape)}")
    elif dropout_seed is not None:
        if isinstance(dropout_seed, bool) or not isinstance(dropout_seed, int):
            raise TypeError(
                f"dropout_seed must be an int or an int64 tensor, got {type(dropout_seed).__name__}"
            )
        if not -(2**63) <= dropout_seed < 2**63:
            raise ValueError(f"dropout_seed must fit in 64 bits, got {dropout_seed}")
    if probability == 0.0:
        return probability, None
    if isinstance(dropout_seed, Tensor):
        return probability, dropout_seed.to(device)
    if dropout_seed is not None:
        return probability, torch.full((), dropout_seed, dtype=torch.int64, device=device)
    return probability, torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def relative_times(
    times_a: Tensor,
    times_b: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return both times in the compute dtype of ``dtype``, counted from a common origin.

    Only differences of times matter. Taken from float64 clock readings (say 1.7e9 s since 1970)
    they would be lost in float32, so these are shifted first.
    """
    wide = compute_dtype(dtype)
    if torch.float64 in (times_a.dtype, times_b.dtype) and wide != torch.float64:
        lowest = [
            torch.where(mask, times, math.inf) if mask is not None else times
            for times, mask in ((times_a.double(), mask_a), (times_b.double(), mask_b))
        ]
        smallest = [x.flatten().amin() for x in lowest if x.numel()]
        if smallest:
            origin = torch.stack(smallest).amin()
            origin = torch.where(origin.isfinite(), origin, 0.0)
            times_a, times_b = times_a - origin, times_b - origin
    return times_a.to(wide), times_b.to(wide)


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast float32 and half precision to autocast's dtype where it is on for their device.

    Times and slopes are not to be passed: they stay in float32, seconds do not fit in half
    precision.
    """
    device = next((x.device.type for x in tensors if isinstance(x, Tensor)), "cpu")
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors
    ]


def check_pair(
    side_a: dict[str, Tensor],
    side_b: dict[str, Tensor],
    *,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    times_a: Tensor | None = None,
    times_b: Tensor | None = None,
    decay: Tensor | None = None,
    max_gap: float | None = None,
    deterministic: bool = True,
) -> PairOptions:
    """Validate the arguments of a cross-attention operator.

    Args:
        side_a: the tensors of A by their names; the first has the key dimension.
        side_b: the tensors of B by their names.
        mask_a: as in the public functions, like all that follow.
        mask_b: see there.
        scale: see there.
        dropout_p: see there.
        dropout_seed: see there.
        times_a: see there.
        times_b: see there.
        decay: see there.
        max_gap: see there.
        deterministic: see there.

    Returns:
        The options, with defaults filled in and times counted from a common origin.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
    """
    check_attention_tensors({**side_a, **side_b})
    time_a, time_b = (check_same_size(2, "time", side) for side in (side_a, side_b))
    batch_a, batch_b = (check_same_size(0, "batch size", side) for side in (side_a, side_b))
    name_b = next(iter(side_b))
    if batch_a != batch_b and 1 not in (batch_a, batch_b):
        raise ValueError(
            f"{name_b} must have the batch size of {next(iter(side_a))}, {batch_a}, "
            f"or one of them 1, got {batch_b}"
        )
    first = next(iter(side_a.values()))
    device, heads, head_dim = first.device, first.shape[1], first.shape[3]
    batch = batch_b if batch_a == 1 else batch_a
    batches = (batch, 1)
    mask_a = check_mask("mask_a", mask_a, batches, time_a, device)
    mask_b = check_mask("mask_b", mask_b, batches, time_b, device)
    if (times_a is None) != (times_b is None):
        missing, given = ("times_a", "times_b") if times_a is None else ("times_b", "times_a")
        raise ValueError(f"{missing} must be given with {given}, got None")
    if times_a is not None and times_b is not None:
        times_a = check_times("times_a", times_a, batches, time_a, device)
        times_b = check_times("times_b", times_b, batches, time_b, device)
        times_a, times_b = relative_times(times_a, times_b, mask_a, mask_b, first.dtype)
    if decay is not None:
        if times_a is None:
            raise ValueError("times_a and times_b must be given with decay, got None")
        decay = check_tensor("decay", decay)
        if not decay.is_floating_point():
            raise TypeError(f"decay must be floating point, got {decay.dtype}")
        if decay.shape != (heads,):
            raise ValueError(f"decay must have shape ({heads},), got {tuple(decay.shape)}")
        if decay.device != device:
            raise ValueError(f"decay must be on {device}, got {decay.device}")
        decay = decay.to(compute_dtype(first.dtype))
    gap = NO_TIMES if times_a is None else math.inf
    if max_gap is not None:
        if times_a is None:
            raise ValueError("times_a and times_b must be given with max_gap, got None")
        gap = check_number("max_gap", max_gap, low=0.0)
    probability, seed = check_dropout(dropout_p, dropout_seed, device)
    return PairOptions(
        decay=decay,
        mask_a=mask_a,
        mask_b=mask_b,
        times_a=times_a,
        times_b=times_b,
        dropout_seed=seed,
        scale=check_scale(scale, head_dim),
        max_gap=gap,
        dropout_p=probability,
        deterministic=check_flag("deterministic", deterministic),
    )
