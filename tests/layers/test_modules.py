"""What every layer keeps as an ``nn.Module``: state dict, repr, copies, meta device, compile."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmer.layers import (
    BidirectionalCrossAttention,
    ChunkedTemporalAttention,
    FeedForward,
    FusionBlock,
    SharedCrossAttention,
    TemporalConvNet,
)

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "bidirectional": lambda **options: BidirectionalCrossAttention(
        8, 2, dim_a=6, dim_b=4, time_decay=True, max_gap=9.0, **options
    ),
    "shared": lambda **options: SharedCrossAttention(8, 2, dim_a=6, dim_b=4, **options),
    "tied": lambda **options: SharedCrossAttention(8, 2, tie_projections=True, **options),
    "chunked": lambda **options: ChunkedTemporalAttention(8, 2, 3, summaries=True, **options),
    "tcn": lambda **options: TemporalConvNet(8, [4, 4], **options),
    "feed_forward": lambda **options: FeedForward(8, **options),
    "fusion": lambda **options: FusionBlock(
        8, 2, dim_a=6, dim_b=4, attention="shared", time_decay=True, **options
    ),
}

LINEAR = ("weight", "bias")
STATE_DICTS = {
    "bidirectional": {
        "raw_decay": (2,),
        "to_qkv_a.weight": (24, 6),
        "to_qkv_a.bias": (24,),
        "to_qkv_b.weight": (24, 4),
        "to_qkv_b.bias": (24,),
        "to_out_a.weight": (6, 8),
        "to_out_a.bias": (6,),
        "to_out_b.weight": (4, 8),
        "to_out_b.bias": (4,),
    },
    "shared": {
        "to_qk_a.weight": (8, 6),
        "to_qk_a.bias": (8,),
        "to_qk_b.weight": (8, 4),
        "to_qk_b.bias": (8,),
        "to_v_a.weight": (8, 6),
        "to_v_a.bias": (8,),
        "to_v_b.weight": (8, 4),
        "to_v_b.bias": (8,),
        "to_out_a.weight": (6, 8),
        "to_out_a.bias": (6,),
        "to_out_b.weight": (4, 8),
        "to_out_b.bias": (4,),
    },
    "tied": {
        "to_qk.weight": (8, 8),
        "to_qk.bias": (8,),
        "to_v.weight": (8, 8),
        "to_v.bias": (8,),
        "to_out.weight": (8, 8),
        "to_out.bias": (8,),
    },
    "chunked": {
        "to_qkv.weight": (24, 8),
        "to_qkv.bias": (24,),
        "to_out.weight": (8, 8),
        "to_out.bias": (8,),
    },
    "tcn": {
        "blocks.0.convolution_1.weight": (4, 8, 5),
        "blocks.0.convolution_1.bias": (4,),
        "blocks.0.norm_1.weight": (4,),
        "blocks.0.norm_1.bias": (4,),
        "blocks.0.convolution_2.weight": (4, 4, 5),
        "blocks.0.convolution_2.bias": (4,),
        "blocks.0.norm_2.weight": (4,),
        "blocks.0.norm_2.bias": (4,),
        "blocks.0.shortcut.weight": (4, 8),
        "blocks.0.shortcut.bias": (4,),
        "blocks.1.convolution_1.weight": (4, 4, 5),
        "blocks.1.convolution_1.bias": (4,),
        "blocks.1.norm_1.weight": (4,),
        "blocks.1.norm_1.bias": (4,),
        "blocks.1.convolution_2.weight": (4, 4, 5),
        "blocks.1.convolution_2.bias": (4,),
        "blocks.1.norm_2.weight": (4,),
        "blocks.1.norm_2.bias": (4,),
    },
    "feed_forward": {
        "widen.weight": (16, 8),
        "widen.bias": (16,),
        "narrow.weight": (8, 16),
        "narrow.bias": (8,),
    },
}
STATE_DICTS["fusion"] = {
    "attention.raw_decay": (2,),
    **{f"attention.{name}": shape for name, shape in STATE_DICTS["shared"].items()},
    **{
        f"side_{side}.{name}": shape
        for side, width in (("a", 6), ("b", 4))
        for name, shape in {
            "norm.weight": (width,),
            "norm.bias": (width,),
            "gate": (width,),
            "feed_forward_norm.weight": (width,),
            "feed_forward_norm.bias": (width,),
            "feed_forward.widen.weight": (2 * width, width),
            "feed_forward.widen.bias": (2 * width,),
            "feed_forward.narrow.weight": (width, 2 * width),
            "feed_forward.narrow.bias": (width,),
        }.items()
    },
}


def inputs(name: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    if name == "feed_forward":
        return [torch.randn(2, 5, 8)], {}
    if name in ("chunked", "tcn"):
        mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        return [torch.randn(2, 7, 8)], {"mask": mask}
    widths = (8, 8) if name == "tied" else (6, 4)
    sides = [torch.randn(2, 5, widths[0]), torch.randn(2, 7, widths[1])]
    options = {"mask_b": torch.tensor([[True] * 7, [True] * 4 + [False] * 3])}
    if name in ("bidirectional", "fusion"):
        options |= {"times_a": torch.rand(2, 5), "times_b": torch.rand(2, 7)}
    return sides, options


def call(name: str, layer: nn.Module) -> Tensor:
    tensors, options = inputs(name)
    out = layer(*tensors, **options)
    return torch.cat([x.flatten() for x in out]) if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_is_frozen(name: str) -> None:
    state = LAYERS[name]().state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == STATE_DICTS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_repr_shows_the_sizes(name: str) -> None:
    text = repr(LAYERS[name]())
    assert "\n" in text
    wanted = {
        "bidirectional": "8, 2, dim_a=6, dim_b=4, head_dim=4, value_dim=4, scale=0.5, dropout=0, "
        "time_decay=True, max_gap=9",
        "tied": "tie_projections=True",
        "chunked": "chunk_size=3, lookback=1, lookahead=0, causal=False",
        "tcn": "receptive_field=25",
    }
    assert wanted.get(name, "") in text


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_give_the_same_numbers(name: str) -> None:
    layer = LAYERS[name]().eval()
    wanted = call(name, layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(call(name, twin), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_on_the_meta_device_is_filled_by_reset_parameters(name: str) -> None:
    layer = LAYERS[name](device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(3)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert call(name, layer.eval()).isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_dtype_reaches_every_parameter(name: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "tcn"])
def test_without_bias_there_is_none(name: str) -> None:
    layer = LAYERS[name](bias=False)
    assert not [key for key, _ in layer.named_parameters() if key.endswith("bias")]
    assert call(name, layer).isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS[name]().eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(name, compiled), call(name, layer))
    call(name, compiled).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_stays_near_full_precision(name: str) -> None:
    layer = LAYERS[name]().eval()
    wanted = call(name, layer)
    with torch.autocast("cpu", torch.bfloat16):
        got = call(name, layer)
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)
    got.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["bidirectional", "chunked", "fusion"])
def test_an_unknown_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="backend"):
        call(name, LAYERS[name](backend="magic"))
