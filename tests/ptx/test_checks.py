"""Seeded bugs: each rule of the machine, broken in a small kernel, is found by the check for it.

A kernel is written once, correctly. Each bug is one replacement in its text; the correct text must
pass with every schedule, and the wrong one must fail with the check that is named beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ptx import (
    CHECKS,
    Counters,
    Finding,
    InOut,
    KernelFault,
    Output,
    PtxError,
    Scratch,
)
from tests.ptx.snippets import SEEDS, Bug, bugs, checks_of, findings_of, kernel, launch

# 128 threads copy 4 tiles of 128 chunks of 16 bytes through a double buffer; thread t stores what
# thread t + 37 fetched. The last tiles are ragged: what lies past the end is filled with zeros.
FETCH = """
    setp.lt.u32 %p1, %r9, %r22; selp.b32 %r10, 16, 0, %p1; selp.b32 %r11, %r9, 0, %p1;
    mul.wide.u32 %d3, %r11, 16; add.s64 %d3, %d0, %d3;
    cp.async.cg.shared.global [%r14], [%d3], 16, %r10;
"""
COPY = f"""
    mov.b32 %r3, smem; shl.b32 %r4, %r0, 4; add.u32 %r4, %r4, %r3;
    add.u32 %r5, %r0, 37; and.b32 %r5, %r5, 127; shl.b32 %r6, %r5, 4; add.u32 %r6, %r6, %r3;
    shl.b32 %r7, %r1, 9; mov.b32 %r8, 0;
    add.u32 %r9, %r7, %r0; mov.b32 %r14, %r4;
    {FETCH}
    cp.async.commit_group;
$loop:
    add.u32 %r12, %r8, 1; and.b32 %r13, %r12, 1; shl.b32 %r13, %r13, 11; add.u32 %r14, %r4, %r13;
    setp.ge.u32 %p2, %r12, 4;
    @%p2 bra $fetched;
    shl.b32 %r15, %r12, 7; add.u32 %r9, %r7, %r15; add.u32 %r9, %r9, %r0;
    {FETCH}
$fetched:
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0; // tile has landed
    and.b32 %r16, %r8, 1; shl.b32 %r16, %r16, 11; add.u32 %r17, %r6, %r16;
    ld.shared.v4.b32 {{%r40, %r41, %r42, %r43}}, [%r17];
    shl.b32 %r18, %r8, 7; add.u32 %r19, %r7, %r18; add.u32 %r19, %r19, %r5;
    setp.lt.u32 %p3, %r19, %r22;
    mul.wide.u32 %d4, %r19, 16; add.s64 %d5, %d1, %d4;
    @%p3 st.global.v4.b32 [%d5], {{%r40, %r41, %r42, %r43}};
    bar.sync 0; // tile is read
    mov.b32 %r8, %r12;
    setp.lt.u32 %p4, %r8, 4;
    @%p4 bra $loop;
