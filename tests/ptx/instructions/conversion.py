"""Conversions between types and between address spaces."""

from __future__ import annotations

from tests.ptx.dtypes import TYPES
from tests.ptx.forms import define

_INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
_ROUNDINGS = {"rzi": "np.trunc", "rni": "np.rint", "rmi": "np.floor", "rpi": "np.ceil"}

for source in _INTEGERS:
    for destination in _INTEGERS:
        dtype = TYPES[destination].dtype.__name__
        define(f"cvt.{destination}.{source}", f"~{destination} = ~{source}", f"a.astype({dtype})")
    for destination in ("f16", "f32", "f64"):
        dtype = TYPES[destination].dtype.__name__
        define(f"cvt.rn.{destination}.{source}", f"{destination} = ~{source}", f"a.astype({dtype})")

for destination in _INTEGERS[2:]:
    dtype = TYPES[destination].dtype.__name__
    for modifier, function in _ROUNDINGS.items():
        define(
            f"cvt.{modifier}{{.ftz,}}.{destination}.f32",
            f"{destination} = f32",
            f"to_integer({function}(a), {dtype})",
        )
        for source in ("f16", "f64"):
            define(
                f"cvt.{modifier}.{destination}.{source}",
                f"{destination} = {source}",
                f"to_integer({function}(a), {dtype})",
            )
for modifier, function in _ROUNDINGS.items():
    define(f"cvt.{modifier}{{.ftz,}}.f32.f32", "f32 = f32", f"{function}(a)")

define("cvt.rn{.ftz,}.f32.f64", "f32 = f64", "a.astype(float32)")
define("cvt{.ftz,}.f64.f32", "f64 = f32", "a.astype(float64)")
define("cvt{.ftz,}.f32.f16", "f32 = f16", "a.astype(float32)")
define("cvt.f32.bf16", "f32 = bf16", "from_bfloat16(a)")
define("cvt.rn{.ftz,}.f16.f32", "f16 = f32", "a.astype(float16)")
define("cvt.rn.bf16.f32", "bf16 = f32", "to_bfloat16(a)")
define("cvt.rn.f16x2.f32", "f16x2 = f32, f32", "pack_halves(a.astype(float16), b.astype(float16))")
define("cvt.rn.bf16x2.f32", "bf16x2 = f32, f32", "pack_halves(to_bfloat16(a), to_bfloat16(b))")
define("cvt.rna.tf32.f32", "tf32 = f32", "to_tf32(a)")
define("cvt.rn.tf32.f32", "tf32 = f32", "to_tf32_even(a)")

# Shared and local memory have windows in the generic address space (`memory.SHARED_WINDOW` ...).
define("cvta.to.global.u64", "u64 = u64", "a")
define("cvta.global.u64", "u64 = u64", "a")
define("cvta.to.shared.u64", "u64 = u64", "a - uint64(SHARED_WINDOW)")
define("cvta.shared.u64", "u64 = u64", "a + uint64(SHARED_WINDOW)")
define("cvta.to.local.u64", "u64 = u64", "a - uint64(LOCAL_WINDOW)")
define("cvta.local.u64", "u64 = u64", "a + uint64(LOCAL_WINDOW)")
define("cvta.param.u64", "u64 = u64", "a + uint64(PARAMETER_WINDOW)")
define("cvta.to.param.u64", "u64 = u64", "a - uint64(PARAMETER_WINDOW)")
