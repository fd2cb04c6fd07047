"""Chunked temporal self-attention with rotary positions in seconds, recorded or live."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmer.kernels import (
    ChunkedAttentionState,
    chunk_summaries,
    chunked_attention,
    chunked_attention_step,
)

from .checks import (
    check_count,
    check_flag,
    check_head_dim,
    check_mask,
    check_number,
    check_probability,
    check_scale,
    check_sequence,
    check_times,
)
from .cross_attention import merge_heads, reset_projection, split_heads
from .padding import zero_padding
from .rotary import rotary_angles, rotate


class ChunkedTemporalState:
    """What a :class:`ChunkedTemporalAttention` remembers of a batch of streams between two steps.

    :meth:`ChunkedTemporalAttention.init_state` makes it. Its size does not grow with the streams'
    length (with finite ``max_summaries``). It can be copied, pickled, and saved with
    :meth:`state_dict`.

    Attributes:
        attention: the operator's state.
        pending: (streams, n) bool: whether each token is real whose result has not come yet, in
            order.
    """

    def __init__(self, attention: ChunkedAttentionState, streams: int) -> None:
        self.attention = attention
        self.streams = streams
        self.pending = torch.zeros(streams, 0, dtype=torch.bool)

    @property
    def received(self) -> Tensor:
        """(streams,) int64 on the CPU: how many tokens each stream has brought since it began."""
        if self.attention.started:
            return self.attention.received
        return torch.zeros(self.streams, dtype=torch.int64)

    @property
    def waiting(self) -> Tensor:
        """(streams,) int64 on the CPU: how many tokens of each stream have no result yet."""
        if self.attention.started:
            return self.attention.received - self.attention.emitted
        return torch.zeros(self.streams, dtype=torch.int64)

    @property
    def ready(self) -> Tensor:
        """(streams,) int64 on the CPU: how many rows of the last result each stream has."""
        if self.attention.started:
            return self.attention.ready
        return torch.zeros(self.streams, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for :meth:`load_state_dict`."""
        return {"attention": self.attention.state_dict(), "pending": self.pending.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            ValueError: the state lacks a key, or is of another batch or other options; nothing is
                changed then.
        """
        for name in ("attention", "pending"):
            if name not in state:
                raise ValueError(f"state must have the key {name!r}, got {sorted(state)}")
        if state["pending"].shape[0] != self.streams:
            raise ValueError(
                f"state must be of {self.streams} streams, got {state['pending'].shape[0]}"
            )
        self.attention.load_state_dict(state["attention"])
        self.pending = state["pending"].clone()

    def update(self, waiting: Tensor, real: Tensor) -> Tensor:
        """Append new tokens behind the ``waiting`` old ones and take out those that are ready.

        Args:
            waiting: (streams,), how many entries of ``pending`` were in use before the step.
            real: (streams, time) bool, the step's tokens.

        Returns:
            (streams, rows) bool: whether each row of the result is that of a real token.
        """
        device = real.device
        waiting, ready = waiting.to(device)[:, None], self.ready.to(device)[:, None]
        both = torch.cat((self.pending.to(device), real), dim=1)
        row = torch.arange(both.shape[1], device=device).expand(both.shape[0], -1)
        old = self.pending.shape[1]
        source = torch.where(row < waiting, row, row - waiting + old)
        both = both.gather(1, source.clamp(max=max(both.shape[1] - 1, 0)))
        shifted = (row + ready).clamp(max=max(both.shape[1] - 1, 0))
        columns = int(self.waiting.max())
        self.pending = both.gather(1, shifted)[:, :columns]
        return (both & (row < ready))[:, : int(self.ready.max())]


class ChunkedTemporalAttention(nn.Module):
    """Self-attention of every chunk of time to itself and its neighbours, linear in time.

    A query in chunk c sees the keys of chunks ``c - lookback`` to ``c + lookahead``, only those up
    to itself if ``causal``, and with ``summaries`` one mean key and value of each older chunk.
    Queries and keys are turned by rotary positions (Su et al. 2021) in seconds: channel pair p of a
    head turns once per wavelength p, from ``min_wavelength`` to ``max_wavelength`` seconds in
    geometric steps. Only differences of times matter: moving all times by a constant changes
    nothing. A wavelength shorter than two sampling steps cannot be told from a longer one, one much
    longer than the time that a query sees hardly turns: choose them between.

    A live stream in pieces of any length gives what the whole recording gives: see
    :meth:`init_state`, :meth:`step` and :meth:`flush`.

    State dict: ``to_qkv.weight`` (heads * (2 head_dim + value_dim), embed_dim), rows in the order
    q, k, v, each (heads, dim); ``to_qkv.bias``; ``to_out.weight`` (embed_dim, heads * value_dim);
    ``to_out.bias``.

    Args:
        embed_dim: features of the sequence.
        num_heads: number of heads.
        chunk_size: tokens in a chunk.
        lookback: chunks before its own that a query sees.
        lookahead: chunks after its own that a query sees; of no effect if ``causal``.
        causal: see the present and the past only.
        summaries: also see a summary of every chunk older than the lookback.
        max_summaries: only the newest this many of them; None for all.
        rotary: turn queries and keys by their times; without it, attention does not know the order
            of what it sees.
        min_wavelength: seconds.
        max_wavelength: seconds.
        head_dim: width of queries and keys of a head; ``embed_dim / num_heads`` by default.
        value_dim: width of values of a head; ``head_dim`` by default.
        bias: whether the projections have biases.
        dropout: probability that an attention weight is dropped in training.
        scale: factor on the similarities; ``head_dim ** -0.5`` by default.
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
        chunk_size: int,
        lookback: int = 1,
        lookahead: int = 0,
        causal: bool = False,
        *,
        summaries: bool = False,
        max_summaries: int | None = None,
        rotary: bool = True,
        min_wavelength: float = 2.0,
        max_wavelength: float = 600.0,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = check_head_dim(embed_dim, num_heads, head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        check_count("value_dim", self.value_dim, low=1)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.chunk_size = check_count("chunk_size", chunk_size, low=1)
        self.lookback = check_count("lookback", lookback, low=0)
        self.lookahead = check_count("lookahead", lookahead, low=0)
        self.causal = check_flag("causal", causal)
        self.summaries = check_flag("summaries", summaries)
        self.max_summaries = max_summaries
        if max_summaries is not None:
            check_count("max_summaries", max_summaries, low=0)
            if not summaries:
                raise ValueError(
                    f"max_summaries must be None without summaries, got {max_summaries}"
                )
        self.rotary = check_flag("rotary", rotary)
        self.min_wavelength = check_number("min_wavelength", min_wavelength, low=1e-6, high=1e9)
        self.max_wavelength = check_number(
            "max_wavelength", max_wavelength, low=min_wavelength, high=1e9
        )
        self.dropout = check_probability("dropout", dropout)
        self.scale = check_scale(scale, self.head_dim)
        self.backend = backend
        key_width, value_width = num_heads * self.head_dim, num_heads * self.value_dim
        self._parts = (key_width, key_width, value_width)
        self.to_qkv = nn.Linear(embed_dim, sum(self._parts), bias=bias, device=device, dtype=dtype)
        self.to_out = nn.Linear(value_width, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: Glorot-uniform, biases 0."""
        reset_projection(self.to_qkv, self._parts)
        reset_projection(self.to_out)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Attend within a recording.

        Args:
            x: (batch, time, embed_dim).
            mask: (batch, time) bool, True = real; None means that every step is real.
            times: (batch, time) seconds of each step; by default one step per second. Not read
                without ``rotary``.

        Returns:
            (batch, time, embed_dim); padded steps are 0.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape.
        """
        check_sequence("x", x, self.embed_dim)
        check_mask("mask", mask, x)
        check_times("times", times, x)
        if times is None:
            times = _seconds(x, 0)
        query, key, value = self._project(x, mask, times)
        out: Tensor = chunked_attention(  # type: ignore[assignment]
            query,
            key,
            value,
            self.chunk_size,
            self.lookback,
            self.lookahead,
            self.causal,
            mask=mask,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            summaries=chunk_summaries(key, value, self.chunk_size, mask=mask)
            if self.summaries
            else None,
            max_summaries=self.max_summaries,
            backend=self.backend,
        )
        return self._project_out(out, mask)

    def init_state(self, batch: int) -> ChunkedTemporalState:
        """Begin ``batch`` independent streams.

        Args:
            batch: number of streams.

        Returns:
            The state that :meth:`step` and :meth:`flush` take and change.

        Raises:
            TypeError: ``batch`` is no int.
            ValueError: ``batch`` is less than 1.
        """
        attention = ChunkedAttentionState(
            self.chunk_size,
            self.lookback,
            self.lookahead,
            self.causal,
            scale=self.scale,
            summaries=self.summaries,
            max_summaries=self.max_summaries,
        )
        return ChunkedTemporalState(attention, check_count("batch", batch, low=1))

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        state: ChunkedTemporalState,
        *,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Add the next tokens of each stream, and return the results that became final.

        If causal, a token's result comes at once; otherwise with the end of its chunk and of the
        lookahead. All the results, those of :meth:`flush` last, are what :meth:`forward` gives for
        the whole recording in evaluation mode. No gradient flows, and attention weights are never
        dropped.

        Args:
            x: (streams, time, embed_dim), the next tokens, any number of them.
            state: as :meth:`init_state` made it; it is changed.
            mask: (streams, time) bool, True = real; a token that is not real still takes its place
                in its chunk.
            times: (streams, time) seconds; by default one token per second from the stream's start.
            lengths: (streams,) integers: how many of the tokens each stream brings, the rest is
                ignored; 0 pauses a stream. All of them by default.

        Returns:
            (streams, rows, embed_dim): for each stream the next ``state.ready`` results in order,
            then zeros.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape, or there is another number of streams in
                the state, which is unchanged then.
        """
        check_sequence("x", x, self.embed_dim)
        check_mask("mask", mask, x)
        check_times("times", times, x)
        if x.shape[0] != state.streams:
            raise ValueError(f"x must have the streams of state, {state.streams}, got {x.shape[0]}")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if times is None:
            times = _seconds(x, state.received.to(x.device)[:, None])
        query, key, value = self._project(x, real, times)
        waiting = state.waiting
        out = chunked_attention_step(query, key, value, state.attention, mask=real, lengths=lengths)
        return self._project_out(out, state.update(waiting, real))

    @torch.no_grad()
    def flush(self, state: ChunkedTemporalState, streams: Tensor | None = None) -> Tensor:
        """End streams: return the results still due, and let those streams begin anew.

        Args:
            state: as :meth:`step` left it; it is changed.
            streams: (streams,) bool, which ones end; all by default.

        Returns:
            (streams, rows, embed_dim), as :meth:`step`.

        Raises:
            TypeError: ``streams`` is no bool tensor.
            ValueError: ``streams`` has another shape, or there was no step yet.
        """
        waiting = state.waiting
        out = state.attention.flush(streams)
        nothing = torch.zeros(state.streams, 0, dtype=torch.bool, device=out.device)
        return self._project_out(out, state.update(waiting, nothing))

    def _project(
        self, x: Tensor, mask: Tensor | None, times: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        packed = self.to_qkv(zero_padding(x, mask))
        query, key, value = (
            split_heads(part, self.num_heads) for part in packed.split(self._parts, dim=-1)
        )
        if self.rotary:
            angles = rotary_angles(
                zero_padding(times, mask), self.head_dim, self.min_wavelength, self.max_wavelength
            )
            query, key = rotate(query, angles), rotate(key, angles)
        return query, key, value

    def _project_out(self, out: Tensor, mask: Tensor | None) -> Tensor:
        return zero_padding(self.to_out(merge_heads(out)), mask)

    def extra_repr(self) -> str:
        """Sizes and options, as ``print(layer)`` shows them."""
        parts = [
            f"{self.embed_dim}, {self.num_heads}, chunk_size={self.chunk_size}",
            f"lookback={self.lookback}, lookahead={self.lookahead}, causal={self.causal}",
            f"head_dim={self.head_dim}, value_dim={self.value_dim}, scale={self.scale:.6g}",
            f"dropout={self.dropout:g}",
        ]
        if self.summaries:
            parts.append(f"summaries=True, max_summaries={self.max_summaries}")
        if self.rotary:
            parts.append(f"wavelengths={self.min_wavelength:g}..{self.max_wavelength:g} s")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)


def _seconds(x: Tensor, start: Tensor | int) -> Tensor:
    """Times of one token per second, (batch, time), ``start`` being the first."""
    index = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
    return (index + start).expand(x.shape[0], -1)
