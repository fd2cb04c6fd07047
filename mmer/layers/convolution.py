"""Residual dilated convolutions over time that padding cannot leak into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checks import check_count, check_mask, check_probability, check_sequence
from .padding import zero_padding


class TemporalConvolution(nn.Module):
    """Convolution over time, (batch, time, features) to the same time, causal or centred.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        kernel_size: taps; odd unless causal.
        dilation: steps between two taps.
        causal: tap only the present and the past.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.causal = causal
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, kernel_size, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: He-normal (He et al. 2015), biases 0."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve; padded steps count as 0."""
        reach = self.dilation * (self.weight.shape[-1] - 1)
        after = 0 if self.causal else reach // 2
        padded = functional.pad(zero_padding(x, mask), (0, 0, reach - after, after))
        out = functional.conv1d(
            padded.transpose(1, 2), self.weight, self.bias, dilation=self.dilation
        )
        return out.transpose(1, 2)

    def extra_repr(self) -> str:
        """Sizes and options, as ``print(layer)`` shows them."""
        out_features, in_features, kernel_size = self.weight.shape
        return (
            f"{in_features}, {out_features}, kernel_size={kernel_size}, dilation={self.dilation}, "
            f"causal={self.causal}"
        )


class ResidualConvolution(nn.Module):
    """Residual block: twice convolution, LayerNorm, rectifier, dropout (Bai et al. 2018, fig. 1).

    Dropout is spatial, as there: a channel is dropped for the whole sequence.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        dilation: int,
        causal: bool,
        dropout: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def convolution(width: int) -> TemporalConvolution:
            return TemporalConvolution(
                width,
                out_features,
                kernel_size,
                dilation=dilation,
                causal=causal,
                device=device,
                dtype=dtype,
            )

        self.convolution_1 = convolution(in_features)
        self.norm_1 = nn.LayerNorm(out_features, device=device, dtype=dtype)
        self.convolution_2 = convolution(out_features)
        self.norm_2 = nn.LayerNorm(out_features, device=device, dtype=dtype)
        self.dropout = nn.Dropout1d(dropout)
        self.shortcut = (
            nn.Identity()
            if in_features == out_features
            else nn.Linear(in_features, out_features, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, time, out_features); padded steps hold anything."""
        hidden = self._drop(functional.relu(self.norm_1(self.convolution_1(x, mask))))
        hidden = self._drop(functional.relu(self.norm_2(self.convolution_2(hidden, mask))))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + hidden

    def _drop(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(x.transpose(1, 2))
        return dropped.transpose(1, 2)


class TemporalConvNet(nn.Module):
    """Temporal convolutional network: residual blocks of growing dilation.

    Bai et al., An Empirical Evaluation of Generic Convolutional and Recurrent Networks (2018), with
    LayerNorm in place of weight normalisation, so that neither padding nor the other items of a
    batch have any influence: padded steps count as 0 before every convolution, like the steps
    beyond either end, and a padded batch gives what each recording gives alone.

    State dict, for block i: ``blocks.i.convolution_1.weight`` (channels[i], width before,
    kernel_size), ``.bias``, ``blocks.i.norm_1.weight``, ``.bias``, the same with ``_2``, and
    ``blocks.i.shortcut.weight``, ``.bias`` where the width changes.

    Args:
        in_features: features of the input.
        channels: output width of each block.
        kernel_size: taps of each convolution; odd unless causal.
        dropout: probability that a channel is dropped in training, for the whole sequence.
        causal: see the present and the past only; otherwise as far ahead as back.
        dilation_base: dilation of block i is ``dilation_base ** i``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_features: int,
        channels: Sequence[int],
        kernel_size: int = 5,
        dropout: float = 0.1,
        *,
        causal: bool = False,
        dilation_base: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("in_features", in_features, low=1)
        check_count("kernel_size", kernel_size, low=1)
        check_count("dilation_base", dilation_base, low=1)
        check_probability("dropout", dropout)
        if not channels:
            raise ValueError("channels must name the width of at least one block, got none")
        for position, width in enumerate(channels):
            check_count(f"channels[{position}]", width, low=1)
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd unless causal, got {kernel_size}")
        self.in_features = in_features
        self.out_features = channels[-1]
        self.blocks = nn.ModuleList(
            ResidualConvolution(
                width_in,
                width_out,
                kernel_size,
                dilation=dilation_base**position,
                causal=causal,
                dropout=dropout,
                device=device,
                dtype=dtype,
            )
            for position, (width_in, width_out) in enumerate(
                zip((in_features, *channels), channels, strict=False)
            )
        )
        reach = 2 * (kernel_size - 1) * sum(dilation_base**i for i in range(len(channels)))
        self.receptive_field = 1 + reach

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Encode a sequence.

        Args:
            x: (batch, time, in_features).
            mask: (batch, time) bool, True = real; None means that every step is real.

        Returns:
            (batch, time, channels[-1]); padded steps are 0.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape.
        """
        check_sequence("x", x, self.in_features)
        check_mask("mask", mask, x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, self.out_features)
        x = zero_padding(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return zero_padding(x, mask)

    def extra_repr(self) -> str:
        """The steps that one output depends on."""
        return f"receptive_field={self.receptive_field}"
