"""Which compiled parts are usable here, and why the others are not.

The compiled parts are optional: nothing in this module ever makes ``import mmer`` fail. The build
writes ``_build_info.json`` (see ``setup.py``); a part may also be built and still not load, for
example under an older torch.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

import mmer

_FOLDER = Path(__file__).resolve().parent
_OPERATORS = _FOLDER / "_operators.so"
_CUDA = _FOLDER / "_cuda.so"
_NATIVE = "mmer._native"
_BUILD_INFO = _FOLDER / "_build_info.json"
_NEVER_BUILT = (
    "nothing was built in this source tree; run `pip install --no-build-isolation -e .` in it"
)


@cache
def load_operators() -> str | None:
    """Load the compiled operators into ``torch.ops.mmer_cpu``, once.

    Returns:
        None if they are loaded, otherwise the reason why they are not.
    """
    if not _OPERATORS.exists():
        return _recorded_reason("operators")
    try:
        torch.ops.load_library(_OPERATORS)
    except (OSError, RuntimeError) as error:
        return f"{_OPERATORS.name} is built, but does not load: {_first_line(error)}"
    torch.library.register_fake("mmer_cpu::philox_uniform_bits", _fake_philox_uniform_bits)
    return None


@cache
def load_cuda() -> str | None:
    """Load the CUDA operators into ``torch.ops.mmer_cuda``, once.

    Returns:
        None if they are loaded, otherwise the reason why they are not.
    """
    if not _CUDA.exists():
        return _recorded_reason("cuda")
    if torch.version.cuda is None:
        return f"{_CUDA.name} is built, but this torch is a build without CUDA"
    try:
        torch.ops.load_library(_CUDA)
    except (OSError, RuntimeError) as error:
        return f"{_CUDA.name} is built, but does not load: {_first_line(error)}"
    return None


@cache
def load_native() -> ModuleType | str:
    """Import the extension module ``mmer._native``, once.

    Returns:
        The module, or the reason why there is none.
    """
    try:
        module = import_module(_NATIVE)
    except ModuleNotFoundError:
        return _recorded_reason("native")
    except ImportError as error:
        return f"{_NATIVE} is built, but does not load: {_first_line(error)}"
    built_for = module.build_information()["version"]
    if built_for != mmer.__version__:
        return f"{_NATIVE} is of mmer {built_for}, not {mmer.__version__}; build it again"
    return module


def compiled_parts() -> dict[str, str | None]:
    """Return every part that mmer can have compiled, with None if usable, else why it is not."""
    native = load_native()
    return {
        "operators": load_operators(),
        "native": native if isinstance(native, str) else None,
        "cuda": load_cuda(),
    }


def _recorded_reason(part: str) -> str:
    try:
        recorded = json.loads(_BUILD_INFO.read_text(encoding="utf-8"))
        return str(recorded["left_out"].get(part, "it was built, but its file is gone"))
    except FileNotFoundError:
        return _NEVER_BUILT
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{_BUILD_INFO.name} cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _fake_philox_uniform_bits(
    seed: torch.Tensor, batch_heads: int, queries: int, keys: int, stream: int
) -> torch.Tensor:
    return seed.new_empty(batch_heads, queries, keys)
