"""What is measured: shapes of attention in models that people use, and suites of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

FORWARD = "forward"
BACKWARD = "forward + backward"


class PairShape(NamedTuple):
    """Two sequences that attend to each other."""

    name: str
    batch: int
    heads: int
    time_a: int
    time_b: int
    head_dim: int

    @property
    def pairs(self) -> int:
        """Number of scores in one similarity matrix, over batch and heads."""
        return self.batch * self.heads * self.time_a * self.time_b

    def __str__(self) -> str:
        return f"{self.batch}, {self.heads}, {self.time_a} x {self.time_b}, {self.head_dim}"


class ChunkShape(NamedTuple):
    """One long sequence that attends to its neighbourhood."""

    name: str
    batch: int
    heads: int
    time: int
    head_dim: int
    chunk_size: int = 64
    lookback: int = 1
    lookahead: int = 0

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """The queries of each chunk and the keys that they see."""
        for start in range(0, self.time, self.chunk_size):
            first = max(0, start - self.lookback * self.chunk_size)
            end = min(self.time, start + (self.lookahead + 1) * self.chunk_size)
            yield slice(start, min(self.time, start + self.chunk_size)), slice(first, end)

    @property
    def pairs(self) -> int:
        """Number of scores, over batch and heads."""
        seen = sum((q.stop - q.start) * (k.stop - k.start) for q, k in self.windows())
        return self.batch * self.heads * seen

    def __str__(self) -> str:
        window = f"{self.chunk_size} x (1 + {self.lookback} + {self.lookahead})"
        return f"{self.batch}, {self.heads}, {self.time}, {self.head_dim}, {window}"


Shape = PairShape | ChunkShape

# Floating point operations for each score and unit of head_dim that the result needs, forward and
# forward + backward. One product of matrices counts 2. Recomputed scores are no useful work.
USEFUL_OPERATIONS = {
    "shared_cross_attention": {FORWARD: 6, BACKWARD: 20},
    "bidirectional_cross_attention": {FORWARD: 8, BACKWARD: 28},
    "chunked_attention": {FORWARD: 4, BACKWARD: 14},
}
PAIR_OPERATORS = ("shared_cross_attention", "bidirectional_cross_attention")
OPERATORS = tuple(USEFUL_OPERATIONS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One operator at one shape, dtype and direction.

    Attributes:
        operator: one of :data:`OPERATORS`.
        shape: its shape.
        dtype: name of the dtype of inputs and outputs.
        direction: :data:`FORWARD` or :data:`BACKWARD`.
    """

    operator: str
    shape: Shape
    dtype: str
    direction: str

    @property
    def operations(self) -> int:
        """Useful floating point operations, see :data:`USEFUL_OPERATIONS`."""
        each = USEFUL_OPERATIONS[self.operator][self.direction]
        return each * self.shape.pairs * self.shape.head_dim

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operator's tensors."""
        return [self._tensor(time) for time in self._input_times()]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operator's outputs."""
        shape = self.shape
        times = (shape.time,) if isinstance(shape, ChunkShape) else (shape.time_a, shape.time_b)
        return [self._tensor(time) for time in times]

    def _tensor(self, time: int) -> tuple[int, ...]:
        return (self.shape.batch, self.shape.heads, time, self.shape.head_dim)

    def _input_times(self) -> tuple[int, ...]:
        shape = self.shape
        if isinstance(shape, ChunkShape):
            return (shape.time,) * 3
        if self.operator == "shared_cross_attention":
            return (shape.time_a, shape.time_b) * 2
        return (shape.time_a,) * 3 + (shape.time_b,) * 3

    def __str__(self) -> str:
        return f"{self.operator} {self.shape.name} {self.dtype} {self.direction}"


