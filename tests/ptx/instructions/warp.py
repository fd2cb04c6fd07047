"""What the lanes of a warp do together."""

from __future__ import annotations

from tests.ptx.forms import define

for _mode in ("bfly", "up", "down", "idx"):
    define(
        f"shfl.sync.{_mode}.b32",
        "b32|pred = b32, b32, b32, b32",
        f"warps.shuffle('{_mode}', a, b, c, d, m, here)",
        f"warps.shuffle_in_range('{_mode}', b, c)",
    )
define("vote.sync.ballot.b32", "b32 = pred, b32", "warps.ballot(a, b, m, here)")
define("vote.sync.any.pred", "pred = pred, b32", "warps.ballot(a, b, m, here) != 0")
define("vote.sync.all.pred", "pred = pred, b32", "warps.ballot(~a, b, m, here) == 0")
define("vote.sync.uni.pred", "pred = pred, b32", "warps.is_uniform(a, b, m, here)")
define("match.any.sync.b32", "b32 = b32, b32", "warps.match(a, b, m, here)")
for _operation in ("add", "min", "max"):
    for _type in ("u32", "s32"):
        define(
            f"redux.sync.{_operation}.{_type}",
            f"{_type} = {_type}, b32",
            f"warps.reduce('{_operation}', a, b, m, here)",
        )
for _operation in ("and", "or", "xor"):
    define(
        f"redux.sync.{_operation}.b32",
        "b32 = b32, b32",
        f"warps.reduce('{_operation}', a, b, m, here)",
    )
define("activemask.b32", "b32 =", "warps.active_mask(m)")
define("bar.warp.sync", "= b32", "warps.sync(a, m, here)")
define("elect.sync", "b32|pred = b32", "warps.elect(a, m, here)", "warps.is_elected(a)")
