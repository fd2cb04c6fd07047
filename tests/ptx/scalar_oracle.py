"""What arithmetic instructions give, one thread at a time, in exact Python numbers.

Written without a look at `numerics`: integers are Python integers, floats are rounded fractions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tests.ptx.forms import Form

# Exponent of the smallest normal number, bits of the significand, largest exponent.
_FLOATS = {
    "f16": (-14, 11, 15),
    "bf16": (-126, 8, 127),
    "tf32": (-126, 11, 127),
    "f32": (-126, 24, 127),
    "f64": (-1022, 53, 1023),
}
_PAIRS = {"f16x2": ("f16", 16), "bf16x2": ("bf16", 16), "f32x2": ("f32", 32)}

# Relative error allowed where hardware only approximates (in units of float32's last place).
APPROXIMATE = {"ex2", "lg2", "sin", "cos", "tanh", "rsqrt"}


def width(type_name: str) -> int:
    """Bits of a type."""
    if type_name == "pred":
        return 1
    special = {"bf16": 16, "tf32": 32, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
    return special.get(type_name) or int(type_name[1:])


def round_float(value: Fraction, type_name: str) -> float:
    """The nearest number of a floating-point type, ties to even; overflow gives infinity."""
    smallest, precision, largest = _FLOATS[type_name]
    if value == 0:
        return 0.0
    exponent = _exponent(abs(value))
    step = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    quotient = value / step
    floor = math.floor(quotient)
    rest = quotient - floor
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2):
        floor += 1
    rounded = floor * step
    if abs(rounded) >= Fraction(2) ** (largest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def _exponent(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def decode(bits: int, type_name: str) -> Any:
    """Bits as a Python number, or as a pair of them."""
    if type_name == "pred":
        return bool(bits)
    if type_name in _PAIRS:
        element, size = _PAIRS[type_name]
        return decode(bits & (2**size - 1), element), decode(bits >> size, element)
    if type_name in _FLOATS:
        if type_name == "bf16":
            bits, type_name = bits << 16, "f32"
        code = {16: "<He", 32: "<If", 64: "<Qd"}[width(type_name)]
        return struct.unpack(f"<{code[2]}", struct.pack(code[:2], bits))[0]
    if type_name[0] == "s" and bits >> (width(type_name) - 1):
        return bits - 2 ** width(type_name)
    return bits


def encode(value: Any, type_name: str) -> int:
    """A Python number, already rounded, as bits."""
    if type_name == "pred":
        return int(value)
    if type_name in _PAIRS:
        element, size = _PAIRS[type_name]
        return encode(value[0], element) | encode(value[1], element) << size
    if type_name in _FLOATS:
        if type_name == "bf16":
            return encode(value, "f32") >> 16
        code = {16: "<eH", 32: "<fI", 64: "<dQ"}[width(type_name)]
        return struct.unpack(f"<{code[2]}", struct.pack(code[:2], value))[0]
    return int(value) & (2 ** width(type_name) - 1)


def _is_float(type_name: str) -> bool:
    return type_name in _FLOATS


def _arithmetic(name: str) -> Callable[..., Any]:
    def apply(type_name: str, *values: Any) -> Any:
        if type_name in _PAIRS:
            element = _PAIRS[type_name][0]
            return tuple(apply(element, *halves) for halves in zip(*values, strict=True))
        if not _is_float(type_name):
            a, b, *c = values
            return {"add": a + b, "sub": a - b, "mul": a * b}[name] if not c else a * b + c[0]
        return _float_arithmetic(name, type_name, values)

    return apply


def _float_arithmetic(name: str, type_name: str, values: tuple[float, ...]) -> float:
    a, b, *c = values
    # In double, infinities, NaN and the signs of zeros come out right; finite numbers are redone.
    if name == "div":
        if b == 0:
            return (
                math.nan
                if a == 0 or math.isnan(a)
                else math.copysign(math.inf, a) * (math.copysign(1, b))
            )
        rough = a / b
    else:
        rough = {"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + (c[0] if c else 0)}[name]
    if not all(map(math.isfinite, values)):
        return rough
    x, y = Fraction(a), Fraction(b)
    exact = {
        "add": lambda: x + y,
        "sub": lambda: x - y,
        "mul": lambda: x * y,
        "fma": lambda: x * y + Fraction(c[0]),
        "div": lambda: x / y,
    }[name]()
    rounded = round_float(exact, type_name)
    return rounded if exact != 0 else math.copysign(0, rough)


def _extreme(name: str) -> Callable[..., Any]:
    def apply(type_name: str, *values: Any) -> Any:
        if type_name in _PAIRS:
            element = _PAIRS[type_name][0]
            return tuple(apply(element, *halves) for halves in zip(*values, strict=True))
        if not _is_float(type_name):
            return min(values) if name == "min" else max(values)
        numbers = [value for value in values if not math.isnan(value)]
        if not numbers:
            return math.nan
        ordered = sorted(numbers, key=lambda value: (value, math.copysign(1, value)))
        return ordered[0] if name == "min" else ordered[-1]

    return apply


def _divide(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    "num": lambda a, b: True,
    "nan": lambda a, b: False,
}
# The comparisons that are true for NaN, and the same that are not.
_UNORDERED = {"ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge", "equ": "eq", "neu": "ne"}
COMBINATIONS: dict[str, Callable[[bool, bool], bool]] = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
}


def compare(name: str, a: Any, b: Any) -> bool:
    """setp's comparison."""
    if isinstance(a, float) and (math.isnan(a) or math.isnan(b)):
        return name in _UNORDERED or name == "nan"
    return _COMPARISONS[_UNORDERED.get(name, name)](a, b)


