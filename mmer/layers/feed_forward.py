"""The feed-forward half of a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checks import check_count, check_probability


class FeedForward(nn.Module):
    """Widen, GELU, dropout, narrow, dropout (Vaswani et al. 2017, section 3.3, with GELU).

    State dict: ``widen.weight`` (expansion * features, features), ``widen.bias``,
    ``narrow.weight``, ``narrow.bias``.

    Args:
        features: width of input and output.
        expansion: how many times wider the middle is.
        dropout: probability that an activation is dropped in training.
        bias: whether the projections have biases.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        features: int,
        expansion: int = 2,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("features", features, low=1)
        check_count("expansion", expansion, low=1)
        hidden = expansion * features
        self.widen = nn.Linear(features, hidden, bias=bias, device=device, dtype=dtype)
        self.narrow = nn.Linear(hidden, features, bias=bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(check_probability("dropout", dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., features)."""
        out: Tensor = self.dropout(self.narrow(self.dropout(functional.gelu(self.widen(x)))))
        return out
