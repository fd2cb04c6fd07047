"""What each modality goes through on its own: its temporal encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmer.layers import ChunkedTemporalAttention, FeedForward, TemporalConvNet
from mmer.layers.padding import zero_padding

from .config import RecognizerConfig
from .stem import Tokens


class ChunkedBlock(nn.Module):
    """Pre-norm transformer block with chunked temporal attention."""

    def __init__(
        self,
        config: RecognizerConfig,
        *,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embed_dim, device=device, dtype=dtype)
        self.attention = ChunkedTemporalAttention(
            config.embed_dim,
            config.num_heads,
            config.chunk_size,
            config.lookback,
            config.lookahead,
            config.causal,
            summaries=config.summaries,
            max_summaries=config.max_summaries,
            min_wavelength=config.min_wavelength,
            max_wavelength=config.max_wavelength,
            dropout=config.attention_dropout,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.embed_dim, device=device, dtype=dtype)
        self.feed_forward = FeedForward(
            config.embed_dim, config.expansion, config.dropout, device=device, dtype=dtype
        )

    def forward(self, x: Tensor, mask: Tensor, times: Tensor) -> Tensor:
        """Return (batch, time, embed_dim), padded steps 0."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, times=times))
        return zero_padding(x + self.feed_forward(self.feed_forward_norm(x)), mask)


class TemporalEncoder(nn.Module):
    """The encoder that a configuration asks for: a TCN or blocks of chunked attention.

    State dict: ``tcn.*`` or ``blocks.i.*``.
    """

    def __init__(
        self,
        config: RecognizerConfig,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.tcn: TemporalConvNet | None = None
        self.blocks = nn.ModuleList()
        if config.encoder == "tcn" and config.encoder_layers:
            self.tcn = TemporalConvNet(
                config.embed_dim,
                [config.embed_dim] * config.encoder_layers,
                config.kernel_size,
                config.dropout,
                causal=config.causal,
                device=device,
                dtype=dtype,
            )
        elif config.encoder == "chunked_attention":
            for _ in range(config.encoder_layers):
                self.blocks.append(
                    ChunkedBlock(config, backend=backend, device=device, dtype=dtype)
                )

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode the tokens of one modality."""
        x = tokens.values
        if self.tcn is not None:
            x = self.tcn(x, mask=tokens.mask)
        for block in self.blocks:
            x = block(x, tokens.mask, tokens.times)
        return tokens._replace(values=x)
