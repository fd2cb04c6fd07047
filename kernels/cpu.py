"""The CPU backend: vectorised C++ kernels, one source for every instruction set (``csrc/cpu``).

Shared cross-attention computes its similarity matrix once, forward and backward. float16 and
bfloat16 are read and written by the kernels, which compute in float32.

The operators are defined by the compiled library; whoever loads it calls :func:`enter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import Backend, register_backend, set_unavailable
from .registration import OperatorDefinition, attach

NAMESPACE = "mmer_cpu"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def enter(definitions: Sequence[OperatorDefinition], unavailable: str | None) -> None:
    """Enter the backend into the table of backends, or the reason why it is not available.

    Args:
        definitions: the operators that the library defines.
        unavailable: None if the library is loaded, else why it is not.
    """
    if unavailable is None:
        unavailable = _choice_of_kernels_problem()
    if unavailable is not None:
        set_unavailable("cpu", unavailable)
        return
    for definition in definitions:
        attach(definition, NAMESPACE)
    names = frozenset(definition.name for definition in definitions)
    register_backend(Backend("cpu", ("cpu",), refuse, names, checked_dtypes=_DTYPES))


def kernel_capability() -> str:
    """Return which set of kernels runs: ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"portable"``.

    It is the best one for this CPU, or the one that the environment variable
    ``MMER_CPU_CAPABILITY`` named when mmer was imported.

    Raises:
        ValueError: that one is unknown, or cannot run on this CPU.
    """
    name: str = torch.ops.mmer_cpu.kernel_capability()
    return name


def refuse(definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    first = tensors[0]
    if first.dtype not in _DTYPES:
        return f"it computes in float32 and takes float32, float16 and bfloat16, not {first.dtype}"
    return None


def _choice_of_kernels_problem() -> str | None:
    try:
        kernel_capability()
    except AttributeError:
        return "the compiled operators are those of an older version; build mmer again"
    except (RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return None
