"""Which backend runs a call, and why each of the others does not.

A backend enters the table by :func:`register_backend` when its kernels are there. ``auto`` takes
the first in the device's order of preference that does not refuse the call; an explicit request is
never replaced by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .direct import nothing_watches, transforms_are_active
from .registration import OperatorDefinition, define, direct_call

BACKENDS = ("cuda", "triton", "cpu", "reference")
_PREFERENCE = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpu", "reference"),
}

Refusal = Callable[[OperatorDefinition, Sequence[Tensor], Any], "str | None"]


@dataclass(frozen=True)
class Backend:
    """One implementation of some of the operators.

    Attributes:
        name: one of :data:`BACKENDS`.
        device_types: devices whose tensors it takes; empty for all.
        refuse: ``(definition, tensors, options) -> reason`` why it cannot run a call, or None if it
            can.
        operators: names of the operators it has kernels for.
        checked_dtypes: dtypes for which its operators themselves refuse whatever does not fit
            together, so that a common call need not be validated before.
    """

    name: str
    device_types: tuple[str, ...]
    refuse: Refusal
    operators: frozenset[str]
    checked_dtypes: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Which backend an operator takes and what was said of the others.

    Attributes:
        operator: name of the operator.
        chosen: the backend that ``auto`` takes.
        reasons: for each backend, in order of preference, why it is taken or refused.
    """

    operator: str
    chosen: str
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a backend."""
        lines = [f"{self.operator}: {self.chosen}"]
        lines += [f"  {name:<10} {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


_registered: dict[str, Backend] = {}
_unavailable: dict[str, str] = {
    "cuda": "its operators are not loaded",
    "triton": "its operators are not registered",
    "cpu": "its operators are not loaded",
}


def register_backend(backend: Backend) -> None:
    """Enter a backend whose operators are registered under ``mmer_<name>``."""
    _registered[backend.name] = backend
    _unavailable.pop(backend.name, None)


def set_unavailable(name: str, reason: str) -> None:
    """Say why a backend cannot run on this machine."""
    _unavailable[name] = reason


def define_reference(*definitions: OperatorDefinition) -> None:
    """Register the reference of each operator as the backend that takes every call."""
    for definition in definitions:
        outputs = definition.outputs

        def backward(
            *arguments: Any, definition: OperatorDefinition = definition, outputs: int = outputs
        ) -> Any:
            # The reference computes everything from the inputs and has no use for saved outputs.
            assert definition.backward is not None
            return definition.backward(*arguments[: -2 * outputs])

        derivative = None if definition.backward is None else backward
        define(definition, "mmer_reference", definition.forward, derivative)
    names = frozenset(definition.name for definition in definitions)
    register_backend(Backend("reference", (), lambda *_: None, names))


def available_backends() -> tuple[str, ...]:
    """Return the backends that can run on this machine, in order of preference."""
    return tuple(name for name in BACKENDS if name in _registered)


def machine_reasons() -> dict[str, str]:
    """Return, for each backend, ``"available"`` or why it cannot run on this machine."""
    return {name: _unavailable.get(name, "available") for name in BACKENDS}


def why_no_kernels(device_type: str) -> str | None:
    """Return why none but the reference runs on tensors of a device, or None if a kernel does."""
    wanted = [name for name in _PREFERENCE.get(device_type, ()) if name != "reference"]
    if not wanted:
        return f"there are no kernels for {device_type}"
    if any(name in _registered for name in wanted):
        return None
    return "; ".join(f"{name}: {_unavailable[name]}" for name in wanted)


def refusal(
    name: str, definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> str | None:
    """Return why a backend cannot run this call, or None if it can."""
    backend = _registered.get(name)
    if backend is None:
        return _unavailable[name]
    if definition.name not in backend.operators:
        return f"it has no kernel for {definition.name}"
    device_type = tensors[0].device.type
    if backend.device_types and device_type not in backend.device_types:
        return (
            f"it takes tensors on {' or '.join(backend.device_types)}, these are on {device_type}"
        )
    return backend.refuse(definition, tensors, options)


def choose(
    requested: str, definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> str:
    """Return the backend that runs a call.

    Raises:
        ValueError: ``backend`` is no backend's name.
        RuntimeError: the requested backend cannot run this call; the message says why.
    """
    if requested == "auto":
        for name in _PREFERENCE.get(tensors[0].device.type, ("reference",)):
            if name in _registered and refusal(name, definition, tensors, options) is None:
                return name
        return "reference"
    if requested not in BACKENDS:
        raise ValueError(f'backend must be "auto" or one of {BACKENDS}, got {requested!r}')
    reason = refusal(requested, definition, tensors, options)
    if reason is not None:
        raise RuntimeError(f"backend {requested!r} cannot run {definition.name}: {reason}")
    return requested


def explain_call(
    definition: OperatorDefinition, tensors: Sequence[Tensor], options: Any
) -> Explanation:
    """Return what ``auto`` would choose for a call, and why."""
    order = _PREFERENCE.get(tensors[0].device.type, ("reference",))
    chosen = choose("auto", definition, tensors, options)
    reasons = {}
    for name in (*order, *(name for name in BACKENDS if name not in order)):
        reason = refusal(name, definition, tensors, options)
        if name == chosen:
            reasons[name] = "chosen"
        elif reason is not None:
            reasons[name] = f"refused: {reason}"
        else:
            reasons[name] = f"could run it, {chosen} is preferred"
    return Explanation(definition.name, chosen, reasons)


def run(
    requested: str,
    definition: OperatorDefinition,
    tensors: Sequence[Tensor],
    options: Any,
    return_lse: bool,
) -> tuple[Tensor, ...]:
    """Run a validated call on the backend that was requested or chosen.

    Registered operators with derivatives do not take part in the transforms of ``torch.func`` and
    have no forward-mode derivative: inside of these the reference runs as plain PyTorch.

    Returns:
        The outputs and, if they were asked for, the log-sum-exps.
    """
    name = choose(requested, definition, tensors, options)
    wanted = 2 * definition.outputs if return_lse else definition.outputs
    if nothing_watches():
        direct = direct_call(definition, f"mmer_{name}")((*tensors, *options), wanted)
        if direct is not None:
            return direct
    elif not torch.compiler.is_compiling() and transforms_are_active():
        if requested not in ("auto", "reference"):
            raise RuntimeError(
                f"backend {requested!r} cannot run {definition.name}: inside a transform of "
                f'torch.func only "reference" can'
            )
        return definition.forward(*tensors, options)[:wanted]
    operator = getattr(getattr(torch.ops, f"mmer_{name}"), definition.name)
    outputs: tuple[Tensor, ...] = operator(*tensors, *options)[:wanted]
    return outputs


def plain_head_dim(requested: str, tensor: object, dropout_p: object, deterministic: object) -> int:
    """Return the last size of a call's first tensor if :func:`run_plain` may try it, else 0."""
    backend = _registered.get("cpu")
    if (
        nothing_watches()
        and requested == "auto"
        and isinstance(dropout_p, float)
        and dropout_p == 0.0
        and deterministic is True
        and backend is not None
        and isinstance(tensor, Tensor)
        and tensor.is_cpu
        and tensor.dtype in backend.checked_dtypes
        and tensor.dim() == 4
        and not torch.is_autocast_enabled("cpu")
    ):
        return tensor.shape[3]
    return 0


def run_plain(
    definition: OperatorDefinition, arguments: tuple[Any, ...], return_lse: bool
) -> tuple[Tensor, ...] | None:
    """Run a call that was not validated, if it is of the kind that most calls are.

    The CPU's operators refuse tensors that do not fit together, but do not say what is wrong: a
    call that is not run here must be validated, and run by :func:`run`.

    Args:
        definition: the operator.
        arguments: tensors and masks as they were given, and no other options than the defaults.
        return_lse: whether the log-sum-exps are wanted.

    Returns:
        The outputs and, if they were asked for, the log-sum-exps; None if the call was not run.
    """
    try:
        wanted = 2 * definition.outputs if return_lse else definition.outputs
        return direct_call(definition, "mmer_cpu")(arguments, wanted)
    except RuntimeError:
        return None
