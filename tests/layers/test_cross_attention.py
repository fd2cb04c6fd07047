"""Both cross-attention layers against plain definitions and other libraries, and their promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmer.layers import BidirectionalCrossAttention, SharedCrossAttention

LAYERS = [BidirectionalCrossAttention, SharedCrossAttention]


def heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def plain_direction(scores: Tensor, value: Tensor) -> Tensor:
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).flatten(2)


def plain_layer(
    layer: BidirectionalCrossAttention | SharedCrossAttention,
    x_a: Tensor,
    x_b: Tensor,
    mask_a: Tensor,
    mask_b: Tensor,
    times_a: Tensor,
    times_b: Tensor,
) -> tuple[Tensor, Tensor]:
    """The layer's definition, written out without its operator."""
    visible = mask_a[:, None, :, None] & mask_b[:, None, None, :]
    gap = (times_a[:, None, :, None] - times_b[:, None, None, :]).abs()
    penalty = torch.zeros(())
    if layer.decay is not None:
        penalty = layer.decay[:, None, None] * gap
    if layer.max_gap is not None:
        visible = visible & (gap <= layer.max_gap)

    def scores(query: Tensor, key: Tensor, penalty: Tensor, visible: Tensor) -> Tensor:
        similarity = layer.scale * query @ key.transpose(-1, -2) - penalty
        return similarity.masked_fill(~visible, -math.inf)

    count = layer.num_heads
    turned_penalty = penalty.transpose(-1, -2) if penalty.dim() else penalty
    if isinstance(layer, BidirectionalCrossAttention):
        sizes = [count * layer.head_dim] * 2 + [count * layer.value_dim]
        q_a, k_a, v_a = (heads(x, count) for x in layer.to_qkv_a(x_a).split(sizes, dim=-1))
        q_b, k_b, v_b = (heads(x, count) for x in layer.to_qkv_b(x_b).split(sizes, dim=-1))
        from_b = scores(q_a, k_b, penalty, visible)
        from_a = scores(q_b, k_a, turned_penalty, visible.transpose(-1, -2))
    else:
        v_a, v_b = heads(layer.to_v_a(x_a), count), heads(layer.to_v_b(x_b), count)
        qk_a, qk_b = heads(layer.to_qk_a(x_a), count), heads(layer.to_qk_b(x_b), count)
        from_b = scores(qk_a, qk_b, penalty, visible)
        from_a = from_b.transpose(-1, -2)
    seeing_a, seeing_b = visible.any(dim=-1)[:, 0], visible.any(dim=-2)[:, 0]
    out_a = layer.to_out_a(plain_direction(from_b, v_b)) * seeing_a[..., None]
    out_b = layer.to_out_b(plain_direction(from_a, v_a)) * seeing_b[..., None]
    return out_a, out_b


