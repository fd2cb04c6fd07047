"""Every peer that is installed computes what we compute."""

from __future__ import annotations

import sys

import pytest

from mmer.benchmark.cases import BACKWARD, FORWARD, Case, ChunkShape, PairShape, Shape
from mmer.benchmark.gate import Truth, refusal
from mmer.benchmark.implementations import PEERS, choose_peers
from mmer.benchmark.memory import measure_memory
from mmer.benchmark.problem import Unavailable, make_problem
from mmer.benchmark.run import run_case

SHAPES: dict[str, tuple[Shape, ...]] = {
    "shared_cross_attention": (PairShape("a", 2, 2, 20, 20, 8), PairShape("b", 1, 2, 20, 33, 8)),
    "bidirectional_cross_attention": (PairShape("a", 2, 2, 20, 20, 8),),
    "chunked_attention": (ChunkShape("c", 2, 2, 50, 8, 16), ChunkShape("d", 1, 2, 50, 8, 16, 2, 1)),
}
EXPECTED = {
    "sdpa": set(SHAPES),
    "eager": {"shared_cross_attention", "bidirectional_cross_attention"},
    "sdpa flipped": {"shared_cross_attention", "bidirectional_cross_attention"},
    "sdpa windows": {"chunked_attention"},
    "openvino": {"shared_cross_attention", "bidirectional_cross_attention"},
    "onnxruntime": {"shared_cross_attention", "bidirectional_cross_attention"},
    "lucidrains": {"shared_cross_attention"},
    "local-attention": {"chunked_attention"},
}
SLOW = [name for name, peer in PEERS.items() if peer.compiles]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXPECTED)
def test_peers_are_right(name: str, dtype: str) -> None:
    peer, ran = PEERS[name], set()
    if not peer.version:
        pytest.skip(f"{peer.distribution} is not installed")
    for operator, shapes in SHAPES.items():
        for shape in shapes:
            for direction in (FORWARD, BACKWARD):
                problem = make_problem(Case(operator, shape, dtype, direction))
                try:
                    results = peer.prepare(problem)()
                except Unavailable:
                    continue
                assert refusal(problem, Truth(problem), results, ours=False) is None
                ran.add(operator)
    assert ran == (set() if (name, dtype) == ("onnxruntime", "bfloat16") else EXPECTED[name])


@pytest.mark.slow
@pytest.mark.parametrize("operator", SHAPES)
@pytest.mark.parametrize("name", SLOW)
def test_compiled_peers_are_right(name: str, operator: str) -> None:
    problem = make_problem(Case(operator, SHAPES[operator][0], "float32", FORWARD))
    try:
        results = PEERS[name].prepare(problem)()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert refusal(problem, Truth(problem), results, ours=False) is None


def test_a_missing_peer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    case = Case("shared_cross_attention", SHAPES["shared_cross_attention"][0], "float32", FORWARD)
    (row,) = run_case(case, [PEERS["openvino"]], memory=False)
    assert row.timing is None
    assert row.reason == "openvino is not installed: pip install 'mmer-attention[bench]'"


def test_a_peer_that_is_left_out_is_reported() -> None:
    case = Case("shared_cross_attention", SHAPES["shared_cross_attention"][0], "float32", FORWARD)
    (row,) = run_case(case, [PEERS["flex"]], left_out={"flex": "takes long"}, memory=False)
    assert row.reason == "takes long"


def test_unknown_peers_are_refused() -> None:
    with pytest.raises(ValueError, match="--peers: there is no 'tensorflow', only sdpa"):
        choose_peers(["tensorflow"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_scores() -> None:
    shape = PairShape("x", 1, 1, 2_048, 1_024, 16)
    case = Case("shared_cross_attention", shape, "float32", FORWARD)
    scores = 4 * 2_048 * 1_024
    # The scores and one softmax after the other.
    assert 1.9 * scores <= measure_memory("eager", case) <= 4 * scores
    with pytest.raises(Unavailable, match="for chunks"):
        measure_memory("local-attention", case)