"""
CHUNKS = 600


def run_copy(body: str, seed: int | None = None, shared: int = 4096, ctas: int = 2) -> Any:
    """The result, the input, and the names of the checks that failed."""
    source = np.random.default_rng(0).integers(0, 2**32, (CHUNKS, 4)).astype(np.uint32)
    result = Output(np.zeros((CHUNKS, 4), np.uint32))
    found: list[Finding] = []
    made = kernel(body, ["u64", "u64", "u32"], shared=shared)
    made.launch((ctas,), (128,), [source, result, CHUNKS], seed=seed, findings=found, check=False)
    return result.array, source, {finding.check for finding in found}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_copy_is_right(seed: int | None) -> None:
    result, source, checks = run_copy(COPY, seed)
    assert (result == source).all()
    assert checks == set()


@pytest.mark.parametrize("seed", SEEDS)
@bugs(
    Bug("no barrier after the wait", "bar.sync 0; // tile has landed", "", "race"),
    Bug("no barrier before the buffer is used again", "bar.sync 0; // tile is read", "", "race"),
    Bug("short wait", "wait_group 1", "wait_group 2", "copy in flight",
        frozenset({"uninitialised shared", "copy never awaited"})),
    Bug("past the end", "setp.lt.u32 %p1, %r9, %r22", "setp.le.u32 %p1, %r9, %r22",
        "out of bounds global"),
    Bug("stores past the end", "setp.lt.u32 %p3, %r19, %r22", "setp.le.u32 %p3, %r19, %r22",
        "out of bounds global"),
    Bug("mask too small", "setp.lt.u32 %p3, %r19, %r22",
        "sub.u32 %r30, %r22, 1; setp.lt.u32 %p3, %r19, %r30", "unwritten output"),
    Bug("tail not filled", "cp.async.cg.shared.global [%r14], [%d3], 16, %r10",
        "@%p1 cp.async.cg.shared.global [%r14], [%d3], 16", "uninitialised shared"),
    Bug("last tile dropped", "setp.lt.u32 %p4, %r8, 4", "setp.lt.u32 %p4, %r8, 3",
        "unwritten output", frozenset({"copy never awaited"})),
    Bug("misaligned", "add.s64 %d3, %d0, %d3", "add.s64 %d3, %d0, %d3; add.s64 %d3, %d3, 8",
        "misaligned", frozenset({"out of bounds global"})),
    Bug("CTAs overlap", "shl.b32 %r7, %r1, 9", "mul.lo.u32 %r7, %r1, 448", "global race",
        frozenset({"unwritten output"})),
    Bug("pointers exchanged", "add.s64 %d5, %d1, %d4", "add.s64 %d5, %d0, %d4", "write to input",
        frozenset({"unwritten output"})),
    Bug("lanes collide", "add.u32 %r19, %r19, %r5;",
        "and.b32 %r31, %r5, 126; add.u32 %r19, %r19, %r31;", "conflicting store",
        frozenset({"unwritten output", "global race"})),
)  # fmt: skip
def test_bugs_of_the_copy(bug: Bug, seed: int | None) -> None:
    checks = run_copy(bug.apply(COPY), seed)[2]
    assert bug.check in checks
    if seed is None:
        assert checks <= {bug.check, *bug.also}


def test_copy_that_nobody_waits_for() -> None:
    body = "mov.b32 %r3, smem; cp.async.ca.shared.global [%r3], [%d0], 4; cp.async.commit_group;"
    assert checks_of(body, [np.zeros(1, np.uint32)], threads=1, shared=64) == {"copy never awaited"}


def test_too_little_shared_memory() -> None:
    assert "out of bounds shared" in run_copy(COPY, shared=2048)[2]


def test_grid_too_small() -> None:
    assert run_copy(COPY, ctas=1)[2] == {"unwritten output"}


def test_a_fault_names_the_instruction_and_the_thread() -> None:
    body = "mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2;\nst.global.b32 [%d3], %r0;"
    with pytest.raises(
        KernelFault, match=r"out of bounds global: thread 7 of CTA \(0, 0, 0\)"
    ) as e:
        launch(body, [Output(np.zeros(7, np.uint32))])
    assert [f.check for f in e.value.findings] == ["out of bounds global"]
    assert e.value.findings[0].instruction == "st.global.b32 [%d3], %r0"


# One warp writes 32 rows of 128 bytes and reads them as 8 x 8 matrices.
SWIZZLE = """
    mov.b32 %r3, smem; and.b32 %r4, %r0, 7; shl.b32 %r5, %r0, 7; add.u32 %r5, %r5, %r3;
    mov.b32 %r6, 0;
$loop:
    xor.b32 %r7, %r6, %r4; shl.b32 %r7, %r7, 4; add.u32 %r7, %r7, %r5;
    st.shared.v4.b32 [%r7], {%r6, %r6, %r6, %r6};
    add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 8;
    @%p1 bra $loop;
    bar.warp.sync -1;
    xor.b32 %r8, %r4, 5; shl.b32 %r8, %r8, 4; add.u32 %r8, %r8, %r5;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r8];
