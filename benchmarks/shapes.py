"""Shapes of attention in models that people use, see the sources beside each."""

from __future__ import annotations

from typing import NamedTuple


class PairShape(NamedTuple):
    """Two sequences that attend to each other."""

    name: str
    batch: int
    heads: int
    time_a: int
    time_b: int
    head_dim: int

    @property
    def forward_operations(self) -> int:
        """Floating point operations of the forward with one similarity matrix, 6 N M d a head."""
        pairs = self.time_a * self.time_b
        return 6 * self.batch * self.heads * pairs * self.head_dim

    def __str__(self) -> str:
        return self.name


PAIR_SHAPES = (
    # Windows of 300 video frames against 300 and 1500 audio frames, ABAW challenges.
    PairShape("abaw-300x300", 8, 8, 300, 300, 64),
    PairShape("abaw-300x1500", 8, 8, 300, 1500, 64),
    # MulT (Tsai et al., 2019) on CMU-MOSEI.
    PairShape("mosei-50x500-d8", 16, 5, 50, 500, 8),
    PairShape("mosei-50x375-d40", 16, 5, 50, 375, 40),
    # LightGlue (Lindenberger et al., 2023), keypoints of two images.
    PairShape("lightglue-512", 1, 4, 512, 512, 64),
    PairShape("lightglue-2048", 1, 4, 2048, 2048, 64),
    # GroundingDINO (Liu et al., 2023), image tokens against text.
    PairShape("grounding-dino", 1, 4, 22_000, 256, 256),
)


class ChunkShape(NamedTuple):
    """One long sequence."""

    name: str
    batch: int
    heads: int
    time: int
    head_dim: int
    chunk_size: int
    lookback: int

    @property
    def forward_operations(self) -> int:
        """Floating point operations of the forward, 4 T chunk_size (lookback + 1) d a head."""
        window = self.chunk_size * (self.lookback + 1)
        return 4 * self.batch * self.heads * self.time * window * self.head_dim

    def __str__(self) -> str:
        return self.name


CHUNK_SHAPES = tuple(
    ChunkShape(f"temporal-{time}", 4, 8, time, 64, 64, 1) for time in (300, 3_000, 30_000)
)
