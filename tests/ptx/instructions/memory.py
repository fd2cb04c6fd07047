"""Loads, stores, asynchronous copies, atomics and fences."""

from __future__ import annotations

from tests.ptx.dtypes import TYPES
from tests.ptx.forms import define

_TYPES = [
    "b8",
    "u8",
    "s8",
    "b16",
    "u16",
    "s16",
    "b32",
    "u32",
    "s32",
    "f32",
    "b64",
    "u64",
    "s64",
    "f64",
]
# Cache hints, volatile and memory orders change when bytes arrive, never which.
_LOADS = {
    "param": ("ld.param",),
    "local": ("ld.local",),
    "shared": ("ld{.volatile,}.shared", "ld.shared::cta"),
    "cluster": ("ld{.volatile,}.shared::cluster",),
    "global": (
        "ld.global{.ca,.cg,.cs,.L1::evict_first,.L1::evict_last,}",
        "ld.global.nc{.L1::no_allocate,.L1::no_allocate.L2::128B,.L1::no_allocate.L2::256B,}",
        "ld.{volatile,relaxed.gpu,acquire.gpu}.global",
    ),
    "generic": ("ld{.volatile,}",),
}
_STORES = {
    "local": ("st.local",),
    "shared": ("st{.volatile,}.shared", "st.shared::cta"),
    "cluster": ("st{.volatile,}.shared::cluster",),
    "global": (
        "st.global{.cg,.cs,.wt,.L1::evict_first,.L1::evict_last,}",
        "st.{volatile,relaxed.gpu,release.gpu}.global",
    ),
    "generic": ("st{.volatile,}",),
}

for _count, _vector in ((1, ""), (2, ".v2"), (4, ".v4")):
    for _type in _TYPES:
        _bits = TYPES[_type].bits
        if _bits * _count > 128:
            continue
        for _space, _patterns in _LOADS.items():
            for _pattern in _patterns:
                define(
                    f"{_pattern}{_vector}.{_type}",
                    f"{_count}*~{_type} = [{_space}]",
                    f"{_space}_memory.load(a, uint{_bits}, {_count}, m, here)",
                )
        for _space, _patterns in _STORES.items():
            for _pattern in _patterns:
                define(
                    f"{_pattern}{_vector}.{_type}",
                    f"= [{_space}], {_count}*~{_type}",
                    f"{_space}_memory.store(a, b, uint{_bits}, m, here)",
                )

# Asynchronous copies land when they are awaited, never earlier.
for _cache, _sizes in (("ca", "(4, 8, 16)"), ("cg", "(16,)")):
    _pattern = f"cp.async.{_cache}.shared{{::cta,}}.global{{.L2::128B,.L2::256B,}}"
    define(_pattern, "= [shared], [global], int", f"copies.start(a, b, c, None, {_sizes}, m, here)")
    define(
        _pattern, "= [shared], [global], int, u32", f"copies.start(a, b, c, d, {_sizes}, m, here)"
    )
define("cp.async.commit_group", "=", "copies.commit(m)")
define("cp.async.wait_group", "= int", "copies.wait(a, m)")
define("cp.async.wait_all", "=", "copies.wait_all(m)")

# Read-modify-write, one lane after the other, in the order of the schedule.
_OPERATIONS = {
    "add": "u32 s32 u64 f32 f64 f16 f16x2 bf16 bf16x2",
    "min": "u32 s32 u64 s64",
    "max": "u32 s32 u64 s64",
    "and": "b32 b64",
    "or": "b32 b64",
    "xor": "b32 b64",
    "exch": "b32 b64",
    "cas": "b32 b64",
}
# PTX puts the memory order before the space, Triton's back end after it.
_ORDERED = {
    "global": (
        "global",
        "{relaxed,acq_rel}.gpu.global",
        "global.gpu.{relaxed,acquire,release,acq_rel}",
        "global.cta.{relaxed,acq_rel}",
    ),
    "shared": ("shared",),
    "cluster": ("shared::cluster",),
    "generic": ("",),
}
for _space, _patterns in _ORDERED.items():
    for _ordered in _patterns:
        for _operation, _types in _OPERATIONS.items():
            for _type in _types.split():
                _rounding = ".noftz" if "f16" in _type else ""
                _tail = f"{_ordered}.{_operation}{_rounding}.{_type}".removeprefix(".")
                _sources, _values = _type, "[b]"
                if _operation == "cas":
                    _sources, _values = f"{_type}, {_type}", "[b, c]"
                _call = f"{_space}_memory.update('{_operation}', '{_type}', a, {_values}, m, here)"
                define(f"atom.{_tail}", f"{_type} = [{_space}], {_sources}", _call)
                if _operation not in ("exch", "cas"):
                    define(f"red.{_tail}", f"= [{_space}], {_sources}", _call)
        if _space == "global":
            for _count in (2, 4):
                _tail = f"{_ordered}.add.v{_count}.f32"
                _call = "global_memory.update_vector('add', 'f32', a, b, m, here)"
                define(f"atom.{_tail}", f"{_count}*f32 = [global], {_count}*f32", _call)
                define(f"red.{_tail}", f"= [global], {_count}*f32", _call)

# Threads of a CTA see each other's writes in program order here, so plain fences change nothing.
define("membar.{cta,gl,sys}", "=", "None")
define("fence{.sc,.acq_rel,}.{cta,cluster,gpu,sys}", "=", "None")
define("fence.proxy.async{.shared::cta,}", "=", "shadow.proxy_fence(m)")