"""


def test_missing_swizzle_shows_in_the_bank_conflicts() -> None:
    counters = launch(SWIZZLE, [], shared=4096)
    assert counters.bank_conflicts == 0
    assert counters.wavefronts == {"store": 32, "ldmatrix": 4}
    plain = SWIZZLE.replace("xor.b32 %r7, %r6, %r4", "mov.b32 %r7, %r6").replace(
        "xor.b32 %r8, %r4, 5", "mov.b32 %r8, 5"
    )
    counters = launch(plain, [], shared=4096)
    assert counters.wavefronts == {"store": 8 * 32, "ldmatrix": 8 * 4}


# Warps 0 and 1 produce for warps 2 and 3: two named barriers, 128 threads each, arrive and sync.
PIPELINE = """
    mov.b32 %r3, smem; and.b32 %r4, %r0, 63; shl.b32 %r5, %r4, 2; add.u32 %r5, %r5, %r3;
    mov.b32 %r6, 0; mov.b32 %r11, 0;
    setp.ge.u32 %p1, %r0, 64;
    @%p1 bra $consumer;
$produce:
    bar.sync 2, 128; // wait until it is free
    add.u32 %r7, %r6, %r4;
    st.shared.b32 [%r5], %r7;
    bar.arrive 1, 128; // it is full
    add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, 3;
    @%p2 bra $produce;
    bra $done;
$consumer:
    xor.b32 %r8, %r5, 128;
    bar.arrive 2, 128; // it is free at first
$consume:
    bar.sync 1, 128; // wait until it is full
    ld.shared.b32 %r9, [%r8];
    add.u32 %r11, %r11, %r9;
    add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, 3;
    @!%p2 bra $store;
    bar.arrive 2, 128; // it is free
    bra $consume;
$store:
    mul.wide.u32 %d2, %r4, 4; add.s64 %d3, %d0, %d2;
    st.global.b32 [%d3], %r11;
$done:
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(seed: int | None) -> None:
    out = Output(np.zeros(64, np.uint32))
    launch(PIPELINE, [out], threads=128, shared=256, seed=seed)
    assert out.array.tolist() == [3 * (i ^ 32) + 3 for i in range(64)]


@pytest.mark.parametrize("seed", SEEDS)
@bugs(
    Bug("another count", "bar.arrive 1, 128", "bar.arrive 1, 96", "barrier"),
    Bug("nobody arrives", "bar.arrive 1, 128;", "", "barrier"),
    Bug("count that is no multiple of 32", ", 128", ", 100", "barrier"),
    # In lockstep the producers run ahead and fill barrier 1 before anybody waits there.
    Bug(
        "not waited until it is free",
        "bar.sync 2, 128;",
        "bar.sync 3, 64;",
        "race",
        frozenset({"barrier"}),
    ),
    Bug("not waited until it is full", "bar.sync 1, 128;", "bar.sync 4, 64;", "race"),
)
def test_bugs_of_named_barriers(bug: Bug, seed: int | None) -> None:
    out = Output(np.zeros(64, np.uint32))
    checks = checks_of(bug.apply(PIPELINE), [out], threads=128, shared=256, seed=seed)
    assert bug.check in checks or (seed is None and checks == bug.also)


@pytest.mark.parametrize("seed", SEEDS)
def test_barrier_that_some_threads_never_reach(seed: int | None) -> None:
    body = "setp.lt.u32 %p1, %r0, 96; @!%p1 bra $end; bar.sync 0; $end:"
    assert checks_of(body, [], threads=128, seed=seed) == {"barrier"}


def test_race_behind_a_later_reader() -> None:
    """Warps 0 and 1 read; warp 1 writes: its own read must not hide that of warp 0."""
    body = """
        mov.b32 %r3, smem; and.b32 %r4, %r0, 31; shl.b32 %r5, %r4, 2; add.u32 %r5, %r5, %r3;
        setp.lt.u32 %p1, %r0, 32;
        @%p1 st.shared.b32 [%r5], %r0;
        bar.sync 0;
        @%p1 ld.shared.b32 %r6, [%r5];
        @!%p1 ld.shared.b32 %r6, [%r5];
        {barrier}
        @!%p1 st.shared.b32 [%r5], %r0;
    """
    assert checks_of(body.format(barrier=""), [], threads=64, shared=128) == {"race"}
    assert checks_of(body.format(barrier="bar.sync 0;"), [], threads=64, shared=128) == set()


