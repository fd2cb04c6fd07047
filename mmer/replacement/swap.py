"""Finding attention modules in a model, making them fused, and undoing it."""

from __future__ import annotations

import itertools
import warnings
from types import TracebackType

from torch import nn

from mmer.kernels.backends import BACKENDS, why_no_kernels

from .fused import FusedModule
from .rules import fused_class_for


class Replacement:
    """What :func:`replace_attention` did to a model, and the way back.

    As a context manager it undoes the replacement at the end of the block.

    Attributes:
        replaced: name of each module that is fused now, with what it was and what it is.
        left_alone: name of each attention module that was not touched, and why.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, str] = {}
        self.left_alone: dict[str, str] = {}
        self._before: list[tuple[FusedModule, type[nn.Module]]] = []

    def replace(self, name: str, module: nn.Module, fused: type[FusedModule], backend: str) -> None:
        """Make one module fused."""
        library_class = type(module)
        module.__class__ = fused
        assert isinstance(module, fused)
        module.attention_backend = backend
        self._before.append((module, library_class))
        self.replaced[name] = f"{library_class.__name__} -> {fused.__name__}"

    def undo(self) -> None:
        """Give every replaced module its class back. Once is enough, twice does no harm."""
        for module, library_class in self._before:
            module.__class__ = library_class  # type: ignore[assignment]
            vars(module).pop("attention_backend", None)
        self._before.clear()

    def __enter__(self) -> Replacement:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        """One line for all modules of which the same is to be said."""
        lines = []
        for title, modules in (("replaced", self.replaced), ("left alone", self.left_alone)):
            lines.append(f"{title}: {len(modules)}")
            for text in dict.fromkeys(modules.values()):
                names = [name or "(the model)" for name, said in modules.items() if said == text]
                several = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {names[0]}{several}: {text}")
        return "\n".join(lines)


def replace_attention(model: nn.Module, *, backend: str = "auto") -> Replacement:
    """Let the fused operators compute the attention of a model that is made of other libraries.

    Known are the cross-attention of LightGlue (kornia, transformers), the image-text fusion of
    GroundingDINO (transformers, and its authors' package) and MM-GroundingDINO (transformers),
    bidirectional-cross-attention, local-attention, and what :func:`register_replacement` was given.
    The modules stay where and what they are: only their class changes, to one derived from it. So
    parameters and their names, hooks, optimizers and checkpoints are as before.

    What the fused operators cannot do is left to the library's own code: at once, with the reason
    in ``left_alone``, where a module's options say so; at a call, with an
    :class:`OriginalAttentionWarning`, where its arguments do (attention maps are requested, say).
    Results are the same up to rounding, except where ``docs/drop_in.md`` says otherwise: a row
    that sees nothing gets 0, and what stands in padded rows has no meaning. Where no kernel can
    run on the model's device, a warning says why, and plain PyTorch computes the operators.

    Args:
        model: is changed in place; a single attention module will do, too.
        backend: which implementation to use; see ``mmer.kernels.available_backends``.

    Returns:
        What was done; ``print`` it. ``with replace_attention(model): ...`` undoes it afterwards,
        and so does its method ``undo``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``backend`` is no backend's name.

    Example:
        >>> matcher = kornia.feature.LightGlue("disk")
        >>> print(mmer.replace_attention(matcher))
        replaced: 18
          transformers.0 and 8 more: TransformerLayer -> FusedTransformerLayer
          transformers.0.cross_attn and 8 more: CrossBlock -> FusedCrossBlock
        left alone: 0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f'backend must be "auto" or one of {BACKENDS}, got {backend!r}')
    replacement = Replacement()
    for name, module in list(model.named_modules()):
        fused = fused_class_for(module, name)
        if isinstance(fused, str):
            replacement.left_alone[name] = fused
        elif fused is not None:
            replacement.replace(name, module, fused, backend)
    if not replacement.replaced:
        warnings.warn(f"nothing was replaced in this model\n{replacement}", stacklevel=2)
    elif backend == "auto":
        _warn_of_missing_kernels(model)
    return replacement


def _warn_of_missing_kernels(model: nn.Module) -> None:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    device_type = "cpu" if tensor is None else tensor.device.type
    reason = None if device_type == "meta" else why_no_kernels(device_type)
    if reason is not None:
        warnings.warn(
            "results stay the same, but nothing gets faster: plain PyTorch computes the operators "
            f"here ({reason})",
            stacklevel=3,
        )
