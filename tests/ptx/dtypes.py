"""The types of PTX and the NumPy arrays that hold them.

A register is an array of unsigned integers with one element per thread. It is read through a
*view*: ``u`` the bits, ``s`` signed, ``f`` floating point (float16, float32, float64). NumPy has no
bfloat16, tf32 or packed pairs: those stay bits, and functions of `numerics` unpack them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tests.ptx.findings import PtxError

_UNSIGNED: dict[int, type[np.generic]] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED: dict[int, type[np.generic]] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOATING: dict[int, type[np.generic]] = {16: np.float16, 32: np.float32, 64: np.float64}
DTYPES: Mapping[str, Mapping[int, type[np.generic]]] = {
    "u": _UNSIGNED,
    "s": _SIGNED,
    "f": _FLOATING,
}


@dataclass(frozen=True)
class PtxType:
    """A type of an instruction or a register.

    Attributes:
        name: As PTX spells it, without the dot.
        bits: Width; 1 for predicates.
        view: How arrays of it are seen: "u", "s", "f", or "p" for predicates.
        family: "bits", "integer", "float" or "pred"; registers of one family may be mixed, and
            "bits" goes with every family but "pred".
    """

    name: str
    bits: int
    view: str
    family: str

    @property
    def dtype(self) -> type[np.generic]:
        """The NumPy type of the view."""
        return np.bool_ if self.view == "p" else DTYPES[self.view][self.bits]

    def accepts(self, register: PtxType, wider: bool = False) -> bool:
        """Whether an operand of this type may stand in ``register``.

        Args:
            register: The type that the register was declared with.
            wider: Whether the register may be wider, as ld, st and cvt allow.
        """
        if (self.family == "pred") != (register.family == "pred"):
            return False
        if register.bits != self.bits and not (wider and register.bits > self.bits):
            return False
        families = {self.family, register.family}
        return len(families) == 1 or "bits" in families


def _types() -> dict[str, PtxType]:
    types = [PtxType("pred", 1, "p", "pred")]
    for bits in (8, 16, 32, 64):
        types.append(PtxType(f"b{bits}", bits, "u", "bits"))
        types.append(PtxType(f"u{bits}", bits, "u", "integer"))
        types.append(PtxType(f"s{bits}", bits, "s", "integer"))
    types += [PtxType(f"f{bits}", bits, "f", "float") for bits in (16, 32, 64)]
    packed = {"bf16": 16, "tf32": 32, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
    types += [PtxType(name, bits, "u", "float") for name, bits in packed.items()]
    return {entry.name: entry for entry in types}


TYPES = _types()


def type_named(name: str) -> PtxType:
    """The type called ``name``; raises PtxError for one that the emulator does not know."""
    if name not in TYPES:
        raise PtxError(f"type .{name} is not known to the emulator")
    return TYPES[name]


def parse_immediate(text: str, wanted: PtxType) -> np.generic:
    """A constant of an instruction as a NumPy scalar of the type that its operand has.

    Raises:
        PtxError: For a constant of another width or kind, and for what is no constant.
    """
    if wanted.view == "p":
        return np.bool_(int(text, 0) != 0)
    if match := re.match(r"0([fF][0-9A-Fa-f]{8}|[dD][0-9A-Fa-f]{16})$", text):
        raw = bytes.fromhex(match[1][1:])[::-1]
    else:
        try:
            number = int(text.removesuffix("U"), 0)
        except ValueError:
            raise PtxError(f"operand {text} is not known") from None
        if wanted.view == "f":
            raise PtxError(f"{text} is not a floating-point constant")
        raw = struct.pack("<Q", number & (2**64 - 1))[: wanted.bits // 8]
    if 8 * len(raw) != wanted.bits:
        raise PtxError(f"{text} has {8 * len(raw)} bits where .{wanted.name} is wanted")
    value: np.generic = np.frombuffer(raw, DTYPES[wanted.view][wanted.bits])[0]
    return value
