"""Tensor cores and the loads and stores that feed them."""

from __future__ import annotations

from tests.ptx.forms import define

for _count in (1, 2, 4):
    for _trans, _flag in (("", False), (".trans", True)):
        _row = f"sync.aligned.m8n8.x{_count}{_trans}.shared{{::cta,}}.b16"
        define(
            f"ldmatrix.{_row}",
            f"{_count}*b32 = [shared]",
            f"shared_memory.load_matrix(a, {_count}, {_flag}, m, here)",
        )
        define(
            f"stmatrix.{_row}",
            f"= [shared], {_count}*b32",
            f"shared_memory.store_matrix(a, b, {_flag}, m, here)",
        )
define("movmatrix.sync.aligned.m8n8.trans.b16", "b32 = b32", "tensor.transpose(a, m, here)")

# mma.sync: {shape: registers of A, B and C}
for _shape, _a, _b, _types in (
    ("m16n8k16", 4, 2, ("bf16", "f16")),
    ("m16n8k8", 2, 1, ("bf16", "f16")),
    ("m16n8k8", 4, 2, ("tf32",)),
    ("m16n8k4", 2, 1, ("tf32",)),
):
    for _type in _types:
        define(
            f"mma.sync.aligned.{_shape}.row.col.f32.{_type}.{_type}.f32",
            f"4*f32 = {_a}*b32, {_b}*b32, 4*f32",
            f"tensor.mma('{_shape}', '{_type}', a, b, c, m, here)",
        )

# wgmma: A from registers or from shared memory, B from shared memory, both by descriptors.
for _columns in range(8, 257, 8):
    for _type, _k in (("bf16", 16), ("f16", 16), ("tf32", 8)):
        _opcode = f"wgmma.mma_async.sync.aligned.m64n{_columns}k{_k}.f32.{_type}.{_type}"
        _d = f"{_columns // 2}*f32"
        # tf32 operands are always K-major, so their forms lack the transpose flags.
        _flags_b, _flags_ab = (", int", ", int, int") if _k == 16 else ("", "")
        _trans_b, _trans_ab = ("f", "f, g") if _k == 16 else ("0", "0, 0")
        define(
            _opcode,
            f"{_d} = 4*b32, b64, pred, int, int{_flags_b}",
            f"wgmma.start('{_type}', {_columns}, old, a, b, c, (d, e), (0, {_trans_b}), m, here)",
        )
        define(
            _opcode,
            f"{_d} = b64, b64, pred, int, int{_flags_ab}",
            f"wgmma.start('{_type}', {_columns}, old, a, b, c, (d, e), ({_trans_ab}), m, here)",
        )
define("wgmma.fence.sync.aligned", "=", "wgmma.fence(m, here)")
define("wgmma.commit_group.sync.aligned", "=", "wgmma.commit(m, here)")
define("wgmma.wait_group.sync.aligned", "= int", "wgmma.wait(a, m, here)")
