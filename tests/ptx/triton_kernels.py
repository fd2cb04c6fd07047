"""Small Triton kernels for tests of the emulator; imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_forward(
    query, key, value, out, lse, scale_log2, stride, steps, seed, dropout,
    BLOCK: tl.constexpr, DIM: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK queries of a head; (heads, steps, DIM) with rows ``stride`` apart."""
    head = tl.program_id(1).to(tl.int64)
    offsets_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offsets_d = tl.arange(0, DIM)
    base = head * steps * stride
    rows = base + offsets_m[:, None] * stride + offsets_d[None, :]
    q = tl.load(query + rows, mask=offsets_m[:, None] < steps, other=0.0)
    row_max = tl.full([BLOCK], -1e30, tl.float32)
    row_sum = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, DIM], tl.float32)
    for start in range(0, steps, BLOCK):
        offsets_n = start + tl.arange(0, BLOCK)
        columns = base + offsets_n[:, None] * stride + offsets_d[None, :]
        k = tl.load(key + columns, mask=offsets_n[:, None] < steps, other=0.0)
        v = tl.load(value + columns, mask=offsets_n[:, None] < steps, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        visible = offsets_n[None, :] < steps
        if CAUSAL:
            visible = visible & (offsets_m[:, None] >= offsets_n[None, :])
        s = tl.where(visible, s, -1e30)
        new_max = tl.maximum(row_max, tl.max(s, 1))
        p = tl.where(visible, tl.math.exp2(s - new_max[:, None]), 0.0)
        shrink = tl.math.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, 1)
        if DROPOUT:
            kept = tl.rand(seed, offsets_m[:, None] * steps + offsets_n[None, :]) >= dropout
            p = tl.where(kept, p / (1 - dropout), 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        row_max = new_max
    tl.store(
        out + rows, (acc / row_sum[:, None]).to(out.dtype.element_ty),
        mask=offsets_m[:, None] < steps,
    )  # fmt: skip
    tl.store(
        lse + head * steps + offsets_m, row_max + tl.math.log2(row_sum), mask=offsets_m < steps
    )


@triton.jit
def attention_backward(
    query, key, value, grad_out, lse, delta, grad_query, grad_key, grad_value,
    scale_log2, scale, steps,
    BLOCK: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK keys of a head; the queries' gradient is added up by atomics."""
    head = tl.program_id(1).to(tl.int64) * steps
    offsets_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offsets_d = tl.arange(0, DIM)
    columns = (head + offsets_n[:, None]) * DIM + offsets_d[None, :]
    k = tl.load(key + columns, mask=offsets_n[:, None] < steps, other=0.0)
    v = tl.load(value + columns, mask=offsets_n[:, None] < steps, other=0.0)
    dk = tl.zeros([BLOCK, DIM], tl.float32)
    dv = tl.zeros([BLOCK, DIM], tl.float32)
    for start in range(0, steps, BLOCK):
        offsets_m = start + tl.arange(0, BLOCK)
        real = offsets_m < steps
        rows = (head + offsets_m[:, None]) * DIM + offsets_d[None, :]
        q = tl.load(query + rows, mask=real[:, None], other=0.0)
        do = tl.load(grad_out + rows, mask=real[:, None], other=0.0)
        row_lse = tl.load(lse + head + offsets_m, mask=real, other=0.0)
        row_delta = tl.load(delta + head + offsets_m, mask=real, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        visible = real[:, None] & (offsets_n[None, :] < steps)
        p = tl.where(visible, tl.math.exp2(s - row_lse[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - row_delta[:, None]) * scale).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, dk, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION)
        tl.atomic_add(grad_query + rows, dq, mask=real[:, None], sem="relaxed")
    tl.store(grad_key + columns, dk, mask=offsets_n[:, None] < steps)
    tl.store(grad_value + columns, dv, mask=offsets_n[:, None] < steps)


@triton.jit
def philox(out, seed, count, BLOCK: tl.constexpr):
    """Four words of Philox for each counter."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, offsets)
    inside = offsets < count
    tl.store(out + offsets * 4, a, mask=inside)
    tl.store(out + offsets * 4 + 1, b, mask=inside)
    tl.store(out + offsets * 4 + 2, c, mask=inside)
    tl.store(out + offsets * 4 + 3, d, mask=inside)


@triton.jit
def reductions(x, counts, flags, floats, integers, scanned, kept, BLOCK: tl.constexpr):
    """Sums, extrema, a scan, a gather, integer arithmetic, bytes and the elementary functions."""
    offsets = tl.arange(0, BLOCK)
    values = tl.load(x + offsets)
    numbers = tl.load(counts + offsets)
    flag = tl.load(flags + offsets) != 0
    tl.store(floats, tl.sum(values))
    tl.store(floats + 1, tl.max(values))
    tl.store(integers, tl.sum(numbers))
    tl.store(integers + 1, tl.min(numbers))
    tl.store(integers + 2, tl.argmax(values, 0))
    turned = tl.gather(values, (offsets + 1) % BLOCK, 0)
    mixed = tl.exp(-tl.abs(turned)) + tl.log(tl.abs(values) + 1) + tl.sigmoid(values)
    mixed = mixed + tl.sqrt(tl.abs(turned)) + tl.floor(values) + tl.rsqrt(tl.abs(values) + 1)
    tl.store(scanned + offsets, tl.cumsum(mixed, 0))
    tl.store(kept + offsets, flag & (numbers % 7 > numbers // 50))
