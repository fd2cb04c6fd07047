"""Tensor-core instructions against plain matrix products, fragment by fragment."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tests.ptx import InOut, Output
from tests.ptx.forms import Form, all_forms
from tests.ptx.snippets import launch

_FAMILIES = ("ldmatrix", "stmatrix", "movmatrix", "mma", "wgmma")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


def is_covered(form: Form) -> bool:
    """Whether the tests of this file execute ``form``."""
    return form.opcode.split(".")[0] in _FAMILIES


def opcodes(name: str) -> list[str]:
    """The distinct opcodes of one family."""
    return sorted({form.opcode for form in all_forms() if form.opcode.split(".")[0] == name})


def small_integers(*shape: int, seed: int) -> torch.Tensor:
    """Whole numbers: every product and sum is exact in every type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


def bits(matrix: torch.Tensor, type_name: str) -> np.ndarray:
    """The elements as unsigned integers."""
    kind, view = (torch.int32, np.uint32) if type_name == "tf32" else (torch.int16, np.uint16)
    return matrix.to(DTYPES[type_name]).view(kind).numpy().view(view)


@pytest.mark.parametrize("opcode", opcodes("mma"))
def test_mma(opcode: str) -> None:
    """Two warps; element (row, k) lies where the PTX manual's tables put it."""
    shape, type_name = opcode.split(".")[3], opcode.split(".")[-2]
    depth = int(re.findall(r"\d+", shape)[2])
    per_word = 1 if type_name == "tf32" else 2
    a, b, c = (
        small_integers(2, *s, seed=i) for i, s in enumerate(((16, depth), (depth, 8), (16, 8)))
    )
    a_bits, b_bits = bits(a, type_name), bits(b, type_name)
    counts = depth // (4 * per_word) * 2, depth // (4 * per_word)
    words = np.zeros((64, 10), np.uint32)
    for lane in range(64):
        warp, group, thread = lane // 32, lane % 32 // 4, lane % 4
        for register in range(counts[0]):
            row, block = group + 8 * (register % 2), register // 2
            k = block * 4 * per_word + thread * per_word
            words[lane, register] = _word(a_bits[warp, row, k : k + per_word])
        for register in range(counts[1]):
            k = register * 4 * per_word + thread * per_word
            words[lane, 4 + register] = _word(b_bits[warp, k : k + per_word, group])
        for register in range(4):
            row, column = group + 8 * (register // 2), 2 * thread + register % 2
            words[lane, 6 + register] = c[warp, row, column].numpy().view(np.uint32)
    loads = [f"ld.global.b32 %r{10 + i}, [%d3+{4 * i}];" for i in range(10)]
    a_list, b_list = (
        ", ".join(f"%r{first + i}" for i in range(count))
        for first, count in zip((10, 14), counts, strict=True)
    )
    body = f"""
        mul.wide.u32 %d2, %r0, 40; add.s64 %d3, %d0, %d2;
        mul.wide.u32 %d2, %r0, 16; add.s64 %d4, %d1, %d2;
        {"".join(loads)}
        {opcode} {{%r16, %r17, %r18, %r19}}, {{{a_list}}}, {{{b_list}}}, {{%r16, %r17, %r18, %r19}};
        st.global.v4.b32 [%d4], {{%r16, %r17, %r18, %r19}};
    """
    out = Output(np.zeros((64, 4), np.float32))
    counters = launch(body, [words, out], threads=64)
    wanted = (c + a @ b).numpy()
    for lane in range(64):
        warp, group, thread = lane // 32, lane % 32 // 4, lane % 4
        for register in range(4):
            row, column = group + 8 * (register // 2), 2 * thread + register % 2
            assert out.array[lane, register] == wanted[warp, row, column], (lane, register)
    assert counters.mma == {f"{shape} {type_name}": 2}
    assert counters.mma_flops == 2 * 2 * 16 * 8 * depth


def _word(elements: np.ndarray) -> int:
    return sum(int(value) << 16 * place for place, value in enumerate(elements))


@pytest.mark.parametrize("opcode", opcodes("ldmatrix"))
def test_load_matrix(opcode: str) -> None:
    """Lane 4 r + c gets (row r, columns 2 c and 2 c + 1), or the transposed place."""
    count = int(re.search(r"\.x(\d)", opcode)[1])  # type: ignore[index]
    transposed = ".trans" in opcode
    matrices = np.random.default_rng(1).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    names = [f"%r{20 + i}" for i in range(4)]
    body = f"""
        mul.wide.u32 %d2, %r0, 16; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d3];
        shl.b32 %r3, %r0, 4; mov.b32 %r4, smem; add.u32 %r3, %r3, %r4;
        st.shared.v4.b32 [%r3], {{%r10, %r11, %r12, %r13}};
        bar.warp.sync -1;
        mov.b32 %r20, 0; mov.b32 %r21, 0; mov.b32 %r22, 0; mov.b32 %r23, 0;
        {opcode} {{{", ".join(names[:count])}}}, [%r3];
        st.global.v4.b32 [%d4], {{{", ".join(names)}}};
    """
    out = Output(np.zeros((32, 4), np.uint32))
    launch(body, [matrices, out], shared=512)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        for matrix in range(count):
            tile = matrices[matrix].T if transposed else matrices[matrix]
            assert out.array[lane, matrix] == _word(tile[row, column : column + 2])


@pytest.mark.parametrize("opcode", opcodes("stmatrix"))
def test_store_matrix(opcode: str) -> None:
    count = int(re.search(r"\.x(\d)", opcode)[1])  # type: ignore[index]
    words = np.random.default_rng(2).integers(0, 2**32, (32, 4)).astype(np.uint32)
    names = [f"%r{10 + i}" for i in range(4)]
    body = f"""
        mul.wide.u32 %d2, %r0, 16; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        ld.global.v4.b32 {{{", ".join(names)}}}, [%d3];
        shl.b32 %r3, %r0, 4; mov.b32 %r4, smem; add.u32 %r3, %r3, %r4;
        st.shared.v4.b32 [%r3], {{0, 0, 0, 0}};
        bar.warp.sync -1;
        {opcode} [%r3], {{{", ".join(names[:count])}}};
        bar.warp.sync -1;
        ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r3];
        st.global.v4.b32 [%d4], {{%r20, %r21, %r22, %r23}};
    """
    out = Output(np.zeros((4, 8, 8), np.uint16))
    launch(body, [words, out], shared=512)
    for matrix in range(4):
        tile = out.array[matrix].T if ".trans" in opcode else out.array[matrix]
        for lane in range(32):
            row, column = lane // 4, 2 * (lane % 4)
            wanted = int(words[lane, matrix]) if matrix < count else 0
            assert _word(tile[row, column : column + 2]) == wanted


def test_move_matrix() -> None:
    tile = np.random.default_rng(3).integers(0, 2**16, (8, 8)).astype(np.uint16)
    out = Output(np.zeros((8, 8), np.uint16))
    body = """
        mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
        ld.global.b32 %r3, [%d3];
        movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r3;
        st.global.b32 [%d4], %r4;
    """
    launch(body, [tile, out])
    assert (out.array == tile.T).all()
    assert opcodes("movmatrix") == ["movmatrix.sync.aligned.m8n8.trans.b16"]


def swizzled(matrix: np.ndarray, row_bytes: int, transposed: bool) -> np.ndarray:
    """A (rows, depth) operand as it lies in shared memory, by the manual's canonical layouts.

    ``row_bytes`` is the swizzle width. K-major operands have rows of that many bytes, of which the
    first 32 are used; M/N-major ones have, for each k, blocks of ``row_bytes`` of adjacent rows.
    """
    size = matrix.itemsize
    rows, depth = matrix.shape
    memory = np.zeros(rows * max(row_bytes, 32) * 2, np.uint8).reshape(-1)
    phase = {128: 7, 64: 3, 32: 1, 16: 0}[row_bytes]
    per_block = row_bytes // size
    for row in range(rows):
        for k in range(depth):
            if row_bytes == 16:
                offset = (row // 8) * 256 + (row % 8) * 16 + (k * size // 16) * 128 + k * size % 16
            elif transposed:
                block, inside = divmod(row, per_block)
                offset = block * row_bytes * depth + k * row_bytes + inside * size
            else:
                offset = row * row_bytes + k * size
            offset ^= (offset >> 7 & phase) << 4
            memory[offset : offset + size] = matrix[row, k : k + 1].view(np.uint8)
    return memory


def descriptor(row_bytes: int, transposed: bool, depth: int) -> int:
    """The fields of a descriptor for an operand at address 0."""
    mode = {128: 1, 64: 2, 32: 3, 16: 0}[row_bytes]
    leading, stride = (row_bytes * depth, row_bytes * 8) if transposed else (1, row_bytes * 8)
    if row_bytes == 16:
        leading, stride = 128, 256
    return mode << 62 | stride >> 4 << 32 | leading >> 4 << 16


WGMMA = opcodes("wgmma")


@pytest.mark.parametrize("row_bytes", [128, 64, 32, 16])
@pytest.mark.parametrize("type_name", ["bf16", "f16", "tf32"])
@pytest.mark.parametrize("from_registers", [False, True])
def test_wgmma_layouts(type_name: str, row_bytes: int, from_registers: bool) -> None:
    both = type_name != "tf32" and row_bytes > 16
    for transposed in (False, True) if both else (False,):
        run_wgmma(type_name, 64, row_bytes, from_registers, transposed)


SHAPES = {"few": (8, 24, 256), "all": range(8, 257, 8)}


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("type_name", ["bf16", "f16", "tf32"])
def test_wgmma_shapes(type_name: str, which: str) -> None:
    """A number of columns at a time, with A from shared memory and from registers."""
    for columns in SHAPES[which]:
        for from_registers in (False, True):
            run_wgmma(type_name, columns, 32, from_registers, False)


def run_wgmma(
    type_name: str, columns: int, row_bytes: int, from_registers: bool, transposed: bool
) -> None:
    """One product: 64 rows of A, from registers or from shared memory as B is."""
    depth = 8 if type_name == "tf32" else 16
    opcode = f"wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{type_name}.{type_name}"
    assert opcode in WGMMA
    a, b = small_integers(64, depth, seed=1), small_integers(columns, depth, seed=2)
    c = small_integers(64, columns, seed=3)
    a_bits, b_bits = bits(a, type_name), bits(b, type_name)
    a_memory = swizzled(a_bits, row_bytes, transposed)
    b_memory = swizzled(b_bits, row_bytes, transposed)
    start = -(-len(a_memory) // 1024) * 1024
    shared = -(-(start + len(b_memory)) // 2048) * 2048
    image = np.zeros(shared, np.uint8)
    image[: len(a_memory)], image[start : start + len(b_memory)] = a_memory, b_memory
    fragments = np.zeros((128, 4), np.uint32)
    accumulators = np.zeros((128, columns // 2), np.float32)
    per_word = 32 // (8 * a_bits.itemsize)
    for lane in range(128):
        row, thread = lane // 32 * 16 + lane % 32 // 4, lane % 4
        for register in range(4):
            k = register // 2 * 4 * per_word + thread * per_word
            fragments[lane, register] = _word(a_bits[row + 8 * (register % 2), k : k + per_word])
        for register in range(columns // 2):
            column = register // 4 * 8 + 2 * thread + register % 2
            accumulators[lane, register] = c[row + 8 * (register // 2 % 2), column]
    flags = (", 1" if transposed else ", 0") if depth == 16 else ""
    first = "{%r20, %r21, %r22, %r23}" if from_registers else "%d10"
    second_flag = flags if not from_registers else ""
    names = ", ".join(f"%f{100 + i}" for i in range(columns // 2))
    loads = "".join(f"ld.global.f32 %f{100 + i}, [%d5+{4 * i}];" for i in range(columns // 2))
    stores = "".join(f"st.global.f32 [%d5+{4 * i}], %f{100 + i};" for i in range(columns // 2))
    body = f"""
        mul.wide.u32 %d6, %r0, 16; add.s64 %d7, %d1, %d6; add.s64 %d3, %d0, %d6;
        mul.wide.u32 %d6, %r0, {2 * columns}; add.s64 %d5, %d2, %d6;
        ld.global.v4.b32 {{%r20, %r21, %r22, %r23}}, [%d7];
        {loads}
        shl.b32 %r4, %r0, 4; mov.b32 %r5, smem; add.u32 %r4, %r4, %r5; mov.b32 %r6, 0;
        $fill:
        ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d3];
        st.shared.v4.b32 [%r4], {{%r10, %r11, %r12, %r13}};
        add.s64 %d3, %d3, 2048; add.u32 %r4, %r4, 2048; add.u32 %r6, %r6, 2048;
        setp.lt.u32 %p1, %r6, {shared};
        @%p1 bra $fill;
        fence.proxy.async;
        bar.sync 0;
        mov.b64 %d10, {descriptor(row_bytes, transposed, depth)};
        add.s64 %d11, %d10, {start >> 4};
        setp.ne.b32 %p2, %r5, -1;
        wgmma.fence.sync.aligned;
        {opcode} {{{names}}}, {first}, %d11, %p2, 1, 1{second_flag}{flags};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        {stores}
    """
    out = InOut(accumulators)
    counters = launch(body, [image, fragments, out], threads=128, shared=shared)
    wanted = (c + a @ b.T).numpy()
    for lane in range(0, 128, 7):
        row, thread = lane // 32 * 16 + lane % 32 // 4, lane % 4
        for register in range(columns // 2):
            column = register // 4 * 8 + 2 * thread + register % 2
            place = row + 8 * (register // 2 % 2), column
            assert out.array[lane, register] == wanted[place], (lane, register)
    assert counters.mma_flops == 2 * 64 * columns * depth
