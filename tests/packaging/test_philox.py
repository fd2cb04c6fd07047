from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmer.kernels.philox import uniform_bits

WORD = st.integers(0, 2**32 - 1)


def philox_in_numpy(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 written from the paper's definition; counter is (..., 4)."""
    word = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (counter[..., n].astype(np.uint64) for n in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product_0, product_1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product_1 >> np.uint64(32)) ^ c1 ^ k0,
            product_1 & word,
            (product_0 >> np.uint64(32)) ^ c3 ^ k1,
            product_0 & word,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & word, (k1 + np.uint64(0xBB67AE85)) & word
    return np.stack([c0, c1, c2, c3], axis=-1)


def attention_words(seed: int, batch_heads: int, queries: int, keys: int, stream: int) -> object:
    """The operator's definition: lane key % 4 of the counter (key // 4, query, row, stream)."""
    row, query, key = np.ogrid[:batch_heads, :queries, :keys]
    shape = (batch_heads, queries, keys)
    parts = (key // 4, query, row, np.full((), stream))
    counter = np.stack([np.broadcast_to(part, shape) for part in parts], axis=-1)
    words = philox_in_numpy(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    lanes = np.broadcast_to(key % 4, shape)[..., None]
    return np.take_along_axis(words, lanes, axis=-1)[..., 0]


# The known answers that Random123, the authors' own library, is tested with.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(
    native: ModuleType, counter: list[int], key: list[int], words: list[int]
) -> None:
    assert native.philox4x32_10(counter, key) == words
    assert philox_in_numpy(np.array(counter, np.uint64), (key[0], key[1])).tolist() == words


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_any_counter_and_key(
    native: ModuleType, counter: tuple[int, ...], key: tuple[int, int]
) -> None:
    expected = philox_in_numpy(np.array(counter, np.uint64), key).tolist()
    assert native.philox4x32_10(counter, key) == expected


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize(
    ("batch_heads", "queries", "keys"), [(1, 1, 1), (2, 3, 5), (3, 17, 64), (1, 2, 1025)]
)
@pytest.mark.parametrize("stream", [0, 1, 2**32 - 1])
def test_operator_equals_definition(
    seed: int, batch_heads: int, queries: int, keys: int, stream: int
) -> None:
    bits = torch.ops.mmer_cpu.philox_uniform_bits(
        torch.tensor(seed), batch_heads, queries, keys, stream
    )
    assert bits.dtype == torch.int64
    expected = attention_words(seed, batch_heads, queries, keys, stream)
    np.testing.assert_array_equal(bits.numpy(), expected)


@pytest.mark.usefixtures("operators")
def test_operator_equals_the_reference_of_the_kernels() -> None:
    seed = torch.tensor(-987654321987654321)
    bits = torch.ops.mmer_cpu.philox_uniform_bits(seed, 4, 33, 70, 1)
    row, query, key = (torch.arange(n) for n in (4, 33, 70))
    reference = uniform_bits(seed, row[:, None, None], query[:, None], key, 1)
    assert torch.equal(bits, reference)


@pytest.mark.usefixtures("operators")
def test_number_of_threads_does_not_matter() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.ops.mmer_cpu.philox_uniform_bits(torch.tensor(5), 8, 100, 301, 0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    bits = torch.ops.mmer_cpu.philox_uniform_bits(torch.tensor(0), *shape, 0)
    assert bits.shape == shape


@pytest.mark.usefixtures("operators")
def test_bits_are_uniform() -> None:
    bits = torch.ops.mmer_cpu.philox_uniform_bits(torch.tensor(42), 1, 500, 500, 0)
    share_of_ones = torch.stack([(bits >> n & 1).double().mean() for n in range(32)])
    # Five standard deviations of the mean of 250 000 fair bits.
    assert (share_of_ones - 0.5).abs().max() < 5 * 0.5 / 500


@pytest.mark.usefixtures("operators")
def test_operator_is_registered_well() -> None:
    operator = torch.ops.mmer_cpu.philox_uniform_bits.default
    torch.library.opcheck(operator, (torch.tensor(7), 2, 3, 5, 1))


@pytest.mark.usefixtures("operators")
def test_compiled_graph_has_no_break() -> None:
    def words(seed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mmer_cpu.philox_uniform_bits(seed, x.shape[0], x.shape[1], 6, 0)

    compiled = torch.compile(words, fullgraph=True, dynamic=True, backend="aot_eager")
    seed = torch.tensor(3)
    for shape in ((2, 3), (4, 5)):
        x = torch.zeros(shape)
        assert torch.equal(compiled(seed, x), words(seed, x))


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("seed", "sizes", "named"),
    [
        (torch.zeros(1, dtype=torch.int64), (1, 1, 1, 0), "seed"),
        (torch.tensor(0.0), (1, 1, 1, 0), "seed"),
        (torch.tensor(0), (-1, 1, 1, 0), "batch_heads"),
        (torch.tensor(0), (1, 2**32 + 1, 1, 0), "queries"),
        (torch.tensor(0), (1, 1, -2, 0), "keys"),
        (torch.tensor(0), (1, 1, 1, 2**32), "stream"),
    ],
)
def test_wrong_arguments_are_named(
    seed: torch.Tensor, sizes: tuple[int, int, int, int], named: str
) -> None:
    with pytest.raises(RuntimeError, match=named):
        torch.ops.mmer_cpu.philox_uniform_bits(seed, *sizes)
