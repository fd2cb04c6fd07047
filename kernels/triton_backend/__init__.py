"""The Triton backend: for GPUs of NVIDIA and AMD, imported when it is first used.

Which form runs where: shared cross-attention computes its similarity matrix once where one program
can hold the shorter side, the forward in bfloat16 and the backward in both halves
(``kernels/shared/triton.py``); beyond, each direction computes its own in one launch, as
bidirectional cross-attention always does. Every backward computes the scores again from the saved
log-sum-exps.

Under ``TRITON_INTERPRET=1``, set before Triton is imported, the same kernels run on the CPU:
slowly, in float32 and float16, for tests.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, register_backend, set_unavailable
from ..registration import OperatorDefinition, define

NAMESPACE = "mmer_triton"
_DISTRIBUTIONS = ("triton", "triton-rocm", "pytorch-triton", "pytorch-triton-rocm")
# In older ones no function of a kernel can return a tuple with a None in it.
_OLDEST = (3, 7)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Package of each operator inside of mmer.kernels.
_PACKAGES = {
    "shared_cross_attention": "shared",
    "bidirectional_cross_attention": "bidirectional",
    "chunked_attention": "chunked",
}


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def enter(definitions: Sequence[OperatorDefinition]) -> None:
    """Register the operators, and enter the backend or the reason why it cannot run here.

    The operators are registered wherever Triton is installed, so that saved programs that name them
    can be loaded; nothing of Triton is imported before one of them runs.
    """
    if importlib.util.find_spec("triton") is None:
        set_unavailable("triton", "Triton is not installed: pip install 'mmer-attention[triton]'")
        return
    for definition in definitions:
        _define(definition)
    if interpreted():
        device_types: tuple[str, ...] = ("cpu", "cuda")
    elif torch.cuda.device_count():
        device_types = ("cuda",)
    else:
        set_unavailable("triton", "torch sees no GPU")
        return
    names = frozenset(definition.name for definition in definitions)
    register_backend(Backend("triton", device_types, refuse, names))


def refuse(definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    first = tensors[0]
    version = _installed_version()
    if version is not None and version < _OLDEST:
        oldest, found = (".".join(map(str, x)) for x in (_OLDEST, version))
        return f"it needs Triton {oldest} or later, installed is {found}"
    if first.dtype not in _DTYPES:
        return f"it computes in float32 and takes float32, float16 and bfloat16, not {first.dtype}"
    if interpreted() and first.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly, on the bits of its numbers"
    if first.device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(first.device)
        if capability < (8, 0):
            found = ".".join(map(str, capability))
            return f"it needs CUDA capability 8.0 or later, this GPU has {found}"
    return None


@lru_cache
def _installed_version() -> tuple[int, ...] | None:
    """Major and minor version of Triton, without importing it; None if nobody says."""
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return tuple(int(x) for x in version.split(".")[:2])
    return None


def _planner(definition: OperatorDefinition) -> Any:
    name = f"..{_PACKAGES[definition.name]}.triton"
    return importlib.import_module(name, package=__name__)


def _define(definition: OperatorDefinition) -> None:
    outputs = definition.outputs

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        from .target import target_of

        *tensors, options = arguments
        with _device_of(tensors[0]):
            plan = _planner(definition).plan_forward(
                *tensors, options, target_of(tensors[0].device)
            )
            results: tuple[Tensor, ...] = plan.run()
        return results

    def backward(*arguments: Any) -> tuple[Tensor | None, ...]:
        from .target import target_of

        gradients, rest = arguments[: 2 * outputs], arguments[2 * outputs :]
        saved = rest[-2 * outputs :]
        *tensors, options = rest[: -2 * outputs]
        with _device_of(tensors[0]):
            plan = _planner(definition).plan_backward(
                gradients[:outputs],
                gradients[outputs:],
                tuple(tensors),
                options,
                saved[:outputs],
                tuple(x.contiguous() for x in saved[outputs:]),
                target_of(tensors[0].device),
            )
            results: tuple[Tensor | None, ...] = plan.run()
        return results

    define(definition, NAMESPACE, forward, backward)


def _device_of(x: Tensor) -> Any:
    # Triton launches on the current device.
    return torch.cuda.device_of(x)
