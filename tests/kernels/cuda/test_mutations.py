"""Bugs put into the CUDA kernels on purpose: the tests of this folder must notice each of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmer.kernels import chunked_attention
from tests.kernels.cases import make_pair
from tests.kernels.cuda.emulation import SOURCES, emulated_backend
from tests.kernels.test_cross_attention import check_error_rule
from tests.ptx.compilers import has_nvcc
from tests.ptx.findings import KernelFault

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc on the PATH compiles the kernels")


@dataclass(frozen=True)
class Mutation:
    """Text of a source, what it is replaced by, and the rule that this breaks.

    Attributes:
        check: name of a finding of the emulator; None: the results are wrong.
        last: replace the last occurrence instead of the first.
        scale: of the scores that show it.
        time_a: steps of the first sequence; the second has 150.
        multiprocessors: of the GPU: 1 takes S once in one group.
        shared_bytes: of a block: few leave no room for S once.
        masks: hide steps of both sequences.
    """

    source: str
    old: str
    new: str
    check: str | None
    last: bool = False
    scale: float = 0.35
    time_a: int = 70
    multiprocessors: int = 1
    shared_bytes: int = 163 * 1024
    masks: bool = True

    def apply(self, folder: Path) -> None:
        path = folder / "cuda" / self.source
        text = path.read_text()
        assert self.old in text, f"{self.source} no longer holds {self.old!r}"
        head, tail = text.rsplit(self.old, 1) if self.last else text.split(self.old, 1)
        path.write_text(head + self.new + tail)


WAIT_AND_BARRIER = "    cp_async_wait<0>();\n    __syncthreads();\n"
FORWARD = {
    "barrier between two tiles": Mutation(
        "directed_forward.h", WAIT_AND_BARRIER, "cp_async_wait<0>();", "race"
    ),
    "wait for a tile": Mutation(
        "directed_forward.h", WAIT_AND_BARRIER, "__syncthreads();", "copy in flight"
    ),
    "wait for the queries": Mutation(
        "directed_forward.h", "cp_async_wait<1>();", "", "copy in flight"
    ),
    "end of the keys": Mutation(
        "visible.h", "if (n * 8 + 8 <= count) return;", "return;", None, masks=False
    ),
    "rows past the end of a plain side are loaded": Mutation(
        "side_loader.h",
        "return below < wanted;",
        "return true;",
        "out of bounds global",
        masks=False,
    ),
    "padded keys": Mutation(
        "directed_forward.h", "bias_smem[place] = bias;", "bias_smem[place] = 0.0f;", None
    ),
    "bias of the keys": Mutation(
        "visible.h", "bias_smem[n * 8 + lane % 4 * 2 + e % 2]);", "0.0f);", None
    ),
    "rows past the end are loaded": Mutation(
        "tile.h",
        "wanted ? bytes_of<further>() : 0",
        "bytes_of<further>()",
        "out of bounds global",
    ),
    "rows past the end are stored": Mutation(
        "tile.h",
        "const int rows_left = time - first - lane() / lanes_a_row;",
        "const int rows_left = rows;",
        "out of bounds global",
    ),
    "rescaling of the sums": Mutation(
        "directed_forward.h", "row_sum[half] *= shrink;", "", None, scale=2.0
    ),
}
READS_SUMS = "#pragma unroll\n  for (int n = 0; n < pairs; ++n) {\n    add_words"
SHARED = {
    "barrier before the transposed product": Mutation(
        "shared_forward.h",
        "    __syncthreads();\n    unsafe |=",
        "    unsafe |=",
        "race",
    ),
    "hidden rows": Mutation(
        "shared_block.h", "start = block.row_start(m, half)", "start = 0.0f", None
    ),
    "barrier before the other warp's sums": Mutation(
        "shared_forward.h",
        "  __syncthreads();\n" + READS_SUMS,
        READS_SUMS,
        "race",
    ),
    "the other warp's sums of rows": Mutation(
        "shared_forward.h",
        "block.row_parts_smem[row] + block.row_parts_smem[Block::rows + row]",
        "sum",
        None,
    ),
    # A block with room for 128 rows, which takes the others in a second turn.
    "what the turn before has found": Mutation(
        "shared_tile.h",
        "if (block.turn > 0) {",
        "if (block.turn > 1) {",
        None,
        time_a=140,
        shared_bytes=99 * 1024,
    ),
    "what the turn before has subtracted": Mutation(
        "shared_results.h",
        "if (any_lane(factor != 1.0f)) {",
        "if (false) {",
        None,
        scale=12.0,
        time_a=140,
        shared_bytes=99 * 1024,
    ),
}
# Two rounds of strips, and rows of both pairs of warps.
SHORT = {
    "barrier before the other warp's P is read": Mutation(
        "shared_short_strip.h", "    block.synchronize_pair();\n", "", "race", time_a=50
    ),
    "barrier before P is overwritten": Mutation(
        "shared_short_strip.h", "    block.synchronize_pair();\n", "", "race", True, time_a=50
    ),
    "wait for a strip": Mutation(
        "shared_short_strip.h", "cp_async_wait<1>();", "", "copy in flight", time_a=50
    ),
    "wait for its values": Mutation(
        "shared_short_strip.h", "cp_async_wait<0>();", "", "copy in flight", time_a=50
    ),
    "the other warp's P": Mutation(
        "shared_short_strip.h",
        "block.weights_place + block.to_other_warp",
        "block.weights_place",
        None,
        time_a=50,
    ),
    "hidden rows": Mutation(
        "shared_short_block.h", "if (!whole_rows()) {", "if (false) {", None, time_a=50
    ),
    "hidden columns": Mutation(
        "shared_short_strip.h",
        "bias[eighth] = biases_smem[8 * eighth]",
        "bias[eighth] = 0.0f",
        None,
        time_a=50,
    ),
    "the other warps' sums of rows": Mutation(
        "shared_short.h",
        "n < Block::warps; ++n) sum +=",
        "n < 1; ++n) sum +=",
        None,
        time_a=50,
    ),
    "barrier before the other pair's sums": Mutation(
        "shared_short.h",
        "  __syncthreads();\n  const uint32_t first",
        "  const uint32_t first",
        "race",
        time_a=50,
    ),
}
ONCE_BACKWARD = {
    "barrier before the transposed products": Mutation(
        "once_backward.h",
        "      __syncthreads();\n      if (wanted) {",
        "      if (wanted) {",
        "race",
        time_a=50,
    ),
    "barrier before the rows are stored": Mutation(
        "once_backward.h", "rows' tiles.\n    __syncthreads();", "rows' tiles.\n", "race", time_a=50
    ),
    "hidden rows": Mutation(
        "once_backward.h",
        "row_visible(row) ? 0.0f : hidden_row",
        "0.0f",
        None,
        scale=0.05,
        time_a=50,
    ),
    "hidden columns": Mutation(
        "once_backward.h", "e % 2 ? bias.y : bias.x", "0.0f", None, time_a=50
    ),
    "correction of the columns": Mutation(
        "once_backward.h", "e % 2 ? correction.y : correction.x", "0.0f", None, time_a=50
    ),
    "what earlier rows gave": Mutation(
        "once_backward.h", "wanted && row_tile > first_row_tile", "false", None, time_a=140
    ),
    "all groups are added": Mutation(
        "once_parts.h", "group < groups", "group < 1", None, time_a=140, multiprocessors=4
    ),
    "all groups of columns are added": Mutation(
        "once_parts.h",
        "groups = problem.column_groups;",
        "groups = 1;",
        None,
        time_a=300,
        multiprocessors=12,
    ),
}
BACKWARD = {
    "barrier between two tiles": Mutation(
        "owner_backward.h", WAIT_AND_BARRIER, "cp_async_wait<0>();", "race", shared_bytes=1024
    ),
    "wait for a tile": Mutation(
        "owner_backward.h",
        WAIT_AND_BARRIER,
        "__syncthreads();",
        "copy in flight",
        shared_bytes=1024,
    ),
    "rows past the end of a plain side are loaded": Mutation(
        "tile.h",
        "below < wanted);",
        "true);",
        "out of bounds global",
        shared_bytes=1024,
        masks=False,
    ),
    "correction of the keys' gradient": Mutation(
        "owner_backward.h",
        "grad_weights_rmem[n][e] = e % 2 ? pair.y : pair.x;",
        "grad_weights_rmem[n][e] = 0.0f;",
        None,
        shared_bytes=1024,
    ),
    "padded rows keep a gradient": Mutation(
        "owner_backward.h", "clear_rows(grad_x_rmem, real);", "", None, shared_bytes=1024
    ),
    "own rows of another tensor are held": Mutation(
        "owner_backward.h",
        "Smem.own_value, holds_own>",
        "Smem.own_x, holds_own>",
        None,
        shared_bytes=1024,
    ),
}


def run_mutated(
    mutation: Mutation,
    folder: Path,
    operator: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    shutil.copytree(SOURCES.parent, folder / "csrc")
    mutation.apply(folder / "csrc")
    case = make_pair(
        operator,
        dtype=dtype,
        batch=2,
        heads=1,
        time_a=mutation.time_a,
        time_b=150,
        masks=mutation.masks,
        scale=mutation.scale,
    )
    expected = KernelFault if mutation.check else AssertionError
    machine = {
        "sources": folder / "csrc" / "cuda",
        "multiprocessors": mutation.multiprocessors,
        "shared_bytes": mutation.shared_bytes,
    }
    with emulated_backend(**machine), pytest.raises(expected) as failure:
        check_error_rule(case, "cuda")
    if mutation.check is None:
        assert not isinstance(failure.value, KernelFault), failure.value
    else:
        assert mutation.check in {finding.check for finding in failure.value.findings}


@pytest.mark.parametrize("product", ["a.small, b_large", "a.large, b_small"])
def test_single_tf32_is_not_enough(product: str, tmp_path: Path) -> None:
    mutation = Mutation("elements.h", f"multiply(accumulator, {product});", "", None)
    operator = "bidirectional_cross_attention"
    run_mutated(mutation, tmp_path, operator, dtype=torch.float32)


@pytest.mark.parametrize("name", FORWARD)
def test_mutated_forward(name: str, tmp_path: Path) -> None:
    run_mutated(FORWARD[name], tmp_path, "bidirectional_cross_attention")


@pytest.mark.parametrize("name", SHARED)
def test_mutated_shared_forward(name: str, tmp_path: Path) -> None:
    run_mutated(SHARED[name], tmp_path, "shared_cross_attention")


@pytest.mark.parametrize("name", SHORT)
def test_mutated_short_forward(name: str, tmp_path: Path) -> None:
    run_mutated(SHORT[name], tmp_path, "shared_cross_attention")


@pytest.mark.parametrize("name", BACKWARD)
def test_mutated_backward(name: str, tmp_path: Path) -> None:
    run_mutated(BACKWARD[name], tmp_path, "shared_cross_attention")


@pytest.mark.parametrize("name", ONCE_BACKWARD)
def test_mutated_once_backward(name: str, tmp_path: Path) -> None:
    run_mutated(ONCE_BACKWARD[name], tmp_path, "shared_cross_attention")


def test_mutated_window(tmp_path: Path) -> None:
    shutil.copytree(SOURCES.parent, tmp_path / "csrc")
    mutation = Mutation("visible.h", "seen.end = min(seen.end, step + 1)", "", None)
    mutation.apply(tmp_path / "csrc")
    inputs = [torch.randn(1, 1, 60, 8, dtype=torch.float16) for _ in range(3)]
    options = {"chunk_size": 16, "causal": True}
    expected = chunked_attention(*inputs, **options, backend="reference")
    with emulated_backend(sources=tmp_path / "csrc" / "cuda"):
        ours = chunked_attention(*inputs, **options, backend="cuda")
    assert not torch.allclose(ours.float(), expected.float(), atol=1e-2)
