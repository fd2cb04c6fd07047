"""Chunked temporal attention over a stream that arrives in pieces of any length.

A batch holds independent streams: each starts, pauses (``lengths`` 0) and ends on its own. A stream
keeps the keys that a later query can still see, the queries whose keys are not complete, and the
newest summaries: its memory does not grow with its length (with a finite ``max_summaries``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import (
    check_attention_tensors,
    check_flag,
    check_mask,
    check_same_size,
    check_scale,
    check_tensor,
)
from ..attend import attend, compute_dtype
from .operator import check_chunking

_STATE_FORMAT = 1


class ChunkedAttentionState:
    """What chunked attention remembers of a batch of streams between two steps.

    The first step fixes the number of streams, heads, dimensions, dtype and device. Give every step
    to :func:`chunked_attention_step`; :meth:`flush` ends streams, after which they may start anew.

    Args:
        chunk_size: steps in a chunk.
        lookback: number of chunks before its own that a query sees.
        lookahead: number of chunks behind its own that a query sees; of no effect if ``causal``.
        causal: no query sees a key later than itself; outputs come at once.
        scale: factor on the similarity, ``head_dim ** -0.5`` by default.
        summaries: a query also sees the mean key and value of every chunk older than its lookback.
        max_summaries: only the newest this many of them; all by default, and then the state grows
            with time.

    Attributes:
        ready: (streams,) int64 on the CPU: how many outputs of the last step are valid for each
            stream.
        received: (streams,) int64 on the CPU: how many steps each stream has brought.
        emitted: (streams,) int64 on the CPU: how many outputs each stream has given.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: chunk_size < 1, or another count < 0.
    """

    ready: Tensor
    received: Tensor
    emitted: Tensor

    def __init__(
        self,
        chunk_size: int,
        lookback: int = 1,
        lookahead: int = 0,
        causal: bool = False,
        *,
        scale: float | None = None,
        summaries: bool = False,
        max_summaries: int | None = None,
    ) -> None:
        self._newest = check_chunking(chunk_size, lookback, lookahead, causal, max_summaries)
        check_scale(scale, 1)
        self.chunk_size = chunk_size
        self.lookback = lookback
        self.lookahead = lookahead
        self.causal = causal
        self.scale = scale
        self.summaries = check_flag("summaries", summaries)
        self.max_summaries = max_summaries
        self._capacity = (lookback + 1 + (0 if causal else lookahead)) * chunk_size + chunk_size
        self._tensors: dict[str, Tensor] = {}
        self._dtype = torch.float32

    @property
    def started(self) -> bool:
        """Whether a step has fixed the number of streams and their shapes."""
        return bool(self._tensors)

    def _configuration(self) -> dict[str, Any]:
        return {
            "chunk_size": self.chunk_size,
            "lookback": self.lookback,
            "lookahead": self.lookahead,
            "causal": self.causal,
            "scale": self.scale,
            "summaries": self.summaries,
            "max_summaries": self.max_summaries,
        }

    def __repr__(self) -> str:
        """Options and, once started, the number of streams."""
        options = ", ".join(f"{name}={value}" for name, value in self._configuration().items())
        streams = f", streams={self.received.shape[0]}" if self.started else ""
        return f"{type(self).__name__}({options}{streams})"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for :func:`torch.save`."""
        result: dict[str, Any] = {"format": _STATE_FORMAT, **self._configuration()}
        if self.started:
            tensors = {**self._tensors, "received": self.received, "emitted": self.emitted}
            result["tensors"] = {name: tensor.clone() for name, tensor in tensors.items()}
            result["dtype"] = str(self._dtype).removeprefix("torch.")
        return result

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is of another format or of other options; nothing is changed then.
        """
        expected = {"format": _STATE_FORMAT, **self._configuration()}
        for name, value in expected.items():
            if name not in state:
                raise ValueError(f"state must have the key {name!r}, got {sorted(state)}")
            if state[name] != value:
                raise ValueError(f"state must have {name} = {value}, got {state[name]}")
        tensors = {name: tensor.clone() for name, tensor in state.get("tensors", {}).items()}
        if not tensors:
            self._tensors = {}
            return
        self.received, self.emitted = tensors.pop("received"), tensors.pop("emitted")
        self.ready = torch.zeros_like(self.received)
        self._tensors = tensors
        self._dtype = getattr(torch, state["dtype"])

    def _start(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        streams, heads, _, head_dim = q.shape
        dtype, slots = compute_dtype(q.dtype), self._capacity
        self._dtype = q.dtype

        def empty(steps: int, dim: int) -> Tensor:
            return q.new_zeros(streams, heads, steps, dim, dtype=dtype)

        self._tensors = {
            "query": empty(slots, head_dim),
            "key": empty(slots, head_dim),
            "value": empty(slots, v.shape[3]),
            "position": torch.full((streams, slots), -1, dtype=torch.int64, device=q.device),
            "real": torch.zeros(streams, slots, dtype=torch.bool, device=q.device),
        }
        if self.summaries:
            self._tensors |= {
                "summary_key": empty(0, head_dim),
                "summary_value": empty(0, v.shape[3]),
                "summary_chunk": torch.empty((streams, 0), dtype=torch.int64, device=q.device),
                "summary_count": torch.empty((streams, 0), dtype=torch.int64, device=q.device),
            }
        self.received = torch.zeros(streams, dtype=torch.int64)
        self.emitted = torch.zeros(streams, dtype=torch.int64)
        self.ready = torch.zeros(streams, dtype=torch.int64)

    def _check_step(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        for name, tensor, buffer in (("q", q, "query"), ("k", k, "key"), ("v", v, "value")):
            streams, heads, _, dim = self._tensors[buffer].shape
            if (tensor.shape[0], tensor.shape[1], tensor.shape[3]) != (streams, heads, dim):
                raise ValueError(
                    f"{name} must have shape ({streams}, {heads}, time, {dim}) as in the state's "
                    f"first step, got {tuple(tensor.shape)}"
                )
            if tensor.dtype != self._dtype:
                raise TypeError(
                    f"{name} must have the dtype of the state's first step, {self._dtype}, "
                    f"got {tensor.dtype}"
                )
            if tensor.device != self._tensors[buffer].device:
                raise ValueError(
                    f"{name} must be on the device of the state's first step, "
                    f"{self._tensors[buffer].device}, got {tensor.device}"
                )

    def _write(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lengths: Tensor) -> None:
        """Append up to ``chunk_size`` steps to each stream; ``lengths`` of them count."""
        tensors, device = self._tensors, q.device
        offset = torch.arange(q.shape[2])
        position = self.received[:, None] + offset  # (streams, time)
        # A step that does not count is written to its slot as it was.
        counts = (offset < lengths[:, None]).to(device)
        slot = (position % self._capacity).to(device)

        def put(name: str, new: Tensor) -> None:
            old, index, keep, axis = tensors[name], slot, counts, 1
            if old.dim() == 4:
                index = slot[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
                keep, axis = counts[:, None, :, None], 2
            new = torch.where(keep, new, old.gather(axis, index))
            tensors[name] = old.scatter(axis, index, new)

        padding = ~(counts & mask)[:, None, :, None]
        for name, new in (("query", q), ("key", k), ("value", v)):
            put(name, new.to(tensors[name].dtype).masked_fill(padding, 0.0))
        put("position", position.to(device))
        put("real", mask)
        self.received = self.received + lengths

    def _summarise(self, before: Tensor) -> None:
        """Add the summary of the chunk that a stream completed since it had ``before`` steps."""
        tensors, chunk_size = self._tensors, self.chunk_size
        done = self.received // chunk_size > before // chunk_size
        if not self.summaries or not bool(done.any()):
            return
        device = tensors["key"].device
        chunk = torch.where(done, self.received // chunk_size - 1, -1).to(device)  # (streams,)
        inside = (tensors["position"] // chunk_size == chunk[:, None]) & tensors["real"]
        count = inside.sum(dim=1)  # (streams,)
        weights = (inside / count.clamp(min=1)[:, None]).to(tensors["key"].dtype)
        for name, source in (("summary_key", "key"), ("summary_value", "value")):
            mean = torch.einsum("bs,bhsd->bhd", weights, tensors[source])[:, :, None]
            tensors[name] = torch.cat((tensors[name], mean), dim=2)
        tensors["summary_chunk"] = torch.cat((tensors["summary_chunk"], chunk[:, None]), dim=1)
        tensors["summary_count"] = torch.cat((tensors["summary_count"], count[:, None]), dim=1)
        self._forget_summaries()

    def _forget_summaries(self) -> None:
        """Drop the summaries that no later query of any stream sees."""
        tensors = self._tensors
        # A query still to come lies in this chunk or behind it.
        next_chunk = (self.emitted // self.chunk_size).to(tensors["summary_chunk"].device)
        oldest = next_chunk[:, None] - self.lookback - self._newest
        needed = (tensors["summary_chunk"] >= oldest) & (tensors["summary_chunk"] >= 0)
        # Each stream's needed entries first, in their order; then as many columns as the longest
        # has.
        order = torch.argsort(needed.logical_not().to(torch.int8), dim=1, stable=True)
        columns = int(needed.sum(dim=1).max()) if needed.numel() else 0
        order = order[:, :columns]
        kept = needed.gather(1, order)
        tensors["summary_chunk"] = tensors["summary_chunk"].gather(1, order).masked_fill(~kept, -1)
        tensors["summary_count"] = tensors["summary_count"].gather(1, order).masked_fill(~kept, 0)
        for name in ("summary_key", "summary_value"):
            heads, dim = tensors[name].shape[1], tensors[name].shape[3]
            index = order[:, None, :, None].expand(-1, heads, -1, dim)
            tensors[name] = tensors[name].gather(2, index)

    def _emit(self, complete: Tensor) -> tuple[Tensor, Tensor]:
        """Attend for the queries from ``emitted`` to ``complete``, right-padded to one length."""
        tensors, chunk_size = self._tensors, self.chunk_size
        device = tensors["query"].device
        ready = complete - self.emitted
        queries = int(ready.max()) if ready.numel() else 0
        offset = torch.arange(queries)
        query_position = (self.emitted[:, None] + offset).to(device)  # (streams, queries)
        is_query = (offset < ready[:, None]).to(device)
        slot = query_position % self._capacity
        heads, head_dim = tensors["query"].shape[1], tensors["query"].shape[3]
        query = tensors["query"].gather(2, slot[:, None, :, None].expand(-1, heads, -1, head_dim))
        real_query = (is_query & tensors["real"].gather(1, slot))[:, None, :, None]

        key, value, key_position = tensors["key"], tensors["value"], tensors["position"]
        query_chunk = (query_position // chunk_size)[:, None, :, None]
        key_chunk = torch.div(key_position, chunk_size, rounding_mode="floor")[:, None, None, :]
        lookahead = 0 if self.causal else self.lookahead
        visible = (
            (key_position >= 0)[:, None, None, :]
            & tensors["real"][:, None, None, :]
            & (key_chunk >= query_chunk - self.lookback)
            & (key_chunk <= query_chunk + lookahead)
        )
        if self.causal:
            visible = visible & (key_position[:, None, None, :] <= query_position[:, None, :, None])
        scale = check_scale(self.scale, head_dim)
        scores = scale * (query @ key.transpose(-1, -2))  # (streams, heads, queries, slots)
        if self.summaries:
            count = tensors["summary_count"][:, None, None, :]
            summary_chunk = tensors["summary_chunk"][:, None, None, :]
            seen = (
                (count > 0)
                & (summary_chunk < query_chunk - self.lookback)
                & (summary_chunk >= query_chunk - self.lookback - self._newest)
            )
            bias = count.clamp(min=1).to(scores.dtype).log()
            summary_scores = scale * (query @ tensors["summary_key"].transpose(-1, -2)) + bias
            scores = torch.cat((scores, summary_scores), dim=-1)
            visible = torch.cat((visible, seen), dim=-1)
            value = torch.cat((value, tensors["summary_value"]), dim=2)
        out, _ = attend(scores, visible & real_query, value, None)
        self.emitted = complete
        return out.to(self._dtype), ready

    def _complete(self) -> Tensor:
        """Number of queries of each stream whose keys have all arrived."""
        if self.causal:
            return self.received
        chunks = (self.received // self.chunk_size - self.lookahead).clamp(min=0)
        return torch.maximum(chunks * self.chunk_size, self.emitted)

    def flush(self, streams: Tensor | None = None) -> Tensor:
        """End streams: return the outputs that waited for keys, and let those streams start anew.

        Args:
            streams: (streams,) bool, which ones end; all by default.

        Returns:
            (streams, heads, ready, value_dim), right-padded with zeros; ``self.ready`` says how
            many are valid.

        Raises:
            TypeError: streams is not bool.
            ValueError: streams has another shape, or there was no step yet.
        """
        if not self.started:
            raise ValueError("state must have had a step before flush, got an empty state")
        ended = torch.ones_like(self.received, dtype=torch.bool)
        if streams is not None:
            ended = check_tensor("streams", streams).cpu()
            if ended.dtype != torch.bool:
                raise TypeError(f"streams must be bool, got {ended.dtype}")
            if ended.shape != self.received.shape:
                raise ValueError(
                    f"streams must have shape {tuple(self.received.shape)}, "
                    f"got {tuple(ended.shape)}"
                )
        out, self.ready = self._emit(torch.where(ended, self.received, self.emitted))
        out = _blank(out, self.ready)
        self.received = torch.where(ended, 0, self.received)
        self.emitted = torch.where(ended, 0, self.emitted)
        ended = ended.to(out.device)
        self._tensors["position"] = self._tensors["position"].masked_fill(ended[:, None], -1)
        if self.summaries:
            chunks = self._tensors["summary_chunk"].masked_fill(ended[:, None], -1)
            self._tensors["summary_chunk"] = chunks
            self._forget_summaries()
        return out


def _blank(out: Tensor, ready: Tensor) -> Tensor:
    """Set the outputs behind each stream's ``ready`` ones to 0."""
    counts = torch.arange(out.shape[2]) < ready[:, None]
    return out.masked_fill(~counts.to(out.device)[:, None, :, None], 0.0)


