"""Integer and floating-point arithmetic, comparisons and selections."""

from __future__ import annotations

from tests.ptx.forms import define

# Integers wrap around.
define("add.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "a + b")
define("sub.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "a - b")
define("mul.lo.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "a * b")
define("mul.hi.{u16,s16,u32,s32}", "$1 = $1, $1", "multiply_high(a, b)")
define("mul.hi.{u64,s64}", "$1 = $1, $1", "multiply_high_64(a, b)")
define("mad.lo.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1, $1", "a * b + c")
define("mad.hi.{u32,s32}", "$1 = $1, $1, $1", "multiply_high(a, b) + c")
for narrow, wide, dtype in (
    ("u16", "u32", "uint32"),
    ("s16", "s32", "int32"),
    ("u32", "u64", "uint64"),
    ("s32", "s64", "int64"),
):
    define(f"mul.wide.{narrow}", f"{wide} = {narrow}, {narrow}", f"a.astype({dtype}) * b")
    define(
        f"mad.wide.{narrow}", f"{wide} = {narrow}, {narrow}, {wide}", f"a.astype({dtype}) * b + c"
    )
define("div.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "divide(a, b)")
define("rem.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "remainder(a, b)")
define("min.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "np.minimum(a, b)")
define("max.{u16,s16,u32,s32,u64,s64}", "$1 = $1, $1", "np.maximum(a, b)")
define("neg.{s16,s32,s64}", "$1 = $1", "-a")
define("abs.{s16,s32,s64}", "$1 = $1", "np.abs(a)")
define("popc.b32", "u32 = b32", "count_bits(a)")
define("popc.b64", "u32 = b64", "count_bits(a)")
define("clz.b32", "u32 = b32", "leading_zeros(a)")
define("clz.b64", "u32 = b64", "leading_zeros(a)")
define("bfind.u32", "u32 = u32", "highest_bit(a)")
define("brev.b32", "b32 = b32", "reverse_bits(a)")

# float32. Rounding is to nearest even, which is also what no modifier means. Where hardware only
# approximates, a launch may ask for results that are some units in the last place off.
define("add{.rn,}{.ftz,}.f32", "f32 = f32, f32", "a + b")
define("sub{.rn,}{.ftz,}.f32", "f32 = f32, f32", "a - b")
define("mul{.rn,}{.ftz,}.f32", "f32 = f32, f32", "a * b")
define("fma.rn{.ftz,}.f32", "f32 = f32, f32, f32", "fma(a, b, c)")
define("add{.ftz,}.sat.f32", "f32 = f32, f32", "saturate(a + b)")
define("mul{.ftz,}.sat.f32", "f32 = f32, f32", "saturate(a * b)")
define("fma.rn{.ftz,}.sat.f32", "f32 = f32, f32, f32", "saturate(fma(a, b, c))")
define("min{.ftz,}.f32", "f32 = f32, f32", "minimum(a, b)")
define("max{.ftz,}.f32", "f32 = f32, f32", "maximum(a, b)")
define("min{.ftz,}.f32", "f32 = f32, f32, f32", "minimum(minimum(a, b), c)")
define("max{.ftz,}.f32", "f32 = f32, f32, f32", "maximum(maximum(a, b), c)")
define("min{.ftz,}.NaN.f32", "f32 = f32, f32", "minimum_nan(a, b)")
define("max{.ftz,}.NaN.f32", "f32 = f32, f32", "maximum_nan(a, b)")
define("neg{.ftz,}.f32", "f32 = f32", "-a")
define("abs{.ftz,}.f32", "f32 = f32", "np.abs(a)")
define("copysign.f32", "f32 = f32, f32", "np.copysign(b, a)")
define("div.rn{.ftz,}.f32", "f32 = f32, f32", "a / b")
define("div.{full,approx}{.ftz,}.f32", "f32 = f32, f32", "approximate(a / b)")
define("rcp.rn{.ftz,}.f32", "f32 = f32", "float32(1) / a")
define("rcp.approx{.ftz,}.f32", "f32 = f32", "approximate(float32(1) / a)")
define("sqrt.rn{.ftz,}.f32", "f32 = f32", "np.sqrt(a)")
define("sqrt.approx{.ftz,}.f32", "f32 = f32", "approximate(np.sqrt(a))")
define("rsqrt.approx{.ftz,}.f32", "f32 = f32", "approximate(float32(1) / np.sqrt(a))")
define("ex2.approx{.ftz,}.f32", "f32 = f32", "approximate(np.exp2(a))")
define("lg2.approx{.ftz,}.f32", "f32 = f32", "approximate(np.log2(a))")
define("sin.approx{.ftz,}.f32", "f32 = f32", "approximate(np.sin(a))")
define("cos.approx{.ftz,}.f32", "f32 = f32", "approximate(np.cos(a))")
define("tanh.approx.f32", "f32 = f32", "approximate(np.tanh(a))")

# float64: compilers emit it for index arithmetic and a few mathematical functions.
define("add{.rn,}.f64", "f64 = f64, f64", "a + b")
define("sub{.rn,}.f64", "f64 = f64, f64", "a - b")
define("mul{.rn,}.f64", "f64 = f64, f64", "a * b")
define("div.rn.f64", "f64 = f64, f64", "a / b")
define("neg.f64", "f64 = f64", "-a")
define("abs.f64", "f64 = f64", "np.abs(a)")

# Half precision and pairs.
define("add{.rn,}.f16", "f16 = f16, f16", "a + b")
define("sub{.rn,}.f16", "f16 = f16, f16", "a - b")
define("mul{.rn,}.f16", "f16 = f16, f16", "a * b")
define("fma.rn.f16", "f16 = f16, f16, f16", "fma_half(a, b, c)")
define("min.f16", "f16 = f16, f16", "minimum(a, b)")
define("max.f16", "f16 = f16, f16", "maximum(a, b)")
define("neg.f16", "f16 = f16", "-a")
define("add{.rn,}.f16x2", "f16x2 = f16x2, f16x2", "on_float16_pairs(np.add, a, b)")
define("sub{.rn,}.f16x2", "f16x2 = f16x2, f16x2", "on_float16_pairs(np.subtract, a, b)")
define("mul{.rn,}.f16x2", "f16x2 = f16x2, f16x2", "on_float16_pairs(np.multiply, a, b)")
define("fma.rn.f16x2", "f16x2 = f16x2, f16x2, f16x2", "on_float16_pairs(fma_half, a, b, c)")
define("min.f16x2", "f16x2 = f16x2, f16x2", "on_float16_pairs(minimum, a, b)")
define("max.f16x2", "f16x2 = f16x2, f16x2", "on_float16_pairs(maximum, a, b)")
define("neg.f16x2", "f16x2 = f16x2", "on_float16_pairs(np.negative, a)")
define("add{.rn,}.bf16", "bf16 = bf16, bf16", "to_bfloat16(from_bfloat16(a) + from_bfloat16(b))")
define("sub{.rn,}.bf16", "bf16 = bf16, bf16", "to_bfloat16(from_bfloat16(a) - from_bfloat16(b))")
define("mul{.rn,}.bf16", "bf16 = bf16, bf16", "to_bfloat16(from_bfloat16(a) * from_bfloat16(b))")
define(
    "fma.rn.bf16",
    "bf16 = bf16, bf16, bf16",
    "to_bfloat16(fma(from_bfloat16(a), from_bfloat16(b), from_bfloat16(c)))",
)
define("neg.bf16", "bf16 = bf16", "a ^ uint16(0x8000)")
define("add{.rn,}.bf16x2", "bf16x2 = bf16x2, bf16x2", "on_bfloat16_pairs(np.add, a, b)")
define("sub{.rn,}.bf16x2", "bf16x2 = bf16x2, bf16x2", "on_bfloat16_pairs(np.subtract, a, b)")
define("mul{.rn,}.bf16x2", "bf16x2 = bf16x2, bf16x2", "on_bfloat16_pairs(np.multiply, a, b)")
define("fma.rn.bf16x2", "bf16x2 = bf16x2, bf16x2, bf16x2", "on_bfloat16_pairs(fma, a, b, c)")
define("min.bf16x2", "bf16x2 = bf16x2, bf16x2", "on_bfloat16_pairs(minimum, a, b)")
define("max.bf16x2", "bf16x2 = bf16x2, bf16x2", "on_bfloat16_pairs(maximum, a, b)")
define("neg.bf16x2", "bf16x2 = bf16x2", "a ^ uint32(0x80008000)")
define("add{.rn,}.f32x2", "f32x2 = f32x2, f32x2", "on_float32_pairs(np.add, a, b)")
define("sub{.rn,}.f32x2", "f32x2 = f32x2, f32x2", "on_float32_pairs(np.subtract, a, b)")
define("mul{.rn,}.f32x2", "f32x2 = f32x2, f32x2", "on_float32_pairs(np.multiply, a, b)")
define("fma.rn.f32x2", "f32x2 = f32x2, f32x2, f32x2", "on_float32_pairs(fma, a, b, c)")

# Comparisons. Floats: lt .. ge and equ's plain partners are false for NaN, the ..u forms are true.
INTEGER_COMPARISONS = {"lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b"}
EQUALITIES = {"eq": "a == b", "ne": "a != b"}
FLOAT_COMPARISONS = {
    **INTEGER_COMPARISONS,
    "eq": "a == b",
    "ne": "ordered(a, b) & (a != b)",
    "ltu": "~(a >= b)",
    "leu": "~(a > b)",
    "gtu": "~(a <= b)",
    "geu": "~(a < b)",
    "equ": "~ordered(a, b) | (a == b)",
    "neu": "a != b",
    "num": "ordered(a, b)",
    "nan": "~ordered(a, b)",
}
UNSIGNED_COMPARISONS = {"lo": "a < b", "ls": "a <= b", "hi": "a > b", "hs": "a >= b"}
for comparisons, types in (
    (INTEGER_COMPARISONS, ".{u16,s16,u32,s32,u64,s64}"),
    (EQUALITIES, ".{b16,u16,s16,b32,u32,s32,b64,u64,s64}"),
    (UNSIGNED_COMPARISONS, ".{u16,u32,u64}"),
    (FLOAT_COMPARISONS, "{.ftz,}.{f32}"),
    (FLOAT_COMPARISONS, ".{f64}"),
    (FLOAT_COMPARISONS, ".{f16}"),
):
    place = types.count("{")
    for name, test in comparisons.items():
        define(f"setp.{name}{types}", f"pred|pred = ${place}, ${place}", test, f"~({test})")
        for combine, symbol in (("and", "&"), ("or", "|"), ("xor", "^")):
            define(
                f"setp.{name}.{combine}{types}",
                f"pred|pred = ${place}, ${place}, pred",
                f"({test}) {symbol} c",
                f"~({test}) {symbol} c",
            )

define(
    "selp.{b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64}", "$1 = $1, $1, pred", "np.where(c, a, b)"
)
define("slct.{b32,u32,s32,f32}.s32", "$1 = $1, $1, s32", "np.where(c >= 0, a, b)")
