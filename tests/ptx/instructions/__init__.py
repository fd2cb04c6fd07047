"""The tables of the whitelist, by kind of instruction."""

from tests.ptx.instructions import arithmetic, conversion, logic, matrix, memory, warp

__all__ = ["arithmetic", "conversion", "logic", "matrix", "memory", "warp"]