def randomise(layer: nn.Module) -> None:
    """Give every parameter, biases too, a value that matters."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("layer_type", LAYERS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time_a=st.integers(1, 9),
    time_b=st.integers(1, 9),
    num_heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    value_dim=st.integers(1, 5),
    time_decay=st.booleans(),
    max_gap=st.none() | st.floats(0.0, 3.0),
    bias=st.booleans(),
)
def test_is_the_plain_definition(
    layer_type: type,
    seed: int,
    time_a: int,
    time_b: int,
    num_heads: int,
    head_dim: int,
    value_dim: int,
    time_decay: bool,
    max_gap: float | None,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    layer = layer_type(
        7,
        num_heads,
        dim_a=4,
        dim_b=6,
        head_dim=head_dim,
        value_dim=value_dim,
        bias=bias,
        time_decay=time_decay,
        max_gap=max_gap,
        dtype=torch.float64,
    )
    randomise(layer)
    inputs = {
        "x_a": torch.randn(3, time_a, 4, dtype=torch.float64),
        "x_b": torch.randn(3, time_b, 6, dtype=torch.float64),
        "mask_a": torch.rand(3, time_a) < 0.7,
        "mask_b": torch.rand(3, time_b) < 0.7,
        "times_a": 4 * torch.rand(3, time_a, dtype=torch.float64),
        "times_b": 4 * torch.rand(3, time_b, dtype=torch.float64),
    }
    ours = layer(inputs["x_a"], inputs["x_b"], **{k: v for k, v in inputs.items() if k[0] != "x"})
    for got, wanted in zip(ours, plain_layer(layer, **inputs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_bidirectional_is_a_pair_of_multihead_attentions() -> None:
    torch.manual_seed(0)
    layer = BidirectionalCrossAttention(12, 3, dim_a=12, dim_b=12)
    randomise(layer)
    x_a, x_b = torch.randn(2, 5, 12), torch.randn(2, 8, 12)
    mask_b = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    peer = nn.MultiheadAttention(12, 3, batch_first=True)
    (q_weight, _, _), (_, k_weight, v_weight) = (
        layer.to_qkv_a.weight.split(12),
        layer.to_qkv_b.weight.split(12),
    )
    (q_bias, _, _), (_, k_bias, v_bias) = (
        layer.to_qkv_a.bias.split(12),
        layer.to_qkv_b.bias.split(12),
    )
    peer.load_state_dict(
        {
            "in_proj_weight": torch.cat((q_weight, k_weight, v_weight)),
            "in_proj_bias": torch.cat((q_bias, k_bias, v_bias)),
            "out_proj.weight": layer.to_out_a.weight,
            "out_proj.bias": layer.to_out_a.bias,
        }
    )
    wanted, _ = peer(x_a, x_b, x_b, key_padding_mask=~mask_b)
    torch.testing.assert_close(layer(x_a, x_b, mask_b=mask_b)[0], wanted)


def test_tied_shared_attention_takes_lightglue_weights() -> None:
    """LightGlue's CrossBlock: one to_qk, to_v, to_out for both sides, both scaled by d^-1/4."""
    torch.manual_seed(0)
    weights = {
        f"{name}.{kind}": torch.randn(*((16, 16) if kind == "weight" else (16,))) * 0.3
        for name in ("to_qk", "to_v", "to_out")
        for kind in ("weight", "bias")
    }
    layer = SharedCrossAttention(16, 4, tie_projections=True)
    layer.load_state_dict(weights)

    def project(name: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x_a, x_b = torch.randn(2, 6, 16), torch.randn(2, 9, 16)
    qk_a, qk_b, v_a, v_b = (
        heads(project(name, x), 4) for name in ("to_qk", "to_v") for x in (x_a, x_b)
    )
    similarity = torch.einsum("bhid,bhjd->bhij", qk_a * 4**-0.25, qk_b * 4**-0.25)
    wanted_a = project("to_out", plain_direction(similarity, v_b))
    wanted_b = project("to_out", plain_direction(similarity.transpose(-1, -2), v_a))
    out_a, out_b = layer(x_a, x_b)
    torch.testing.assert_close(out_a, wanted_a)
    torch.testing.assert_close(out_b, wanted_b)


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_sits_in_padding_does_not_matter(layer_type: type, junk: float) -> None:
    torch.manual_seed(0)
    layer = layer_type(8, 2, dim_a=3, dim_b=5, time_decay=True)
    randomise(layer)
    x_a, x_b = torch.randn(1, 4, 3), torch.randn(1, 6, 5)
    times_a, times_b = torch.rand(1, 4), torch.rand(1, 6)
    alone = layer(x_a, x_b, times_a=times_a, times_b=times_b)

    def stuffed(x: Tensor) -> Tensor:
        """One padded step in front, one in the middle, two behind."""
        hole = torch.full_like(x[:, :1], junk)
        return torch.cat((hole, x[:, :2], hole, x[:, 2:], hole, hole), dim=1).requires_grad_(
            x.dim() == 3
        )

    mask_a, mask_b = (~torch.isnan(stuffed(t * 0).detach() * 0) for t in (times_a, times_b))
    inputs = stuffed(x_a), stuffed(x_b)
    padded = layer(
        *inputs, mask_a=mask_a, mask_b=mask_b, times_a=stuffed(times_a), times_b=stuffed(times_b)
    )
    for got, wanted, mask in zip(padded, alone, (mask_a, mask_b), strict=True):
        torch.testing.assert_close(got[mask][None], wanted)
        assert (got[~mask] == 0).all()
    sum(out.sum() for out in padded).backward()
    for tensor in (*inputs, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("limited", [False, True])
def test_a_missing_side_gives_exactly_zero(layer_type: type, limited: bool) -> None:
    torch.manual_seed(0)
    layer = layer_type(8, 2, max_gap=100.0 if limited else None)
    randomise(layer)
    x_a, x_b = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 6, 8, requires_grad=True)
    times = {"times_a": torch.rand(2, 4), "times_b": torch.rand(2, 6)} if limited else {}
    mask_b = torch.tensor([[True] * 6, [False] * 6])
    out_a, out_b = layer(x_a, x_b, mask_b=mask_b, **times)
    assert (out_a[1] == 0).all()
    assert (out_b[1] == 0).all()
    assert (out_a[0] != 0).any()
    (out_a.square().sum() + out_b.square().sum()).backward()
    for tensor in (x_a, x_b, *layer.parameters()):
        assert tensor.grad.isfinite().all()
    assert (x_a.grad[1] == 0).all()

    out_a, out_b = layer(
        x_a, x_b[:, :0], **{k: v[:, :0] if k == "times_b" else v for k, v in times.items()}
    )
    assert (out_a == 0).all()
    assert out_b.shape == (2, 0, 8)


@pytest.mark.parametrize("layer_type", LAYERS)
def test_steps_without_a_partner_in_reach_take_nothing(layer_type: type) -> None:
    torch.manual_seed(0)
    layer = layer_type(8, 2, max_gap=1.0)
    randomise(layer)
    times_a = torch.tensor([[0.0, 5.0, 9.0]])
    times_b = torch.tensor([[0.5, 9.9]])
    out_a, _ = layer(torch.randn(1, 3, 8), torch.randn(1, 2, 8), times_a=times_a, times_b=times_b)
    assert (out_a[0, 1] == 0).all()
    assert (out_a[0, [0, 2]] != 0).all()


@pytest.mark.parametrize("layer_type", LAYERS)
def test_decay_starts_as_alibi_learns_and_never_turns_negative(layer_type: type) -> None:
    layer = layer_type(8, 4, time_decay=True)
    torch.testing.assert_close(layer.decay, torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]))
    torch.manual_seed(0)
    randomise(layer)
    out_a, _ = layer(
        torch.randn(1, 3, 8),
        torch.randn(1, 4, 8),
        times_a=torch.rand(1, 3),
        times_b=torch.rand(1, 4),
    )
    out_a.sum().backward()
    assert (layer.raw_decay.grad != 0).all()
    nn.init.constant_(layer.raw_decay, -1e4)
    assert (layer.decay >= 0).all()
    assert layer_type(8, 4).decay is None


