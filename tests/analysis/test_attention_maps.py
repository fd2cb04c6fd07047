"""Attention maps of chosen rows: the weights that a layer uses, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmer.analysis.attention_maps import attention_maps, plot_attention
from mmer.layers import BidirectionalCrossAttention, SharedCrossAttention

LAYERS = [
    BidirectionalCrossAttention,
    SharedCrossAttention,
    lambda *arguments, **options: SharedCrossAttention(*arguments, tie_projections=True, **options),
]


def inputs(time_a: int = 9, time_b: int = 13) -> tuple[list[Tensor], dict[str, Tensor]]:
    options = {
        "mask_a": torch.arange(time_a) < torch.tensor([[time_a], [time_a - 4], [0]]),
        "mask_b": torch.arange(time_b) < torch.tensor([[time_b - 5], [time_b], [time_b]]),
        "times_a": torch.rand(3, time_a) * 4,
        "times_b": torch.rand(3, time_b) * 4,
    }
    return [torch.randn(3, time_a, 8), torch.randn(3, time_b, 8)], options


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("options", [{}, {"time_decay": True}, {"max_gap": 1.0}])
def test_values_averaged_by_the_map_are_the_layers_output(
    make: Any, options: dict[str, Any]
) -> None:
    """With identity projections of values and outputs, out = weights @ x."""
    layer = make(8, 2, **options)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if "to_qkv" in name and "weight" in name:
                weight[16:] = torch.eye(8)
            elif ("to_v" in name and "weight" in name) or ("to_out" in name and "weight" in name):
                weight.copy_(torch.eye(8))
    sides, given = inputs()
    rows_a, rows_b = [0, 3, -1], torch.tensor([2, 12])
    maps = attention_maps(layer, *sides, rows_a=rows_a, rows_b=rows_b, **given)
    out_a, out_b = layer(*sides, **given)
    for weights, partner, out, rows in (
        (maps.a_to_b, sides[1], out_a, rows_a),
        (maps.b_to_a, sides[0], out_b, rows_b),
    ):
        assert weights.shape == (3, 2, len(rows), partner.shape[1])
        values = partner.unflatten(-1, (2, 4)).transpose(1, 2)
        averaged = (weights @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(averaged, out[:, rows])
        sums = weights.sum(dim=-1)
        assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()
        assert (weights[2] == 0).all()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operator made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def test_memory_is_that_of_the_chosen_rows() -> None:
    layer = BidirectionalCrossAttention(8, 1, max_gap=1.0)
    sides = [torch.randn(1, 3000, 8), torch.randn(1, 2000, 8)]
    times = {"times_a": torch.rand(1, 3000), "times_b": torch.rand(1, 2000)}
    with Largest() as largest:
        maps = attention_maps(layer, *sides, rows_a=[5, 2999], rows_b=[7], **times)
    assert maps.a_to_b.shape == (1, 1, 2, 2000)
    # The packed projections of the inputs are the largest there is: 24 numbers a step.
    assert largest.size == 3000 * 24


def test_one_direction_and_what_sits_in_padding() -> None:
    layer = SharedCrossAttention(8, 2)
    (x_a, x_b), given = inputs()
    masks = {name: given[name] for name in ("mask_a", "mask_b")}
    wanted = attention_maps(layer, x_a, x_b, rows_b=[1], **masks)
    assert wanted.a_to_b is None
    x_a[~given["mask_a"]], x_b[~given["mask_b"]] = torch.nan, torch.inf
    got = attention_maps(layer, x_a, x_b, rows_b=[1], **masks)
    assert torch.equal(got.b_to_a, wanted.b_to_a)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "rows_a or rows_b"),
        ({"rows_a": [9]}, ValueError, "rows_a"),
        ({"rows_b": [-14]}, ValueError, "rows_b"),
        ({"rows_a": [0.5]}, TypeError, "rows_a"),
        ({"rows_a": 3}, TypeError, "rows_a"),
        ({"rows_a": [0], "mask_b": torch.ones(3, 13)}, TypeError, "mask"),
    ],
)
def test_errors_name_the_argument(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    sides, _ = inputs()
    with pytest.raises(error, match=message):
        attention_maps(SharedCrossAttention(8, 2), *sides, **options)


def test_layers_that_have_no_two_sides_are_refused() -> None:
    with pytest.raises(TypeError, match="layer"):
        attention_maps(nn.Linear(2, 2), *inputs()[0], rows_a=[0])


def test_picture(tmp_path: Path) -> None:
    weights = torch.rand(3, 20).softmax(dim=-1)
    path = plot_attention(
        weights,
        tmp_path / "map.png",
        times=torch.linspace(0, 5, 20),
        row_names=["smile", "frown", "nod"],
        title="video looks at audio",
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot_attention(torch.ones(1, 1), tmp_path / "one.svg").read_text().count("<svg")
    assert len(list(tmp_path.iterdir())) == 2
    for options in ({"times": torch.ones(3)}, {"row_names": ["one"]}):
        with pytest.raises(ValueError, match=next(iter(options))):
            plot_attention(weights, tmp_path / "bad.png", **options)
    with pytest.raises(ValueError, match="weights"):
        plot_attention(torch.ones(2, 0), tmp_path / "bad.png")
