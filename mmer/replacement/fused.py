"""What a class that computes a library's attention with the fused operators is made of."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn


class OriginalAttentionWarning(UserWarning):
    """A replaced module ran the library's own attention, because of how it was called."""


class FusedModule(nn.Module):
    """Base of the classes that stand in for a library's class.

    Such a class derives from this one and from the library's, in this order, and overrides
    ``forward``. It adds no parameter, no buffer and no submodule: a module becomes fused by being
    given the class, and its weights, their names, its hooks and its place in optimizers and
    checkpoints stay what they are. What ``forward`` cannot do it leaves to
    :meth:`original_forward`.

    Attributes:
        attention_backend: which implementation the operators use; see
            ``mmer.kernels.available_backends``.
    """

    attention_backend: str = "auto"

    if TYPE_CHECKING:
        # All others are those of the library's class, which has no types.
        def __getattr__(self, name: str) -> Any: ...

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why a module cannot become fused, or None if it can.

        Args:
            module: of the library's class.
            name: its qualified name in the model, empty for the model itself.
        """
        return None

    def original_forward(self, reason: str, *arguments: Any, **options: Any) -> Any:
        """Run the library's own ``forward``, and warn that it did.

        Args:
            reason: what of the call the fused operators do not know.
            *arguments: of the call.
            **options: of the call.
        """
        if not torch.compiler.is_compiling():
            library_class = original_class(type(self)).__name__
            warnings.warn(
                f"{library_class} computes its own attention, because {reason}",
                OriginalAttentionWarning,
                stacklevel=3,
            )
        return super().forward(*arguments, **options)


def original_class(fused: type[FusedModule]) -> type[nn.Module]:
    """Return the library's class that a fused class stands in for."""
    for base in fused.__mro__:
        if issubclass(base, nn.Module) and not issubclass(base, FusedModule):
            if base is nn.Module:
                break
            return base
    raise TypeError(f"{fused.__name__} must derive from the class that it stands in for")


def unknown_arguments(fused: type[FusedModule]) -> str | None:
    """Return how the library's ``forward`` differs from the one that was written for, or None."""
    known = list(inspect.signature(fused.forward).parameters)
    found = list(inspect.signature(original_class(fused).forward).parameters)
    if "args" in known or known == found:
        return None
    return f"this version's forward takes {found[1:]}, known is {known[1:]}"


def too_wide(head_dim: int) -> str | None:
    """Return a reason if the operators do not take heads of this width."""
    return f"its heads are {head_dim} wide, 256 is the most" if head_dim > 256 else None


def values_can_be_read(x: Tensor) -> bool:
    """Return whether Python may look at the values of a tensor, at the price of waiting for them.

    Not while a program is traced, nor while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())