@pytest.mark.parametrize("layer_type", LAYERS)
def test_one_side_may_have_batch_one(layer_type: type) -> None:
    torch.manual_seed(0)
    layer = layer_type(8, 2)
    x_a, x_b = torch.randn(1, 3, 8), torch.randn(4, 5, 8)
    mask_b = torch.rand(4, 5) < 0.6
    mask_b[2] = False
    for got, wanted in zip(
        layer(x_a, x_b, mask_b=mask_b),
        layer(x_a.expand(4, -1, -1), x_b, mask_b=mask_b),
        strict=True,
    ):
        assert got.shape[0] == 4
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("layer_type", LAYERS)
def test_dropout_acts_in_training_only(layer_type: type) -> None:
    torch.manual_seed(0)
    layer = layer_type(8, 2, dropout=0.5)
    x_a, x_b = torch.randn(2, 6, 8), torch.randn(2, 7, 8)
    assert not torch.equal(layer(x_a, x_b)[0], layer(x_a, x_b)[0])
    layer.eval()
    torch.testing.assert_close(layer(x_a, x_b)[0], layer(x_a, x_b)[0], rtol=0, atol=0)


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"embed_dim": 0}, ValueError, "embed_dim"),
        ({"embed_dim": 8.0}, TypeError, "embed_dim"),
        ({"embed_dim": 9}, ValueError, "embed_dim"),
        ({"num_heads": 0}, ValueError, "num_heads"),
        ({"dim_a": 0}, ValueError, "dim_a"),
        ({"dim_b": True}, TypeError, "dim_b"),
        ({"head_dim": 0}, ValueError, "head_dim"),
        ({"value_dim": 0}, ValueError, "value_dim"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": "0.1"}, TypeError, "dropout"),
        ({"scale": math.inf}, ValueError, "scale"),
        ({"max_gap": -1.0}, ValueError, "max_gap"),
    ],
)
def test_constructor_errors_name_the_argument(
    layer_type: type, arguments: dict, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        layer_type(**{"embed_dim": 8, "num_heads": 2, **arguments})


def test_tied_projections_want_one_width() -> None:
    with pytest.raises(ValueError, match="tie_projections"):
        SharedCrossAttention(8, 2, dim_b=6, tie_projections=True)


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"x_a": [[1.0]]}, TypeError, "x_a"),
        ({"x_a": torch.zeros(2, 3, 8, dtype=torch.int64)}, TypeError, "x_a"),
        ({"x_b": torch.zeros(2, 3, 7)}, ValueError, "x_b"),
        ({"x_b": torch.zeros(3, 8)}, ValueError, "x_b"),
        ({"mask_a": torch.ones(2, 3)}, TypeError, "mask_a"),
        ({"mask_b": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "mask_b"),
        ({"times_a": None}, ValueError, "times_a"),
        ({"times_b": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "times_b"),
        ({"times_b": torch.zeros(2, 3)}, ValueError, "times_b"),
    ],
)
def test_forward_errors_name_the_argument(
    layer_type: type, arguments: dict, error: type[Exception], name: str
) -> None:
    layer = layer_type(8, 2, max_gap=1.0)
    valid = {
        "x_a": torch.zeros(2, 3, 8),
        "x_b": torch.zeros(2, 4, 8),
        "times_a": torch.zeros(2, 3),
        "times_b": torch.zeros(2, 4),
    }
    with pytest.raises(error, match=name):
        layer(**{**valid, **arguments})