def test_lane_that_read_alone_before_its_warp_did() -> None:
    """Lane 0 reads a word, then ldmatrix reads it for all lanes, then lane 1 overwrites it."""
    body = """
        mov.b32 %r3, smem; shl.b32 %r4, %r0, 4; add.u32 %r4, %r4, %r3;
        st.shared.v4.b32 [%r4], {%r0, %r0, %r0, %r0};
        bar.warp.sync -1;
        setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r0, 1;
        @%p1 ld.shared.b32 %r6, [%r3];
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r7, %r8, %r9, %r10}, [%r4];
        @%p2 st.shared.b32 [%r3], 7;
    """
    assert checks_of(body, [], shared=512) == {"race"}
    alone = body.replace("@%p1 ld.shared.b32 %r6, [%r3];", "")
    assert checks_of(alone, [], shared=512) == set()


def test_bytes_of_one_word_belong_to_different_threads() -> None:
    """Neighbouring bytes of two warps are no race."""
    body = """
        mov.b32 %r3, smem; and.b32 %r4, %r0, 31; shl.b32 %r5, %r4, 1; shr.u32 %r6, %r0, 5;
        add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r3; cvt.u16.u32 %h1, %r0;
        st.shared.b8 [%r5], %h1;
    """
    assert checks_of(body, [], threads=64, shared=64) == set()


def test_mma_in_divergent_code() -> None:
    zeros = "{%f0, %f0, %f0, %f0}"
    body = f"""
        mov.f32 %f0, 0f00000000; mov.b32 %r3, 0;
        setp.lt.u32 %p1, %r0, 16; @!%p1 bra $skip;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
            {{%f1, %f2, %f3, %f4}}, {{%r3, %r3, %r3, %r3}}, {{%r3, %r3}}, {zeros};
        $skip:
    """
    assert checks_of(body, []) == {"divergent warp"}


# Two kernels in a row: the second reads what the first should have written.
WRITE = "mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; st.global.b32 [%d3], %r0;"
READ = """
    mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
    ld.global.b32 %r3, [%d3]; st.global.b32 [%d4], %r3;
"""


def test_statistics_of_a_forward_that_never_ran() -> None:
    lse, out = Scratch(np.zeros(32, np.float32)), Output(np.zeros(32, np.float32))
    assert checks_of(READ, [lse, out]) == {"uninitialised global"}
    assert np.isnan(out.array).all()
    launch(WRITE, [lse], threads=31)
    assert checks_of(READ, [lse, out]) == {"uninitialised global"}
    launch(WRITE, [lse])
    launch(READ, [lse, out])
    assert out.array.view(np.uint32).tolist() == list(range(32))


def test_ctas_do_not_see_each_other() -> None:
    """CTA 1 reads what CTA 0 writes in the same launch."""
    body = """
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; setp.eq.b32 %p1, %r1, 0;
        @%p1 st.global.b32 [%d3], %r0;
        @!%p1 ld.global.b32 %r3, [%d3];
    """
    assert "global race" in checks_of(body, [InOut(np.zeros(32, np.uint32))], ctas=2)


def test_threads_of_a_cta_exchange_through_global_memory() -> None:
    body = """
        xor.b32 %r3, %r0, 32; mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2;
        mul.wide.u32 %d2, %r3, 4; add.s64 %d4, %d0, %d2; mul.wide.u32 %d2, %r0, 4;
        add.s64 %d5, %d1, %d2;
        st.global.b32 [%d3], %r0;
        {barrier}
        ld.global.b32 %r4, [%d4]; st.global.b32 [%d5], %r4;
    """
    scratch, out = Scratch(np.zeros(64, np.uint32)), Output(np.zeros(64, np.uint32))
    arguments = [scratch, out]
    assert "global race" in checks_of(body.format(barrier=""), arguments, threads=64)
    assert checks_of(body.format(barrier="bar.sync 0;"), arguments, threads=64) == set()
    assert out.array.tolist() == [i ^ 32 for i in range(64)]


