"""The CUDA backend: C++ kernels for NVIDIA GPUs of compute capability 8.0 on (``csrc/cuda``).

Shared cross-attention computes its similarity matrix once, forward and backward, where a block owns
a head or a group of its rows (``csrc/cuda/plan_forward.cpp`` and ``plan_once_backward.h`` say
when). Else it is computed once for each direction in one launch forward, and backward once for the
rows of either side, whose block takes both roles of a row. float16 and bfloat16
are multiplied on tensor cores and added up in float32. float32 is too, as sums of two tf32
numbers (three products, each exact to 2^-21), its forward once for each direction. Always
deterministic: no result is added up by atomics.

The operators are defined by the compiled library; whoever loads it calls :func:`enter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import Backend, register_backend, set_unavailable
from .registration import OperatorDefinition, attach

NAMESPACE = "mmer_cuda"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_OLDEST_CAPABILITY = (8, 0)
_LARGEST_DIM = 256
_LONGEST = 2**29


def enter(definitions: Sequence[OperatorDefinition], unavailable: str | None) -> None:
    """Enter the backend into the table of backends, or the reason why it is not available.

    Args:
        definitions: the operators that the library defines.
        unavailable: None if the library is loaded, else why it is not.
    """
    if unavailable is not None:
        set_unavailable("cuda", unavailable)
        return
    for definition in definitions:
        attach(definition, NAMESPACE)
    names = frozenset(definition.name for definition in definitions)
    register_backend(Backend("cuda", ("cuda",), refuse, names))


def refuse(definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    reason = refuse_call(tensors, options)
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(tensors[0].device)
    if capability < _OLDEST_CAPABILITY:
        have, need = (".".join(map(str, x)) for x in (capability, _OLDEST_CAPABILITY))
        return f"it needs compute capability {need}, {tensors[0].device} has {have}"
    return None


def refuse_call(tensors: Sequence[Tensor], options: Any) -> str | None:
    """Return why no GPU could run a call with these kernels, or None."""
    first = tensors[0]
    if first.dtype not in _DTYPES:
        return f"it takes float16, bfloat16 and float32, not {first.dtype}"
    dims = {x.shape[3] for x in tensors}
    if not 1 <= min(dims) <= max(dims) <= _LARGEST_DIM:
        return f"it takes head and value dimensions from 1 to {_LARGEST_DIM}, got {sorted(dims)}"
    if max(x.shape[2] for x in tensors) > _LONGEST:
        return f"it takes up to 2**29 steps, got {max(x.shape[2] for x in tensors)}"
    return None
