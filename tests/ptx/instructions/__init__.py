"""The tables of the whitelist, by kind of instruction."""

from tests.ptx.instructions import arithmetic, cluster, conversion, logic, matrix, memory, warp

__all__ = ["arithmetic", "cluster", "conversion", "logic", "matrix", "memory", "warp"]
