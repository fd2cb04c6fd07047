"""Arithmetic of the GPU on NumPy arrays: one element per thread.

Tensor cores and fused multiply-adds are computed in float64 and rounded once; what real hardware
does inside (truncation, order of accumulation, the last bits of ex2 and lg2) is not modelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SMALLEST_NORMAL = np.float32(2.0**-126)


def flush(x: Array) -> Array:
    """Replace subnormal float32 by zero of the same sign (``.ftz``)."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def perturb(x: Array, ulps: int, random: np.random.Generator) -> Array:
    """Move finite float32 by up to ``ulps`` units in the last place; zeros stay."""
    moved = x.view(np.int32) + random.integers(-ulps, ulps + 1, x.shape, np.int32)
    return np.where(np.isfinite(x) & (np.abs(x) > _SMALLEST_NORMAL), moved.view(np.float32), x)


def fma(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32: exact product and sum in float64, then one more rounding."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)


def fma_half(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float16."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float16)


def saturate(x: Array) -> Array:
    """Clamp to [0, 1]; NaN becomes 0 (``.sat``)."""
    return np.fmin(np.fmax(x, x.dtype.type(0)), x.dtype.type(1))


def minimum(a: Array, b: Array) -> Array:
    """The smaller; a NaN gives way to the other operand, and -0 is below +0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def maximum(a: Array, b: Array) -> Array:
    """The larger; a NaN gives way to the other operand, and +0 is above -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def minimum_nan(a: Array, b: Array) -> Array:
    """The smaller, or NaN if either is (``.NaN``)."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), minimum(a, b))


def maximum_nan(a: Array, b: Array) -> Array:
    """The larger, or NaN if either is (``.NaN``)."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), maximum(a, b))


def ordered(a: Array, b: Array) -> Array:
    """Neither is NaN."""
    return ~(np.isnan(a) | np.isnan(b))


def from_bfloat16(bits: Array) -> Array:
    """bfloat16 bits (uint16) as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(x: Array) -> Array:
    """float32 to bfloat16 bits, to nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def to_tf32(x: Array) -> Array:
    """float32 to tf32 bits, to nearest with ties away from zero (``.rna``)."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)


def to_tf32_even(x: Array) -> Array:
    """float32 to tf32 bits, to nearest even (``.rn``)."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    rounded = (bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)


def pack_halves(high: Array, low: Array) -> Array:
    """Two 16-bit arrays as one of 32 bits."""
    high, low = (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) for x in (high, low))
    return (high << np.uint32(16)) | low


def low_half(x: Array) -> Array:
    """The lower 16 bits of each element."""
    return (x & np.uint32(0xFFFF)).astype(np.uint16)


def high_half(x: Array) -> Array:
    """The upper 16 bits of each element."""
    return (x >> np.uint32(16)).astype(np.uint16)


def on_float16_pairs(function: Any, *operands: Array) -> Array:
    """Apply a function of float16 arrays to both halves of packed operands."""
    low = function(*(low_half(x).view(np.float16) for x in operands))
    high = function(*(high_half(x).view(np.float16) for x in operands))
    return pack_halves(high.astype(np.float16), low.astype(np.float16))


def on_bfloat16_pairs(function: Any, *operands: Array) -> Array:
    """Apply a function of float32 arrays to both halves of packed bfloat16 operands."""
    low = function(*(from_bfloat16(low_half(x)) for x in operands))
    high = function(*(from_bfloat16(high_half(x)) for x in operands))
    return pack_halves(to_bfloat16(high), to_bfloat16(low))


def on_float32_pairs(function: Any, *operands: Array) -> Array:
    """Apply a function of float32 arrays to both halves of 64-bit operands."""
    results = function(*(np.ascontiguousarray(x).view(np.float32) for x in operands))
    return np.ascontiguousarray(results).view(np.uint64)


def to_integer(x: Array, dtype: Any) -> Array:
    """Rounded floats to integers as cvt does it: NaN becomes 0, the rest saturates."""
    limits = np.iinfo(dtype)
    wide = x.astype(np.float64)
    clipped = np.where(np.isnan(wide), 0, np.clip(wide, float(limits.min), float(limits.max)))
    converted = clipped.astype(dtype)
    # 2^63 and 2^64 are not among the integers that their float stands for.
    return np.where(wide >= float(limits.max), dtype(limits.max), converted)


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product of two 32-bit or 16-bit integers."""
    bits = a.dtype.itemsize * 8
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)


def multiply_high_64(a: Array, b: Array) -> Array:
    """The upper half of the product of two 64-bit integers."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    middle = x_high * y_low + ((x_low * y_low) >> half)
    carry = (middle & mask) + x_low * y_high
    high = x_high * y_high + (middle >> half) + (carry >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Integer division that truncates; by zero it gives all ones, as GPUs do."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // safe
    else:
        unsigned = np.dtype(a.dtype.str.replace("i", "u"))
        negative = (a < 0) ^ (safe < 0)
        magnitude = np.abs(a).view(unsigned) // np.abs(safe).view(unsigned)
        quotient = np.where(negative, -magnitude.view(a.dtype), magnitude.view(a.dtype))
    return np.where(zero, ~a.dtype.type(0), quotient)


def remainder(a: Array, b: Array) -> Array:
    """What `divide` leaves; by zero it gives the dividend."""
    return np.where(b == 0, a, a - divide(a, b) * b)


def shift_left(a: Array, count: Array) -> Array:
    """Shift; counts of the width or more give 0."""
    bits = a.dtype.itemsize * 8
    shifted = a << np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: Array, count: Array) -> Array:
    """Shift; counts of the width or more give 0, or copies of the sign."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


def funnel_left(low: Array, high: Array, count: Array, wrap: bool) -> Array:
    """The upper word of ``high:low`` shifted left; the count wraps at 32, or is clamped there."""
    count = _funnel_count(count, wrap)
    pair = (high.astype(np.uint64) << np.uint64(32)) | low
    return ((pair << count) >> np.uint64(32)).astype(np.uint32)


def funnel_right(low: Array, high: Array, count: Array, wrap: bool) -> Array:
    """The lower word of ``high:low`` shifted right; the count wraps at 32, or is clamped there."""
    pair = (high.astype(np.uint64) << np.uint64(32)) | low
    return (pair >> _funnel_count(count, wrap)).astype(np.uint32)


def _funnel_count(count: Array, wrap: bool) -> Array:
    limited = count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))
    return limited.astype(np.uint64)


def extract_unsigned(a: Array, position: Array, length: Array) -> Array:
    """bfe: ``length`` bits from ``position`` on; both are taken modulo 256."""
    return ((a.astype(np.uint64) >> _field(position)) & _ones(_field(length))).astype(a.dtype)


def extract_signed(a: Array, position: Array, length: Array) -> Array:
    """bfe.s32, bfe.s64: the same, filled up with the sign of the field (or of the word)."""
    position, length = _field(position), _field(length)
    width = np.uint64(8 * a.dtype.itemsize)
    one = np.uint64(1)
    bits = a.astype(np.int64).view(np.uint64)
    top = np.minimum(position + np.maximum(length, one) - one, width - one)
    sign = ((bits >> top) & one) * (length > 0)
    keep = _ones(np.minimum(length, width - np.minimum(position, width)))
    field = ((bits >> position) & keep) | (_ones(sign * np.uint64(64)) & ~keep)
    return field.view(np.int64).astype(a.dtype)


def _ones(length: Array) -> Array:
    """Words of 64 bits, the lower ``length`` of them set."""
    return (np.uint64(1) << length) - np.uint64(1)


def insert_bits(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: the lower bits of ``a`` replace a field of ``b``."""
    position = np.minimum(_field(position), np.uint64(32))
    length = np.minimum(_field(length), np.uint64(32))
    keep = ((np.uint64(1) << length) - np.uint64(1)) << position
    inserted = (b.astype(np.uint64) & ~keep) | ((a.astype(np.uint64) << position) & keep)
    return inserted.astype(np.uint32)


def _field(x: Array) -> Array:
    return x.astype(np.uint64) & np.uint64(255)


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: any function of three bits, given by its truth table."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes out of the eight of ``b:a``; bit 3 of a selector copies the byte's sign."""
    pool = np.stack(
        [(word >> np.uint32(8 * i)) & np.uint32(255) for word in (a, b) for i in range(4)]
    )
    result = np.zeros_like(a)
    for place in range(4):
        chosen = (selector >> np.uint32(4 * place)) & np.uint32(15)
        byte = np.take_along_axis(pool, (chosen & np.uint32(7))[None].astype(np.int64), 0)[0]
        sign = np.where(byte & np.uint32(0x80), np.uint32(255), np.uint32(0))
        result |= np.where(chosen & np.uint32(8), sign, byte) << np.uint32(8 * place)
    return result


def pack(parts: list[Array], dtype: Any) -> Array:
    """Concatenate the bits of ``parts``, the first lowest, into elements of ``dtype``."""
    return np.ascontiguousarray(np.stack(parts, axis=-1)).view(dtype).reshape(-1)


def unpack(x: Array, dtype: Any) -> Array:
    """Split elements into parts of ``dtype``, the lowest first: (parts, threads)."""
    return np.ascontiguousarray(x).view(dtype).reshape(len(x), -1).T


def count_bits(x: Array) -> Array:
    """The number of ones in each element."""
    return np.bitwise_count(x).astype(np.uint32)


def leading_zeros(x: Array) -> Array:
    """The number of zeros above the highest one; the width for 0."""
    bits = x.dtype.itemsize * 8
    result = np.zeros(x.shape, np.uint32)
    for shift in range(bits):
        result += (x >> x.dtype.type(shift)) == 0
    return result


def highest_bit(x: Array) -> Array:
    """bfind: the place of the highest one, or all ones for 0."""
    zeros = leading_zeros(x)
    return np.where(x == 0, np.uint32(0xFFFFFFFF), np.uint32(x.dtype.itemsize * 8 - 1) - zeros)


def reverse_bits(x: Array) -> Array:
    """The bits of each 32-bit element in reverse."""
    result = np.zeros_like(x)
    for place in range(32):
        bit = (x >> np.uint32(place)) & np.uint32(1)
        result |= bit << np.uint32(31 - place)
    return result