def _convert(form: Form, value: Any) -> Any:
    modifiers = form.opcode.split(".")[1:]
    destination = modifiers[-2]
    rounding = modifiers[0]
    if isinstance(value, int):
        return round_float(Fraction(value), destination) if _is_float(destination) else value
    if _is_float(destination) and not rounding.endswith("i"):
        if not math.isfinite(value) or value == 0:
            return value
        if rounding == "rna":
            step = Fraction(2) ** (max(_exponent(abs(Fraction(value))), -126) - 10)
            whole = math.floor(abs(Fraction(value)) / step + Fraction(1, 2)) * step
            return math.copysign(float(whole), value)
        return round_float(Fraction(value), destination)
    if math.isfinite(value):
        function = {"rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil, "rni": round}[rounding]
        whole = function(value)
    if _is_float(destination):
        if not math.isfinite(value):
            return value
        return math.copysign(float(whole), value)
    low, high = (-(2 ** (width(destination) - 1)), 2 ** (width(destination) - 1) - 1)
    if destination[0] == "u":
        low, high = 0, 2 ** width(destination) - 1
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(whole, low), high)


def _shift(form: Form, a: int, count: int) -> int:
    bits = width(form.opcode.split(".")[-1])
    if form.opcode.startswith("shl"):
        return a << count if count < bits else 0
    return a >> min(count, bits)


def _funnel(form: Form, low: int, high: int, count: int) -> int:
    count = count & 31 if "wrap" in form.opcode else min(count, 32)
    pair = high << 32 | low
    return pair << count >> 32 if ".l." in form.opcode else pair >> count


