"""What chosen steps look at, from a cross-attention layer, and a picture of it.

The fused operators never hold an attention map. Here the rows that someone wants to see are
computed, and no others: (rows, time) numbers a head, whatever the other side's length is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmer.kernels.arguments import check_pair
from mmer.kernels.attend import compute_dtype, masked_softmax
from mmer.kernels.pairs import pair_scores, pair_up
from mmer.layers.checks import check_mask, check_sequence
from mmer.layers.cross_attention import CrossAttention
from mmer.layers.padding import zero_padding
from mmer.training.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[int] | Tensor | None


class AttentionMaps(NamedTuple):
    """The weights of the rows that were asked for, None for a direction without any.

    Attributes:
        a_to_b: (batch, heads, rows_a, time_b): how much each of those steps of A takes from each
            step of B. A row sums to 1, or to 0 where the step is padded or sees nothing.
        b_to_a: (batch, heads, rows_b, time_a).
    """

    a_to_b: Tensor | None
    b_to_a: Tensor | None


@torch.no_grad()
def attention_maps(
    layer: CrossAttention,
    x_a: Tensor,
    x_b: Tensor,
    *,
    rows_a: Rows = None,
    rows_b: Rows = None,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    times_a: Tensor | None = None,
    times_b: Tensor | None = None,
) -> AttentionMaps:
    """Return the attention weights of chosen steps of a cross-attention layer.

    They are the weights that the layer uses in evaluation mode, without dropout.

    Args:
        layer: :class:`~mmer.layers.BidirectionalCrossAttention` or
            :class:`~mmer.layers.SharedCrossAttention`.
        x_a: (batch, time_a, dim_a), as the layer takes it; what follows, too.
        x_b: (batch, time_b, dim_b).
        rows_a: steps of A whose attention to B is wanted; negative ones count from the end.
        rows_b: steps of B whose attention to A is wanted.
        mask_a: (batch, time_a) bool, True = real.
        mask_b: (batch, time_b) bool.
        times_a: (batch, time_a) seconds; needed where the layer needs them.
        times_b: (batch, time_b) seconds.

    Returns:
        The weights, in the layer's accumulation dtype (float32, float64 for float64).

    Raises:
        TypeError: ``layer`` is no cross-attention layer, rows are no integers, or another argument
            has the wrong type.
        ValueError: no rows are given, or rows outside of the sequence, or another argument has the
            wrong shape.
    """
    if not isinstance(layer, CrossAttention):
        raise TypeError(f"layer must be a cross-attention layer, got {type(layer).__name__}")
    if rows_a is None and rows_b is None:
        raise ValueError("rows_a or rows_b must be given, got None twice")
    check_sequence("x_a", x_a, layer.dim_a)
    check_sequence("x_b", x_b, layer.dim_b)
    check_mask("mask_a", mask_a, x_a)
    check_mask("mask_b", mask_b, x_b)
    rows_a, rows_b = _check_rows("rows_a", rows_a, x_a), _check_rows("rows_b", rows_b, x_b)
    if layer.decay is None and layer.max_gap is None:
        times_a = times_b = None
    (query_a, key_b), (query_b, key_a) = layer.queries_and_keys(
        zero_padding(x_a, mask_a), zero_padding(x_b, mask_b)
    )

    def direction(
        rows: Tensor | None,
        query: Tensor,
        key: Tensor,
        masks: tuple[Tensor | None, Tensor | None],
        times: tuple[Tensor | None, Tensor | None],
    ) -> Tensor | None:
        if rows is None:
            return None
        rows = rows.to(query.device)
        query = query[:, :, rows]
        options = check_pair(
            {"query": query},
            {"key": key},
            mask_a=None if masks[0] is None else masks[0][:, rows],
            mask_b=masks[1],
            times_a=None if times[0] is None else times[0][:, rows],
            times_b=times[1],
            decay=layer.decay,
            max_gap=layer.max_gap,
            scale=layer.scale,
        )
        wide = compute_dtype(query.dtype)
        pairs = pair_up(options)
        # (batch, heads, rows, time)
        scores = pair_scores(query.to(wide), key.to(wide), pairs, options)
        weights, _ = masked_softmax(scores, pairs.visible)
        return weights

    return AttentionMaps(
        direction(rows_a, query_a, key_b, (mask_a, mask_b), (times_a, times_b)),
        direction(rows_b, query_b, key_a, (mask_b, mask_a), (times_b, times_a)),
    )


def plot_attention(
    weights: Tensor,
    path: str | os.PathLike[str],
    *,
    times: Tensor | None = None,
    row_names: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """Draw what each row looks at: one strip a row, dark where its attention is.

    Args:
        weights: (rows, time): one recording's, of one head or the mean over heads, say
            ``maps.a_to_b[0].mean(dim=0)``.
        path: of the picture; its suffix gives the format.
        times: (time,) seconds of what is looked at, increasing; its steps are numbered by default.
        row_names: what to write beside each row.
        title: what to write above.

    Returns:
        The path.

    Raises:
        ValueError: an argument has another shape, or there is nothing to draw.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if weights.dim() != 2 or not weights.numel():
        raise ValueError(f"weights must have shape (rows, time), got {tuple(weights.shape)}")
    rows, time = weights.shape
    if times is not None and times.shape != (time,):
        raise ValueError(f"times must have shape ({time},), got {tuple(times.shape)}")
    if row_names is not None and len(row_names) != rows:
        raise ValueError(f"row_names must be {rows} names, got {len(row_names)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.3 + 0.34 * min(rows, 24)), dpi=150, layout="constrained")
    axis: Axes = figure.subplots()
    # Every row on its own scale: an even row and a sharp one are both to be seen.
    shown = weights.detach().float().cpu()
    shown = shown / shown.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    steps = torch.arange(time) if times is None else times.detach().double().cpu()
    axis.pcolormesh(
        _edges(steps.double()).numpy(),
        torch.arange(rows + 1).numpy(),
        shown.numpy(),
        cmap="Greys",
        vmin=0.0,
        vmax=1.0,
        rasterized=True,
    )
    axis.invert_yaxis()
    if row_names is not None:
        axis.set_yticks([row + 0.5 for row in range(rows)], list(row_names))
    else:
        axis.set_yticks([])
    axis.set_xlabel("step" if times is None else "seconds")
    axis.set_title(title, loc="left")
    with replace_file(path) as temporary:
        figure.savefig(temporary)
    return Path(path)


def _check_rows(name: str, rows: Rows, x: Tensor) -> Tensor | None:
    if rows is None:
        return None
    chosen = torch.as_tensor(rows)
    if chosen.dim() != 1 or chosen.dtype == torch.bool or chosen.is_floating_point():
        raise TypeError(f"{name} must be a sequence of integers, got {rows!r}")
    time = x.shape[1]
    outside = chosen[(chosen < -time) | (chosen >= time)]
    if outside.numel():
        raise ValueError(f"{name} must be within {time} steps, got {outside.tolist()}")
    return chosen % time


def _edges(centres: Tensor) -> Tensor:
    """Return the borders between steps, and those before the first and behind the last."""
    if len(centres) == 1:
        return torch.stack((centres[0] - 0.5, centres[0] + 0.5))
    between = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[:1] - between[:1], 2 * centres[-1:] - between[-1:]
    return torch.cat((first, between, last))
