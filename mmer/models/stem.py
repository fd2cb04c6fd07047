"""From the samples of a modality to tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmer.layers.padding import zero_padding


class Tokens(NamedTuple):
    """A modality on its way through the model.

    Attributes:
        values: (batch, time, embed_dim), 0 where padded.
        mask: (batch, time) bool, True = real.
        times: (batch, time) seconds, 0 where padded.
    """

    values: Tensor
    mask: Tensor
    times: Tensor


class PatchEmbedding(nn.Module):
    """Fold ``patch`` samples into one token by one projection.

    Within a patch, a sample that is not real is replaced by the mean of those that are, so that a
    constant signal gives the same token however many samples it lost. The token's time is the mean
    time of its real samples; it is real if one of its samples is.

    State dict: ``projection.weight`` (embed_dim, patch * features), samples in order;
    ``projection.bias``; ``norm.*`` with ``normalize``.

    Args:
        features: width of a sample.
        embed_dim: width of a token.
        patch: samples in a token.
        normalize: LayerNorm each sample first.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        features: int,
        embed_dim: int,
        *,
        patch: int = 1,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(features, device=device, dtype=dtype) if normalize else None
        self.projection = nn.Linear(patch * features, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor, times: Tensor) -> Tokens:
        """Embed samples.

        Args:
            x: (batch, time, features); anything where padded.
            mask: (batch, time) bool, True = real.
            times: (batch, time) seconds; anything where padded.

        Returns:
            ceil(time / patch) tokens.
        """
        x, times = zero_padding(x, mask), zero_padding(times, mask)
        if self.norm is not None:
            x = self.norm(x)
        if self.patch > 1:
            missing = -x.shape[1] % self.patch
            real = pad(mask, (0, missing)).unflatten(1, (-1, self.patch))
            samples = pad(zero_padding(x, mask), (0, 0, 0, missing)).unflatten(1, (-1, self.patch))
            count = real.sum(dim=2, keepdim=True).clamp(min=1)
            mean = samples.sum(dim=2, keepdim=True) / count[..., None]
            x = torch.where(real[..., None], samples, mean).flatten(2)
            times = (
                pad(times, (0, missing)).unflatten(1, (-1, self.patch)).sum(dim=2) / count[..., 0]
            )
            mask = real.any(dim=2)
        return Tokens(zero_padding(self.projection(x), mask), mask, times)

    def extra_repr(self) -> str:
        """Samples in a token."""
        return f"patch={self.patch}"