def _extract(form: Form, a: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    kind = form.opcode.split(".")[-1]
    width = int(kind[1:])
    if length == 0:
        return 0
    word = a & (1 << width) - 1
    top = min(position + length - 1, width - 1)
    sign = word >> top & 1 if kind[0] == "s" else 0
    result = 0
    for place in range(width):
        inside = place < length and position + place < width
        result |= (word >> (position + place) & 1 if inside else sign) << place
    return result


def _insert(a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    for place in range(length):
        if position + place < 32:
            bit = a >> place & 1 if place < 32 else 0
            b = b & ~(1 << (position + place)) | bit << (position + place)
    return b


def _permute(a: int, b: int, selector: int) -> int:
    pool = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for place in range(4):
        chosen = selector >> 4 * place & 15
        byte = pool[chosen & 7]
        if chosen & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


def _logic(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for place in range(32):
        row = (a >> place & 1) << 2 | (b >> place & 1) << 1 | c >> place & 1
        result |= (table >> row & 1) << place
    return result


def _one_over(value: float) -> float:
    return _float_arithmetic("div", "f32", (1.0, value))


def _sqrt(value: float) -> float:
    if value < 0 or math.isnan(value):
        return math.nan
    return float(round_float(Fraction(math.sqrt(value)), "f32")) if 0 < value < math.inf else value


def _approximate(name: str, value: float) -> float:
    if math.isnan(value):
        return math.nan
    if name == "ex2":
        return 2.0**value if abs(value) < 1000 else (math.inf if value > 0 else 0.0)
    if name == "lg2":
        if value <= 0:
            return math.nan if value < 0 else -math.inf
        return math.log2(value) if value < math.inf else math.inf
    if name == "rsqrt":
        if value <= 0:
            return math.nan if value < 0 else math.copysign(math.inf, value)
        return 1 / math.sqrt(value) if value < math.inf else 0.0
    if name in ("sin", "cos") and math.isinf(value):
        return math.nan
    return float(getattr(math, name)(value))


def expected(form: Form, values: list[Any]) -> Any:
    """The first destination of an arithmetic instruction.

    Args:
        form: The instruction.
        values: Its sources, as `decode` gives them; integers of the text as they are.

    Returns:
        A number to `encode`, or an integer whose lower bits are the result.

    Raises:
        KeyError: For an opcode that has no oracle.
    """
    name, *modifiers = form.opcode.split(".")
    last = modifiers[-1] if modifiers else ""
    a = values[0]
    b = values[1] if len(values) > 1 else None
    if name == "setp":
        result = compare(modifiers[0], a, b)
        combine = COMBINATIONS.get(modifiers[1])
        return combine(result, values[2]) if combine else result
    if name in ("add", "sub", "mul", "mad", "fma", "div") and "hi" in modifiers:
        high = a * b >> width(last)
        return high + values[2] if name == "mad" else high
    if name in ("add", "sub", "mul", "mad", "fma"):
        result = _arithmetic(name)(last, *values)
        if "sat" in modifiers:
            return min(result, 1.0) if result > 0 else 0.0
        return result
    if name == "div":
        if _is_float(last):
            return _float_arithmetic("div", last, (a, b))
        return _divide(a, b) if b else -1
    if name == "rem":
        return a - _divide(a, b) * b if b else a
    if name in ("min", "max"):
        if "NaN" in modifiers and any(math.isnan(value) for value in values):
            return math.nan
        return _extreme(name)(last, *values)
    if name in ("neg", "abs"):
        function = (lambda x: -x) if name == "neg" else abs
        return tuple(map(function, a)) if isinstance(a, tuple) else function(a)
    table: dict[str, Callable[[], Any]] = {
        "copysign": lambda: math.copysign(b, a),
        "rcp": lambda: _one_over(a),
        "sqrt": lambda: _sqrt(a),
        "popc": lambda: a.bit_count(),
        "clz": lambda: width(last) - a.bit_length(),
        "bfind": lambda: a.bit_length() - 1,
        "brev": lambda: int(f"{a:032b}"[::-1], 2),
        "cnot": lambda: int(a == 0),
        "selp": lambda: a if values[2] else b,
        "slct": lambda: a if values[2] >= 0 else b,
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "not": lambda: not a if last == "pred" else ~a,
        "lop3": lambda: _logic(*values),
        "prmt": lambda: _permute(*values),
        "shl": lambda: _shift(form, a, b),
        "shr": lambda: _shift(form, a, b),
        "shf": lambda: _funnel(form, *values),
        "bfe": lambda: _extract(form, *values),
        "bfi": lambda: _insert(*values),
        "mov": lambda: a,
        "cvt": lambda: _convert_form(form, values),
        "cvta": lambda: a + (_WINDOWS[modifiers[-2]] * (-1 if "to" in modifiers else 1)),
    }
    if name in APPROXIMATE:
        return _approximate(name, a)
    return table[name]()


_WINDOWS = {"global": 0, "shared": 0x7E << 40, "local": 0x7D << 40, "param": 0x7C << 40}


def _convert_form(form: Form, values: list[Any]) -> Any:
    destination = form.opcode.split(".")[-2]
    if destination in _PAIRS:
        element = _PAIRS[destination][0]
        # The first source becomes the upper half.
        rounded = [
            round_float(Fraction(value), element) if math.isfinite(value) and value else value
            for value in values
        ]
        return rounded[1], rounded[0]
    return _convert(form, values[0])
