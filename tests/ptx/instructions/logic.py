"""Bits and moves."""

from __future__ import annotations

from tests.ptx.forms import define

define("and.{b16,b32,b64}", "$1 = $1, $1", "a & b")
define("or.{b16,b32,b64}", "$1 = $1, $1", "a | b")
define("xor.{b16,b32,b64}", "$1 = $1, $1", "a ^ b")
define("not.{b16,b32,b64}", "$1 = $1", "~a")
define("and.pred", "pred = pred, pred", "a & b")
define("or.pred", "pred = pred, pred", "a | b")
define("xor.pred", "pred = pred, pred", "a ^ b")
define("not.pred", "pred = pred", "~a")
define("cnot.b32", "b32 = b32", "(a == 0).astype(uint32)")
define("lop3.b32", "b32 = b32, b32, b32, int", "logic(a, b, c, d)")
define("prmt.b32", "b32 = b32, b32, b32", "permute_bytes(a, b, c)")

define("shl.{b16,b32,b64}", "$1 = $1, u32", "shift_left(a, b)")
define("shr.{b16,u16,s16,b32,u32,s32,b64,u64,s64}", "$1 = $1, u32", "shift_right(a, b)")
define("shf.l.wrap.b32", "b32 = b32, b32, u32", "funnel_left(a, b, c, True)")
define("shf.l.clamp.b32", "b32 = b32, b32, u32", "funnel_left(a, b, c, False)")
define("shf.r.wrap.b32", "b32 = b32, b32, u32", "funnel_right(a, b, c, True)")
define("shf.r.clamp.b32", "b32 = b32, b32, u32", "funnel_right(a, b, c, False)")
define("bfe.{u32,u64}", "$1 = $1, u32, u32", "extract_unsigned(a, b, c)")
define("bfe.{s32,s64}", "$1 = $1, u32, u32", "extract_signed(a, b, c)")
define("bfi.b32", "b32 = b32, b32, u32, u32", "insert_bits(a, b, c, d)")

define("mov.{b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64,pred}", "$1 = $1", "a")
define("mov.b32", "b32 = 2*b16", "pack(a, uint32)")
define("mov.b64", "b64 = 2*b32", "pack(a, uint64)")
define("mov.b64", "b64 = 4*b16", "pack(a, uint64)")
define("mov.b32", "2*b16 = b32", "unpack(a, uint16)")
define("mov.b64", "2*b32 = b64", "unpack(a, uint32)")
define("mov.b64", "4*b16 = b64", "unpack(a, uint16)")
