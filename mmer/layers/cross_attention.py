"""Two sequences of different widths, lengths and rates that attend to each other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmer.kernels import bidirectional_cross_attention, shared_cross_attention

from .checks import (
    check_count,
    check_head_dim,
    check_mask,
    check_number,
    check_probability,
    check_scale,
    check_sequence,
    check_times,
)
from .padding import zero_padding


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, time, heads * dim) -> (batch, heads, time, dim), without a copy."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, time, dim) -> (batch, time, heads * dim)."""
    return x.transpose(1, 2).flatten(2)


def reset_projection(projection: nn.Linear, parts: tuple[int, ...] | None = None) -> None:
    """Glorot-uniform weights for each packed part on its own, biases 0."""
    for weight in projection.weight.split(parts or projection.out_features):
        nn.init.xavier_uniform_(weight)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


class CrossAttention(nn.Module):
    """What both cross-attention layers have in common: widths, options, visibility."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dim_a: int | None,
        dim_b: int | None,
        head_dim: int | None,
        value_dim: int | None,
        dropout: float,
        scale: float | None,
        time_decay: bool,
        max_gap: float | None,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dim_a = embed_dim if dim_a is None else dim_a
        self.dim_b = embed_dim if dim_b is None else dim_b
        self.head_dim = check_head_dim(embed_dim, num_heads, head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        for name in ("dim_a", "dim_b", "value_dim"):
            check_count(name, getattr(self, name), low=1)
        self.dropout = check_probability("dropout", dropout)
        self.scale = check_scale(scale, self.head_dim)
        self.max_gap = None if max_gap is None else check_number("max_gap", max_gap, low=0.0)
        self.backend = backend
        if time_decay:
            self.raw_decay = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        else:
            self.register_parameter("raw_decay", None)

    @property
    def decay(self) -> Tensor | None:
        """Slopes of the time decay, (heads,) per second; None without ``time_decay``."""
        return None if self.raw_decay is None else functional.softplus(self.raw_decay)

    def reset_parameters(self) -> None:
        """Draw the weights anew; slopes start at ``2^(-8 (h + 1) / heads)``, as in ALiBi."""
        if self.raw_decay is not None:
            slopes = [2.0 ** (-8.0 * (h + 1) / self.num_heads) for h in range(self.num_heads)]
            # The inverse of softplus.
            values = [math.log(math.expm1(slope)) for slope in slopes]
            with torch.no_grad():
                self.raw_decay.copy_(self.raw_decay.new_tensor(values))

    def forward(
        self,
        x_a: Tensor,
        x_b: Tensor,
        *,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
        times_a: Tensor | None = None,
        times_b: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let the two sequences attend to each other.

        Args:
            x_a: (batch, time_a, dim_a); one side may have batch 1.
            x_b: (batch, time_b, dim_b).
            mask_a: (batch, time_a) bool, True = real; None means that every step is real.
            mask_b: (batch, time_b) bool.
            times_a: (batch, time_a) seconds; needed with ``time_decay`` or ``max_gap``, otherwise
                not read.
            times_b: (batch, time_b) seconds.

        Returns:
            What A takes from B, (batch, time_a, dim_a), and what B takes from A, (batch, time_b,
            dim_b). A step that is padded, or sees no step of the other side, takes exactly 0,
            whatever the biases are.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape, or times are missing.
        """
        check_sequence("x_a", x_a, self.dim_a)
        check_sequence("x_b", x_b, self.dim_b)
        check_mask("mask_a", mask_a, x_a)
        check_mask("mask_b", mask_b, x_b)
        options: dict[str, Any] = {
            "mask_a": mask_a,
            "mask_b": mask_b,
            "scale": self.scale,
            "dropout_p": self.dropout if self.training else 0.0,
            "backend": self.backend,
        }
        if self.raw_decay is not None or self.max_gap is not None:
            for name, times, x in (("times_a", times_a, x_a), ("times_b", times_b, x_b)):
                if times is None:
                    raise ValueError(f"{name} must be given with time_decay or max_gap, got None")
                check_times(name, times, x)
            options.update(times_a=times_a, times_b=times_b, decay=self.decay, max_gap=self.max_gap)
        if self.max_gap is not None:
            options["return_lse"] = True
        results = self._attend(zero_padding(x_a, mask_a), zero_padding(x_b, mask_b), options)
        lse_a, lse_b = results[2:] if self.max_gap is not None else (None, None)
        out_a, out_b = self._project_out(merge_heads(results[0]), merge_heads(results[1]))
        return (
            zero_padding(out_a, _seeing(out_a, x_b, mask_a, mask_b, lse_a)),
            zero_padding(out_b, _seeing(out_b, x_a, mask_b, mask_a, lse_b)),
        )

    def _attend(self, x_a: Tensor, x_b: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        """Project both sides and call the operator."""
        raise NotImplementedError

    def _project_out(self, out_a: Tensor, out_b: Tensor) -> tuple[Tensor, Tensor]:
        """Bring (batch, time, heads * value_dim) of both sides to ``dim_a`` and ``dim_b``."""
        raise NotImplementedError

    def queries_and_keys(
        self, x_a: Tensor, x_b: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return what is compared: (query_a, key_b) where A looks at B, (query_b, key_a) back.

        Args:
            x_a: (batch, time_a, dim_a).
            x_b: (batch, time_b, dim_b).

        Returns:
            Tensors of (batch, heads, time, head_dim); their products are not scaled yet.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes and options, as ``print(layer)`` shows them."""
        parts = [
            f"{self.embed_dim}, {self.num_heads}, dim_a={self.dim_a}, dim_b={self.dim_b}",
            f"head_dim={self.head_dim}, value_dim={self.value_dim}, scale={self.scale:.6g}",
            f"dropout={self.dropout:g}",
        ]
        if self.raw_decay is not None:
            parts.append("time_decay=True")
        if self.max_gap is not None:
            parts.append(f"max_gap={self.max_gap:g}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)


def _seeing(
    out: Tensor,
    partner: Tensor,
    mask: Tensor | None,
    partner_mask: Tensor | None,
    lse: Tensor | None,
) -> Tensor | None:
    """Which steps of ``out`` are real and see a step of the partner; None for all."""
    if lse is not None:
        return lse[:, 0] > -math.inf
    if partner.shape[1] == 0:
        return torch.zeros(out.shape[:2], dtype=torch.bool, device=out.device)
    if partner_mask is None:
        return mask
    partner_present = partner_mask.any(dim=1, keepdim=True)
    if mask is None:
        return partner_present.expand(out.shape[:2])
    return mask & partner_present


class BidirectionalCrossAttention(CrossAttention):
    """Cross-attention with projections of its own for each direction (arXiv 2603.11971).

    ``out_a = softmax(scale * q_a k_b^T) v_b`` and ``out_b = softmax(scale * q_b k_a^T) v_a`` in one
    operator, where q, k, v of a side are projections of that side. It stands in for a pair of
    ``nn.MultiheadAttention``.

    State dict: ``to_qkv_a.weight`` (heads * (2 head_dim + value_dim), dim_a), rows in the order q,
    k, v, each (heads, dim); ``to_qkv_a.bias``; ``to_out_a.weight`` (dim_a, heads * value_dim);
    ``to_out_a.bias``; the same with ``_b``; ``raw_decay`` (heads,) with ``time_decay``.

    Args:
        embed_dim: total width of the heads.
        num_heads: number of heads.
        dim_a: features of side A; ``embed_dim`` by default.
        dim_b: features of side B; ``embed_dim`` by default.
        head_dim: width of queries and keys of a head; ``embed_dim / num_heads`` by default.
        value_dim: width of values of a head; ``head_dim`` by default.
        bias: whether the projections have biases.
        dropout: probability that an attention weight is dropped in training.
        scale: factor on the similarities; ``head_dim ** -0.5`` by default.
        time_decay: subtract ``decay_h * |t_a - t_b|`` from the similarities, with a learnable slope
            per head that softplus keeps from being negative (see ``decay``).
        max_gap: seconds; pairs further apart do not see each other. None for no limit.
        backend: which implementation to use; see ``mmer.kernels.available_backends``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> layer = BidirectionalCrossAttention(64, 4, dim_a=512, dim_b=768)
        >>> video, audio = torch.randn(2, 300, 512), torch.randn(2, 1500, 768)
        >>> from_audio, from_video = layer(video, audio)
        >>> from_audio.shape, from_video.shape
        (torch.Size([2, 300, 512]), torch.Size([2, 1500, 768]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dim_a: int | None = None,
        dim_b: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        time_decay: bool = False,
        max_gap: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dim_a=dim_a,
            dim_b=dim_b,
            head_dim=head_dim,
            value_dim=value_dim,
            dropout=dropout,
            scale=scale,
            time_decay=time_decay,
            max_gap=max_gap,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        key_width, value_width = num_heads * self.head_dim, num_heads * self.value_dim
        self._parts = (key_width, key_width, value_width)

        def linear(width_in: int, width_out: int) -> nn.Linear:
            return nn.Linear(width_in, width_out, bias=bias, device=device, dtype=dtype)

        self.to_qkv_a = linear(self.dim_a, sum(self._parts))
        self.to_qkv_b = linear(self.dim_b, sum(self._parts))
        self.to_out_a = linear(value_width, self.dim_a)
        self.to_out_b = linear(value_width, self.dim_b)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: Glorot-uniform, biases 0, slopes as in ALiBi."""
        super().reset_parameters()
        for projection in (self.to_qkv_a, self.to_qkv_b):
            reset_projection(projection, self._parts)
        for projection in (self.to_out_a, self.to_out_b):
            reset_projection(projection)

    def _attend(self, x_a: Tensor, x_b: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        q_a, k_a, v_a = self._project(self.to_qkv_a(x_a))
        q_b, k_b, v_b = self._project(self.to_qkv_b(x_b))
        results: tuple[Tensor, ...] = bidirectional_cross_attention(
            q_a, k_a, v_a, q_b, k_b, v_b, **options
        )
        return results

    def queries_and_keys(
        self, x_a: Tensor, x_b: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (query_a, key_b) and (query_b, key_a), (batch, heads, time, head_dim) each."""
        q_a, k_a, _ = self._project(self.to_qkv_a(x_a))
        q_b, k_b, _ = self._project(self.to_qkv_b(x_b))
        return (q_a, k_b), (q_b, k_a)

    def _project(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = packed.split(self._parts, dim=-1)
        heads = self.num_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def _project_out(self, out_a: Tensor, out_b: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_out_a(out_a), self.to_out_b(out_b)


class SharedCrossAttention(CrossAttention):
    """Cross-attention whose directions share one similarity (LightGlue, Lindenberger et al. 2023).

    ``S = scale * qk_a qk_b^T``, ``out_a = softmax_over_b(S) v_b``, ``out_b = softmax_over_a(S)^T
    v_a``. It stands in for LightGlue's ``CrossBlock`` attention (``tie_projections=True``) and for
    the ``BiMultiHeadAttention`` of GLIP and GroundingDINO (``dim_a`` of the image, ``dim_b`` of the
    text).

    State dict: ``to_qk_a.weight`` (heads * head_dim, dim_a), ``to_v_a.weight`` (heads * value_dim,
    dim_a), ``to_out_a.weight`` (dim_a, heads * value_dim), their ``.bias``, the same with ``_b``;
    with ``tie_projections`` ``to_qk``, ``to_v`` and ``to_out`` instead, LightGlue's own names, so
    that its weights load as they are; ``raw_decay`` (heads,) with ``time_decay``.

    Args:
        embed_dim: total width of the heads.
        num_heads: number of heads.
        dim_a: features of side A; ``embed_dim`` by default.
        dim_b: features of side B; ``embed_dim`` by default.
        head_dim: width of a head's similarity; ``embed_dim / num_heads`` by default.
        value_dim: width of values of a head; ``head_dim`` by default.
        tie_projections: both sides use the same projections, as in LightGlue; wants ``dim_a ==
            dim_b``.
        bias: whether the projections have biases.
        dropout: probability that an attention weight is dropped in training.
        scale: factor on the similarity; ``head_dim ** -0.5`` by default.
        time_decay: subtract ``decay_h * |t_a - t_b|`` from the similarity, with a learnable slope
            per head that softplus keeps from being negative (see ``decay``).
        max_gap: seconds; pairs further apart do not see each other. None for no limit.
        backend: which implementation to use; see ``mmer.kernels.available_backends``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dim_a: int | None = None,
        dim_b: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        tie_projections: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        time_decay: bool = False,
        max_gap: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dim_a=dim_a,
            dim_b=dim_b,
            head_dim=head_dim,
            value_dim=value_dim,
            dropout=dropout,
            scale=scale,
            time_decay=time_decay,
            max_gap=max_gap,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        if tie_projections and self.dim_a != self.dim_b:
            raise ValueError(
                f"tie_projections wants dim_a == dim_b, got dim_a={self.dim_a}, dim_b={self.dim_b}"
            )
        self.tie_projections = tie_projections
        key_width, value_width = num_heads * self.head_dim, num_heads * self.value_dim

        def linear(width_in: int, width_out: int) -> nn.Linear:
            return nn.Linear(width_in, width_out, bias=bias, device=device, dtype=dtype)

        if tie_projections:
            self.to_qk = linear(self.dim_a, key_width)
            self.to_v = linear(self.dim_a, value_width)
            self.to_out = linear(value_width, self.dim_a)
        else:
            self.to_qk_a = linear(self.dim_a, key_width)
            self.to_qk_b = linear(self.dim_b, key_width)
            self.to_v_a = linear(self.dim_a, value_width)
            self.to_v_b = linear(self.dim_b, value_width)
            self.to_out_a = linear(value_width, self.dim_a)
            self.to_out_b = linear(value_width, self.dim_b)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: Glorot-uniform, biases 0, slopes as in ALiBi."""
        super().reset_parameters()
        for projection in self.children():
            if isinstance(projection, nn.Linear):
                reset_projection(projection)

    def _attend(self, x_a: Tensor, x_b: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        (qk_a, qk_b), _ = self.queries_and_keys(x_a, x_b)
        tied = self.tie_projections
        v_a = split_heads(self.to_v(x_a) if tied else self.to_v_a(x_a), self.num_heads)
        v_b = split_heads(self.to_v(x_b) if tied else self.to_v_b(x_b), self.num_heads)
        results: tuple[Tensor, ...] = shared_cross_attention(qk_a, qk_b, v_a, v_b, **options)
        return results

    def queries_and_keys(
        self, x_a: Tensor, x_b: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (query_a, key_b) and (query_b, key_a), which are the same two tensors here."""
        tied = self.tie_projections
        qk_a = split_heads(self.to_qk(x_a) if tied else self.to_qk_a(x_a), self.num_heads)
        qk_b = split_heads(self.to_qk(x_b) if tied else self.to_qk_b(x_b), self.num_heads)
        return (qk_a, qk_b), (qk_b, qk_a)

    def _project_out(self, out_a: Tensor, out_b: Tensor) -> tuple[Tensor, Tensor]:
        if self.tie_projections:
            return self.to_out(out_a), self.to_out(out_b)
        return self.to_out_a(out_a), self.to_out_b(out_b)

    def extra_repr(self) -> str:
        """Sizes and options, as ``print(layer)`` shows them."""
        tied = ", tie_projections=True" if self.tie_projections else ""
        return super().extra_repr() + tied
