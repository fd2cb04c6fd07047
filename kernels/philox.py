"""Counter-based random numbers for dropout: the same mask from the same seed on every backend.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC
2011). A random word depends on nothing but the seed and the place it is for, so a backward kernel
draws the forward's mask again instead of reading it, and tiles may be visited in any order.

The place of the attention weight of ``query`` on ``key`` in row ``batch * heads + head`` of
direction ``stream`` is lane ``key % 4`` of the counter ``(key // 4, query, batch * heads + head,
stream)``; the key of the generator is the seed, low word first.
"""

from __future__ import annotations

from torch import Tensor, where

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # int64 products wrap, and the wrapped bits are those of the unsigned 64-bit product.
    product = word * multiplier
    return (product >> 32) & _MASK, product & _MASK


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four 32-bit words of Philox4x32-10 for every counter.

    Args:
        counter: four int64 tensors that broadcast together, each holding unsigned 32-bit words.
        seed: 0-dim int64 tensor, the 64-bit key.

    Returns:
        Four int64 tensors of the broadcast shape with values in ``[0, 2**32)``.
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(word_0, _MULTIPLIERS[0])
        high_1, low_1 = _multiply(word_2, _MULTIPLIERS[1])
        word_0, word_1, word_2, word_3 = (
            high_1 ^ word_1 ^ key_0,
            low_1,
            high_0 ^ word_3 ^ key_1,
            low_0,
        )
        key_0 = (key_0 + _WEYL_INCREMENTS[0]) & _MASK
        key_1 = (key_1 + _WEYL_INCREMENTS[1]) & _MASK
    return word_0, word_1, word_2, word_3


def uniform_bits(seed: Tensor, row: Tensor, query: Tensor, key: Tensor, stream: int) -> Tensor:
    """Return the random word of each attention weight.

    Args:
        seed: 0-dim int64 tensor.
        row: int64, ``batch * heads + head``; ``row``, ``query`` and ``key`` broadcast together.
        query: int64, the query's time index.
        key: int64, the key's time index.
        stream: which softmax of the operator the weight belongs to.

    Returns:
        int64 tensor of the broadcast shape with values in ``[0, 2**32)``.
    """
    counter = (key // 4, query, row, seed.new_full((), stream))
    words = philox4x32(counter, seed)
    lane = key % 4
    return where(
        lane < 2,
        where(lane == 0, words[0], words[1]),
        where(lane == 2, words[2], words[3]),
    )


def keep_threshold(dropout_p: float) -> int:
    """Return the smallest random word whose weight is kept, ``round(dropout_p * 2**32)``."""
    return round(dropout_p * 2**32)


def keep_scale(dropout_p: float) -> float:
    """Return the factor on the kept weights, ``1 / (1 - dropout_p)``; 0 if none is kept."""
    return 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0
