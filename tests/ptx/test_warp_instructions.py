"""Shuffles, votes, reductions and the rest of what lanes of a warp do together."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Output
from tests.ptx.forms import Form, all_forms
from tests.ptx.snippets import checks_of, launch

_FAMILIES = ("shfl", "vote", "match", "redux", "activemask", "bar", "elect")
LANES = np.arange(32)


def is_covered(form: Form) -> bool:
    """Whether the tests of this file execute ``form``."""
    return form.opcode.split(".")[0] in _FAMILIES


def opcodes(name: str) -> list[str]:
    """The opcodes of one family."""
    return [form.opcode for form in all_forms() if form.opcode.split(".")[0] == name]


def run(instructions: str, values: np.ndarray, threads: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """%r10 holds a value of each lane; %r20 and %r21 are returned."""
    out = Output(np.zeros((threads, 2), np.uint32))
    body = f"""
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; ld.global.b32 %r10, [%d3];
        mul.wide.u32 %d2, %r0, 8; add.s64 %d4, %d1, %d2; mov.b32 %r20, 0; mov.b32 %r21, 0;
        {instructions}
        st.global.v2.b32 [%d4], {{%r20, %r21}};
    """
    launch(body, [values.astype(np.uint32), out], threads=threads)
    return out.array[:, 0], out.array[:, 1]


def shuffled(mode: str, lane: int, b: int, clamp: int, segment: int) -> tuple[int, bool]:
    """The PTX manual's pseudo code of shfl for one lane."""
    b &= 31
    last = (lane & segment) | (clamp & ~segment)
    source = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": (lane & segment) | (b & ~segment),
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("opcode", opcodes("shfl"))
@pytest.mark.parametrize("c", [31, 0, 0x181F, 0x1C03])
def test_shuffles(opcode: str, c: int) -> None:
    mode = opcode.split(".")[2]
    values = np.random.default_rng(1).integers(0, 2**32, 64)
    for b in (0, 1, 3, 5, 16, 31, 33):
        got, inside = run(
            f"{opcode} %r20|%p1, %r10, {b}, {c}, -1; selp.b32 %r21, 1, 0, %p1;", values
        )
        for lane in range(64):
            source, valid = shuffled(mode, lane % 32, b, c & 31, c >> 8 & 31)
            assert got[lane] == values[lane // 32 * 32 + source], (opcode, b, lane)
            assert bool(inside[lane]) == valid


def test_shuffle_takes_its_operands_from_lanes_that_are_there() -> None:
    """Warp 1 sits out the branch with garbage in the registers of mask and clamp."""
    values = np.arange(64)
    got, _ = run(
        """
        mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;
        setp.lt.u32 %p1, %r0, 32;
        @!%p1 bra $skip;
        mov.b32 %r11, 1; mov.b32 %r12, 31; mov.b32 %r13, -1;
        shfl.sync.bfly.b32 %r20, %r10, %r11, %r12, %r13;
        $skip:
        """,
        values,
    )
    assert got[:32].tolist() == (LANES ^ 1).tolist()
    assert not got[32:].any()


def test_votes() -> None:
    values = np.random.default_rng(2).integers(0, 2, 64)
    values[32:] = 1
    predicate = "setp.ne.b32 %p1, %r10, 0;"
    ballot, _ = run(f"{predicate} vote.sync.ballot.b32 %r20, %p1, -1;", values)
    bits = [sum(int(v) << i for i, v in enumerate(values[w : w + 32])) for w in (0, 32)]
    assert ballot.tolist() == [bits[0]] * 32 + [bits[1]] * 32
    wanted = {"any": [1, 1], "all": [0, 1], "uni": [0, 1]}
    for mode, results in wanted.items():
        text = f"{predicate} vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 %r20, 1, 0, %p2;"
        got, _ = run(text, values)
        assert got.tolist() == [results[0]] * 32 + [results[1]] * 32
    assert {f"vote.sync.{mode}.pred" for mode in wanted} | {"vote.sync.ballot.b32"} == set(
        opcodes("vote")
    )


@pytest.mark.parametrize("opcode", opcodes("redux"))
def test_reductions(opcode: str) -> None:
    operation, kind = opcode.split(".")[2:]
    values = np.random.default_rng(3).integers(0, 2**32, 64).astype(np.uint32)
    got, _ = run(f"{opcode} %r20, %r10, -1;", values)
    typed = values.view(np.int32) if kind == "s32" else values
    functions = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    for warp in (0, 32):
        wanted = functions[operation].reduce(typed[warp : warp + 32])
        assert (got[warp : warp + 32] == np.uint32(int(wanted) & 0xFFFFFFFF)).all()


def test_members_of_a_part_of_the_warp() -> None:
    """Sixteen lanes reduce among themselves while the others are elsewhere."""
    values = np.arange(64)
    got, _ = run(
        """
        and.b32 %r11, %r0, 31; setp.ge.u32 %p1, %r11, 16;
        @%p1 bra $skip;
        redux.sync.add.u32 %r20, %r10, 0xFFFF;
        $skip:
        """,
        values,
    )
    assert (got[:16] == sum(range(16))).all()
    assert (got[32:48] == sum(range(32, 48))).all()
    assert not got[16:32].any()


def test_match() -> None:
    values = np.random.default_rng(4).integers(0, 4, 64)
    got, _ = run("match.any.sync.b32 %r20, %r10, -1;", values)
    for lane in range(64):
        start = lane // 32 * 32
        wanted = sum(int(values[start + i] == values[lane]) << i for i in range(32))
        assert got[lane] == wanted


def test_active_mask_and_election() -> None:
    got, _ = run(
        """
        setp.lt.u32 %p1, %r0, 40;
        @!%p1 bra $skip;
        activemask.b32 %r20;
        $skip:
        """,
        LANES.repeat(2),
    )
    assert got[:32].tolist() == [0xFFFFFFFF] * 32
    assert got[32:40].tolist() == [0xFF] * 8
    got, leader = run("elect.sync %r20|%p1, -1; selp.b32 %r21, 1, 0, %p1;", LANES.repeat(2))
    assert (got == 0).all()
    assert leader.tolist() == [1, *[0] * 31] * 2


def test_absent_lanes_are_found() -> None:
    body = """
        setp.lt.u32 %p1, %r0, 16;
        @!%p1 bra $skip;
        shfl.sync.bfly.b32 %r3, %r0, 1, 31, -1;
        $skip:
    """
    assert checks_of(body, []) == {"absent lane"}
    assert checks_of(body.replace("-1", "0xFFFF"), []) == set()
    reads_outside = body.replace("1, 31, -1", "16, 31, 0xFFFF")
    assert checks_of(reads_outside, []) == {"absent lane"}


def test_warp_barrier_orders_its_lanes() -> None:
    body = """
        shl.b32 %r3, %r0, 2; xor.b32 %r4, %r3, 4; mov.b32 %r5, smem;
        add.u32 %r3, %r3, %r5; add.u32 %r4, %r4, %r5;
        st.shared.b32 [%r3], %r0;
        {barrier}
        ld.shared.b32 %r6, [%r4];
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; st.global.b32 [%d3], %r6;
    """
    out = Output(np.zeros(64, np.uint32))
    assert checks_of(body.format(barrier=""), [out], threads=64, shared=256) == {"race"}
    launch(body.format(barrier="bar.warp.sync -1;"), [out], threads=64, shared=256)
    assert (out.array == (np.arange(64) ^ 1)).all()


def test_parted_lanes_meet_wherever_their_blocks_stand() -> None:
    body = """
        mov.u32 %r20, 0;
        setp.lt.u32 %p1, %r0, 16;
        @%p1 bra $far;
        $meet:
        bar.warp.sync -1;
        shfl.sync.bfly.b32 %r21, %r20, 16, 31, -1;
        bra $end;
        $far:
        add.u32 %r20, %r20, 1;
        setp.lt.u32 %p1, %r20, %r0;
        @%p1 bra $far;
        bra $meet;
        $end:
    """
    assert checks_of(body, []) == set()
    _, got = run(body, LANES.repeat(2))
    assert got[:32].tolist() == [0] * 16 + [1, *range(1, 16)]