PAIR_SHAPES = (
    # Windows of 300 video frames against 300 and 1500 audio frames, ABAW challenges.
    PairShape("abaw-300x300", 8, 8, 300, 300, 64),
    PairShape("abaw-300x1500", 8, 8, 300, 1500, 64),
    # MulT (Tsai et al., 2019) on CMU-MOSEI: text against audio and video, narrow and wide heads.
    PairShape("mosei-50x375", 32, 8, 50, 375, 64),
    PairShape("mosei-50x500-d8", 16, 5, 50, 500, 8),
    PairShape("mosei-50x375-d8", 16, 5, 50, 375, 8),
    PairShape("mosei-50x500-d40", 16, 5, 50, 500, 40),
    PairShape("mosei-50x375-d40", 16, 5, 50, 375, 40),
    # LightGlue (Lindenberger et al., 2023), keypoints of two images.
    PairShape("lightglue-512", 1, 4, 512, 512, 64),
    PairShape("lightglue-1024", 1, 4, 1024, 1024, 64),
    PairShape("lightglue-2048", 1, 4, 2048, 2048, 64),
    # GroundingDINO (Liu et al., 2023) and GLIP (Li et al., 2022), image tokens against text.
    PairShape("grounding-dino", 1, 4, 22_000, 256, 256),
    PairShape("glip", 1, 8, 22_000, 256, 256),
    # BiXT (Hiller et al., 2024), 64 latents against the 196 patches of an image.
    PairShape("bixt", 32, 6, 64, 196, 32),
)
LONG_PAIR = PairShape("long-18000x30000", 1, 1, 18_000, 30_000, 64)
CHUNK_SHAPES = (
    ChunkShape("temporal-300", 4, 8, 300, 64),
    ChunkShape("temporal-3000", 4, 8, 3_000, 64),
    ChunkShape("temporal-3000-lookahead", 4, 8, 3_000, 64, lookahead=1),
    ChunkShape("temporal-30000", 4, 8, 30_000, 64),
)
LONG_CHUNKS = ChunkShape("long-300000", 1, 8, 300_000, 64)

_QUICK = ("abaw-300x300", "mosei-50x500-d8", "lightglue-512", "temporal-300")
SUITES: dict[str, dict[str, tuple[Shape, ...]]] = {
    "quick": {
        "shared_cross_attention": tuple(s for s in PAIR_SHAPES if s.name in _QUICK),
        "chunked_attention": tuple(s for s in CHUNK_SHAPES if s.name in _QUICK),
    },
    "standard": {
        "shared_cross_attention": PAIR_SHAPES,
        "bidirectional_cross_attention": PAIR_SHAPES[:3],
        "chunked_attention": CHUNK_SHAPES,
    },
    "all": {
        "shared_cross_attention": (*PAIR_SHAPES, LONG_PAIR),
        "bidirectional_cross_attention": PAIR_SHAPES,
        "chunked_attention": (*CHUNK_SHAPES, LONG_CHUNKS),
    },
}


def parse_shape(text: str) -> Shape:
    """Read a shape as it is given on the command line.

    Args:
        text: ``B,H,N,M,D`` for two sequences, ``B,H,T,D,CHUNK,LOOKBACK`` for chunks.

    Raises:
        ValueError: It is neither.
    """
    words = text.split(",")
    if len(words) not in (5, 6) or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--shape must be B,H,N,M,D or B,H,T,D,CHUNK,LOOKBACK, got {text!r}")
    numbers = [int(word) for word in words]
    if min(numbers[:5]) < 1:
        raise ValueError(f"--shape must have sizes of at least 1, got {text!r}")
    name = "x".join(map(str, numbers))
    return PairShape(name, *numbers) if len(numbers) == 5 else ChunkShape(name, *numbers)


def select_cases(
    suite: str,
    operators: Sequence[str] = (),
    shapes: Sequence[Shape] = (),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    directions: Sequence[str] = (FORWARD, BACKWARD),
) -> list[Case]:
    """List the cases of a suite, or of given shapes.

    Args:
        suite: Name of a suite.
        operators: Only these operators; all of the suite by default.
        shapes: These shapes instead of the suite's, with the operators that take such shapes:
            shared and chunked attention, or those of ``operators``.
        dtypes: Names of dtypes.
        directions: Directions.

    Returns:
        The cases, so ordered that those of the same inputs follow each other.

    Raises:
        ValueError: An operator takes none of the shapes.
    """
    table: dict[str, tuple[Shape, ...]] = dict(SUITES[suite])
    if shapes:
        table = {
            operator: tuple(
                s for s in shapes if isinstance(s, PairShape) == (operator in PAIR_OPERATORS)
            )
            for operator in operators or ("shared_cross_attention", "chunked_attention")
        }
    chosen = {
        operator: of_operator
        for operator, of_operator in table.items()
        if of_operator and (not operators or operator in operators)
    }
    for operator in operators:
        if operator not in chosen:
            raise ValueError(f"--operator {operator}: no shape of this run is one that it takes")
    return [
        Case(operator, shape, dtype, direction)
        for operator, of_operator in chosen.items()
        for shape in of_operator
        for dtype in dtypes
        for direction in directions
    ]
