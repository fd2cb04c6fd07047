"""Read-modify-write of many lanes on a few addresses: one lane after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import numerics
from tests.ptx.dtypes import type_named
from tests.ptx.findings import PtxError

Array = NDArray[Any]

_PAIRS: dict[str, Callable[..., Array]] = {
    "f16x2": numerics.on_float16_pairs,
    "bf16x2": numerics.on_bfloat16_pairs,
}
_OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def combine(operation: str, type_name: str, old: Array, values: list[Array]) -> Array:
    """The new value of each address.

    Args:
        operation: "add", "min", ..., "exch" or "cas".
        type_name: PTX type of the values.
        old: What stands at the addresses.
        values: The operands; ``cas`` has two, what is expected and what replaces it.
    """
    if operation == "exch":
        return values[0]
    if operation == "cas":
        return np.where(old == values[0], values[1], old)
    function = _OPERATIONS[operation]
    if type_name in _PAIRS:
        return _PAIRS[type_name](function, old, values[0])
    if type_name == "bf16":
        wide = function(*(numerics.from_bfloat16(x) for x in (old, values[0])))
        return numerics.to_bfloat16(wide)
    return function(old, values[0])


def apply(
    memory: NDArray[np.uint8],
    offsets: Array,
    operation: str,
    type_name: str,
    values: list[Array],
    order: Array,
) -> Array:
    """Update ``memory`` lane by lane and return what each lane found.

    Args:
        memory: The bytes.
        offsets: Byte offset of each lane, aligned to the type.
        operation: As in `combine`.
        type_name: As in `combine`.
        values: Operands of each lane.
        order: The permutation of lanes in which they take their turns.
    """
    type_ = type_named(type_name)
    if operation == "cas" and len(values) != 2:
        raise PtxError("cas takes two values")
    view = memory.view(type_.dtype)
    places = offsets[order] // (type_.bits // 8)
    # Lanes at one address wait for each other: round r serves the r-th lane of every address.
    by_place = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[by_place], prepend=-1))
    turns = np.empty(len(places), np.int64)
    lengths = np.diff(np.append(starts, len(places)))
    turns[by_place] = np.arange(len(places)) - np.repeat(starts, lengths)
    found = np.empty(len(places), view.dtype)
    for turn in range(int(turns.max(initial=-1)) + 1):
        now = order[turns == turn]
        here = offsets[now] // (type_.bits // 8)
        found[now] = view[here]
        view[here] = combine(operation, type_name, view[here], [value[now] for value in values])
    return found