def chunked_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: ChunkedAttentionState,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Append a piece to each stream and return the outputs that became final.

    The concatenated outputs of all steps and of the flush are those of :func:`chunked_attention` on
    the whole recording (with the state's summaries: on ``chunk_summaries`` of it), within rounding.
    An output is final when the keys it may see are complete: at once if causal, else at the end of
    its chunk and of the chunks of its lookahead. No gradient flows through a state.

    Args:
        q: queries, (streams, heads, time, head_dim); the piece may have any length, 0 included.
        k: keys, (streams, heads, time, head_dim).
        v: values, (streams, heads, time, value_dim).
        state: changed in place.
        mask: (streams, time) bool, True = real.
        lengths: (streams,) integers: how many of the piece's steps each stream brings, the rest of
            them is ignored; 0 pauses a stream. All of them by default.

    Returns:
        (streams, heads, ready, value_dim): for each stream the next ``state.ready`` outputs, then
        zeros.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value. The state is unchanged then.
    """
    if not isinstance(state, ChunkedAttentionState):
        raise TypeError(f"state must be a ChunkedAttentionState, got {type(state).__name__}")
    check_attention_tensors({"q": q, "k": k, "v": v})
    streams = check_same_size(0, "batch size", {"q": q, "k": k, "v": v})
    time = check_same_size(2, "time", {"q": q, "k": k, "v": v})
    check_same_size(3, "head_dim", {"q": q, "k": k})
    if state.started:
        state._check_step(q, k, v)
    mask = check_mask("mask", mask, (streams,), time, q.device)
    counts = torch.full((streams,), time, dtype=torch.int64)
    if lengths is not None:
        lengths = check_tensor("lengths", lengths)
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be integers, got {lengths.dtype}")
        if lengths.shape != (streams,):
            raise ValueError(f"lengths must have shape ({streams},), got {tuple(lengths.shape)}")
        counts = lengths.to("cpu", torch.int64)
        if bool(((counts < 0) | (counts > time)).any()):
            raise ValueError(f"lengths must be in [0, {time}], got {counts.tolist()}")
    with torch.no_grad():
        if not state.started:
            state._start(q, k, v)
        if mask is None:
            mask = torch.ones(streams, time, dtype=torch.bool, device=q.device)
        return _run(q, k, v, state, mask, counts)


def _run(
    q: Tensor, k: Tensor, v: Tensor, state: ChunkedAttentionState, mask: Tensor, counts: Tensor
) -> Tensor:
    outputs: list[Tensor] = []
    readies: list[Tensor] = []
    before = state.emitted
    # A stream never waits for more than its window and the ring holds one chunk beyond it, so the
    # next piece of at most one chunk, cut where a chunk ends, overwrites nothing that is still
    # needed.
    start = torch.zeros_like(counts)
    while bool((start < counts).any()) or not outputs:
        room = state.chunk_size - state.received % state.chunk_size
        lengths = torch.minimum(counts - start, room)
        steps = int(lengths.max()) if lengths.numel() else 0
        index = (
            (start[:, None] + torch.arange(steps)).clamp(max=max(q.shape[2] - 1, 0)).to(q.device)
        )

        def piece(x: Tensor, index: Tensor = index) -> Tensor:
            return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        received = state.received
        state._write(piece(q), piece(k), piece(v), mask.gather(1, index), lengths)
        state._summarise(received)
        out, ready = state._emit(state._complete())
        outputs.append(out)
        readies.append(ready)
        start = start + lengths
    total = state.emitted - before
    result = outputs[0].new_zeros(
        q.shape[0], q.shape[1], int(total.max()) if total.numel() else 0, v.shape[3]
    )
    offset = torch.zeros_like(total)
    for out, ready in zip(outputs, readies, strict=True):
        if not out.shape[2]:
            continue
        # Each stream's outputs go behind those it has already; what is not ready is added as 0.
        index = (offset[:, None] + torch.arange(out.shape[2])).clamp(max=result.shape[2] - 1)
        index = index.to(q.device)[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[3])
        result.scatter_add_(2, index, _blank(out, ready))
        offset = offset + ready
    state.ready = total
    return result
