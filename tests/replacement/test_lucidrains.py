"""lucidrains' bidirectional-cross-attention and local-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmer import replace_attention
from mmer.replacement import OriginalAttentionWarning
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, fused, randomise

bidirectional = pytest.importorskip("bidirectional_cross_attention")
local = pytest.importorskip("local_attention")
REAL = torch.arange(40) < torch.tensor([[40], [25]])
REAL_CONTEXT = torch.arange(63) < torch.tensor([[50], [63]])


def attention(**options: Any) -> nn.Module:
    return randomise(
        bidirectional.BidirectionalCrossAttention(
            dim=24, context_dim=20, heads=3, dim_head=8, **options
        )
    )


def sequences() -> list[Tensor]:
    return [
        random_tensor(2, time, dim, dtype=torch.float32, seed=time)
        for time, dim in ((40, 24), (63, 20))
    ]


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("masked", [(), ("mask",), ("mask", "context_mask")])
def test_bidirectional(prenorm: bool, masked: tuple[str, ...]) -> None:
    masks = {"mask": REAL, "context_mask": REAL_CONTEXT}

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        out, context = module(*inputs, **{name: masks[name] for name in masked})
        return [
            out[REAL] if "mask" in masked else out,
            context[REAL_CONTEXT] if "context_mask" in masked else context,
        ]

    assert_parity(attention(prenorm=prenorm), call, sequences())


def test_bidirectional_of_the_real_size() -> None:
    """8 heads of 64 and the widths of the library's README; there is more of both sides there."""
    module = randomise(
        bidirectional.BidirectionalCrossAttention(dim=512, heads=8, dim_head=64, context_dim=386),
        std=0.03,
    )
    inputs = [
        random_tensor(1, time, dim, dtype=torch.float32, seed=time)
        for time, dim in ((256, 512), (512, 386))
    ]
    assert_parity(module, lambda module, x: module(*x), inputs)


def test_a_context_that_is_all_padding_gives_nothing_where_the_library_gives_its_mean() -> None:
    module, nobody = attention(), torch.zeros(2, 63, dtype=torch.bool)
    x, context = sequences()
    wanted = module.to_out(module.context_to_v(context).mean(dim=1, keepdim=True))
    torch.testing.assert_close(
        module(x, context, context_mask=nobody)[0], wanted.expand(2, 40, 24), rtol=1e-4, atol=1e-4
    )
    got = fused(module)(x, context, context_mask=nobody)[0]
    assert torch.equal(got, module.to_out.bias.expand_as(got))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"return_attn": True}, "attention maps"),
        ({"rel_pos_bias": torch.ones(1, 3, 40, 63)}, "rel_pos_bias"),
    ],
)
def test_what_is_not_known_runs_the_library(options: dict[str, Any], reason: str) -> None:
    module = attention()
    with pytest.warns(OriginalAttentionWarning, match=reason):
        got = fused(module)(*sequences(), **options)
    for ours, wanted in zip(got, module(*sequences(), **options), strict=True):
        assert torch.equal(ours, wanted)


def test_talking_heads_are_left_alone() -> None:
    with pytest.warns(UserWarning, match="talking_heads"):
        replacement = replace_attention(attention(talking_heads=True))
    assert list(replacement.left_alone) == [""]


def test_transformer() -> None:
    torch.manual_seed(0)
    model = bidirectional.BidirectionalCrossAttentionTransformer(
        dim=24, context_dim=20, depth=2, heads=3, dim_head=8
    )
    masks = {"mask": REAL, "context_mask": REAL_CONTEXT}
    wanted = model(*sequences(), **masks)
    assert len(replace_attention(model).replaced) == 2
    got = model(*sequences(), **masks)
    torch.testing.assert_close(got[0][REAL], wanted[0][REAL], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1][REAL_CONTEXT], wanted[1][REAL_CONTEXT], rtol=1e-4, atol=1e-5)