SUM = """
    mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; ld.global.f32 %f3, [%d3];
    red.global.add.f32 [%d1], %f3;
"""


def test_order_of_atomics_shows() -> None:
    """A sum of floats by atomics depends on the schedule, and a run says so by its bits."""
    values = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
    sums = set()
    for seed in range(4):
        total = InOut(np.zeros(1, np.float32))
        counters = launch(SUM, [values, total], threads=1024, seed=seed)
        assert counters.atomics == 1024
        assert total.array[0] == pytest.approx(values.sum(dtype=np.float64), abs=1e-3)
        sums.add(float(total.array[0]))
    assert len(sums) > 1


# Thread 0 clears a counter, all threads add to it, thread 40 reads it.
TALLY = """
    {address}
    setp.eq.u32 %p1, %r0, 0; setp.eq.u32 %p2, %r0, 40; mov.b32 %r5, 0;
    @%p1 st.{space}.b32 [{counter}], %r5;
    bar.sync 0; // cleared
    atom.{space}.add.u32 %r6, [{counter}], 1;
    bar.sync 0; // counted
    @%p2 ld.{space}.b32 %r7, [{counter}];
    bar.sync 0; // read
    @%p2 st.{space}.b32 [{counter}], %r7;
"""
PLACES = {
    "shared": {"address": "mov.b32 %r3, smem;", "space": "shared", "counter": "%r3"},
    "global": {"address": "", "space": "global", "counter": "%d0"},
}


@pytest.mark.parametrize("space", PLACES)
@pytest.mark.parametrize("missing", [None, "cleared", "counted"])
def test_plain_accesses_race_with_atomics(space: str, missing: str | None) -> None:
    body = TALLY.format(**PLACES[space])
    if missing:
        body = body.replace(f"bar.sync 0; // {missing}", "")
    counter = InOut(np.zeros(1, np.uint32))
    race = {"race" if space == "shared" else "global race"}
    found = checks_of(body, [counter], threads=64, shared=128)
    assert found == (race if missing else set())


def test_plain_write_behind_the_atomics_of_others() -> None:
    """Nobody reads: the store of thread 40 and the other warp's atomic operations race alone."""
    for space, check in (("shared", "race"), ("global", "global race")):
        body = TALLY.format(**PLACES[space])
        body = body.replace("bar.sync 0; // counted", "").replace("bar.sync 0; // read", "")
        body = body.replace(f"@%p2 ld.{space}.b32 %r7, [{PLACES[space]['counter']}];", "")
        body = body.replace("%r7;", "7;")
        counter = InOut(np.zeros(1, np.uint32))
        assert checks_of(body, [counter], threads=64, shared=128) == {check}


def test_local_memory_has_an_end() -> None:
    body = """
        .local .align 16 .b8 pool[16]; mov.b64 %d2, pool; cvt.u64.u32 %d3, %r0;
        shl.b64 %d3, %d3, 2; add.s64 %d2, %d2, %d3; st.local.b32 [%d2], %r0;
    """
    assert checks_of(body, [], threads=4) == set()
    assert checks_of(body, [], threads=5) == {"out of bounds local"}


def test_every_check_has_a_test() -> None:
    """Each name of `CHECKS` stands in a test file of this folder."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in CHECKS if f'"{name}"' not in text] == []


def test_endless_loops_end() -> None:
    with pytest.raises(PtxError, match="no end after"):
        kernel("$again: bra $again;", []).launch((1,), (32,), [], limit=1000)


def test_counters_add_up() -> None:
    out = Output(np.zeros(32, np.uint32))
    one = launch(WRITE, [out])
    assert isinstance(one, Counters)
    assert (one + one).bytes["store"] == 2 * one.bytes["store"] == 256
    assert (one + one).warp_instructions == 2 * one.warp_instructions
    assert one.sectors == {"store": 4}
    assert one.sectors_per_request == 4
    assert one.as_dict()["sectors: store"] == 4
    assert findings_of(WRITE, [out]) == []