def heads(time: int, shape: tuple[int, ...] = (2, 3), dim: int = 8) -> list[Tensor]:
    return [random_tensor(*shape, time, dim, dtype=torch.float32, seed=seed) for seed in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"look_backward": 2, "look_forward": 0},
        {"look_backward": 0, "look_forward": 2},
        {"dim": 8},
        {"dim": 8, "causal": True, "look_backward": 3},
        {"scale": 0.3},
        {"exact_windowsize": True},
        {"exact_windowsize": True, "dim": 8, "causal": True, "look_backward": 2},
    ],
)
def test_local(options: dict[str, Any]) -> None:
    module = local.LocalAttention(window_size=16, **options)
    assert_parity(module, lambda module, x: [module(*x)], heads(96))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_local_with_padding(causal: bool, exact: bool) -> None:
    module = local.LocalAttention(
        window_size=16, causal=causal, dim=8, autopad=True, exact_windowsize=exact
    )
    mask = torch.arange(90) < torch.tensor([[90], [67]])

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        return [module(*inputs, mask=mask).transpose(1, 2)[mask]]

    assert_parity(module, call, heads(90))


def test_local_transformer() -> None:
    """As the library makes it: its windows slide."""
    model = randomise(
        local.LocalTransformer(
            num_tokens=11,
            dim=24,
            depth=2,
            heads=3,
            dim_head=8,
            local_attn_window_size=8,
            max_seq_len=64,
            causal=True,
        )
    )
    tokens = torch.randint(0, 11, (2, 50))
    wanted = model(tokens)
    assert len(replace_attention(model).replaced) == 2
    torch.testing.assert_close(model(tokens), wanted, rtol=1e-4, atol=1e-5)


def test_local_without_an_axis_of_heads() -> None:
    module = local.LocalAttention(window_size=16)
    mask = torch.arange(96) < torch.tensor([[96], [67]])
    assert_parity(module, lambda module, x: [module(*x)], heads(96, (6,)))

    def call(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        return [module(*inputs, mask=mask).unflatten(0, (2, 3)).transpose(1, 2)[mask]]

    assert_parity(module, call, heads(96, (6,)))


def test_local_positions_stay_exact_in_a_long_sequence() -> None:
    """The last windows of a sequence and the same windows alone."""
    module = fused(local.LocalAttention(window_size=16, causal=True, dim=64))
    long = heads(16_384, (1, 1), dim=64)
    end = [x[:, :, -32:] for x in long]
    torch.testing.assert_close(module(*long)[:, :, -16:], module(*end)[:, :, -16:])


def test_local_does_not_attend_to_padding_of_its_own_as_the_library_does() -> None:
    module = local.LocalAttention(window_size=16, autopad=True)
    inputs = heads(20)
    got = fused(module)(*inputs)
    real = torch.ones(2, 20, dtype=torch.bool)
    torch.testing.assert_close(got, module(*inputs, mask=real))
    difference = (module(*inputs) - got).abs().max()
    assert difference > 0.1, "the library is right now: say so in the docs"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shared_qk": True}, "shared_qk"),
        ({"use_xpos": True, "dim": 8}, "use_xpos"),
    ],
)
def test_local_options_that_are_left_alone(options: dict[str, Any], reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        assert not replace_attention(local.LocalAttention(window_size=16, **options)).replaced


def test_local_calls_that_run_the_library() -> None:
    module = local.LocalAttention(window_size=16)
    bias = torch.randn(3, 16, 48)
    with pytest.warns(OriginalAttentionWarning, match="attn_bias"):
        got = fused(module)(*heads(32), attn_bias=bias)
    assert torch.equal(got, module(*heads(32), attn_bias=bias))
    with (
        pytest.warns(OriginalAttentionWarning, match="multiple"),
        pytest.raises(AssertionError, match="divisible"),
    ):
        fused(module)(*heads(20))
