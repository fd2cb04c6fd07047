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
from ..backends import BACKENDS, choose, run
from .history import History
from .operator import check_chunking, chunk_summaries
from .window import WINDOW, WindowOptions

_STATE_FORMAT = 2


class ChunkedAttentionState:
    """What chunked attention remembers of a batch of streams between two steps.

    The first step fixes the number of streams, heads, dimensions, dtype and device. Give every step
    to :func:`chunked_attention_step`; :meth:`flush` ends streams, after which they may start anew.
    Streams of a batch that are at the same step are computed together.

    Args:
        chunk_size: steps in a chunk.
        lookback: number of chunks before its own that a query sees.
        lookahead: number of chunks behind its own that a query sees; of no effect if ``causal``.
        causal: no query sees a key later than itself; outputs come at once.
        scale: factor on the similarity, ``head_dim ** -0.5`` by default.
        summaries: a query also sees the mean key and value of every chunk older than its lookback.
        max_summaries: only the newest this many of them; all by default, and then the state grows
            with time.
        backend: ``"auto"``, ``"cpu"`` or ``"reference"``: what computes the outputs.

    Attributes:
        ready: (streams,) int64 on the CPU: how many outputs of the last step are valid for each
            stream.
        received: (streams,) int64 on the CPU: how many steps each stream has brought.
        emitted: (streams,) int64 on the CPU: how many outputs each stream has given.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: chunk_size < 1, another count < 0, or no such backend.
    """

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
        backend: str = "auto",
    ) -> None:
        self._newest = check_chunking(chunk_size, lookback, lookahead, causal, max_summaries)
        check_scale(scale, 1)
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f'backend must be "auto" or one of {BACKENDS}, got {backend!r}')
        self.chunk_size = chunk_size
        self.lookback = lookback
        self.lookahead = lookahead
        self.causal = causal
        self.scale = scale
        self.summaries = check_flag("summaries", summaries)
        self.max_summaries = max_summaries
        self.backend = backend
        self._steps: History | None = None
        self._summaries: History | None = None
        self._emitted: list[int] = []
        self._ready: list[int] = []
        # Shapes of a step that was found to be right.
        self._last: tuple[torch.Size, torch.Size] | None = None

    @property
    def started(self) -> bool:
        """Whether a step has fixed the number of streams and their shapes."""
        return self._steps is not None

    @property
    def ready(self) -> Tensor:
        """How many outputs of the last step are valid for each stream."""
        return torch.tensor(self._ready, dtype=torch.int64)

    @property
    def received(self) -> Tensor:
        """How many steps each stream has brought."""
        return torch.tensor(self._history.end, dtype=torch.int64)

    @property
    def emitted(self) -> Tensor:
        """How many outputs each stream has given."""
        return torch.tensor(self._emitted, dtype=torch.int64)

    @property
    def _history(self) -> History:
        if self._steps is None:
            raise AttributeError("a state has no streams before its first step")
        return self._steps

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
        streams = f", streams={len(self._emitted)}" if self.started else ""
        return f"{type(self).__name__}({options}{streams})"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for :func:`torch.save`."""
        result: dict[str, Any] = {"format": _STATE_FORMAT, **self._configuration()}
        if self._steps is not None:
            tensors = {"emitted": self.emitted, **self._steps.tensors}
            positions = {"step": self._steps}
            if self._summaries is not None:
                tensors |= self._summaries.tensors
                positions["summary"] = self._summaries
            for name, history in positions.items():
                tensors[f"{name}_begin"] = torch.tensor(history.begin, dtype=torch.int64)
                tensors[f"{name}_end"] = torch.tensor(history.end, dtype=torch.int64)
            result["tensors"] = {name: tensor.clone() for name, tensor in tensors.items()}
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
        self._steps = self._summaries = self._last = None
        self._emitted = tensors.pop("emitted").tolist() if tensors else []
        self._ready = [0] * len(self._emitted)
        if not tensors:
            return
        positions = {
            name: tensors.pop(name).tolist()
            for name in list(tensors)
            if name.endswith(("_begin", "_end"))
        }
        summaries = {name: x for name, x in tensors.items() if name.startswith("summary")}
        steps = {name: x for name, x in tensors.items() if name not in summaries}
        self._steps = History(steps, positions["step_begin"], positions["step_end"])
        if self.summaries:
            self._summaries = History(
                summaries, positions["summary_begin"], positions["summary_end"]
            )

    def _start(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        streams = q.shape[0]
        chunks = self.lookback + 1 + (0 if self.causal else self.lookahead)
        slots = 2 * chunks * self.chunk_size

        def zeros(like: Tensor, entries: int) -> Tensor:
            return like.new_zeros(streams, like.shape[1], entries, like.shape[3])

        # A causal query is answered in the step that brings it.
        tensors = {"key": zeros(k, slots), "value": zeros(v, slots)}
        if not self.causal:
            tensors["query"] = zeros(q, slots)
        self._steps = History(tensors, [0] * streams, [0] * streams)
        if self.summaries:
            # All summaries are kept in memory that grows.
            newest = chunks if self.max_summaries is None else self.max_summaries
            slots = 2 * (chunks + newest)
            summaries = {
                "summary_key": zeros(k, slots),
                "summary_value": zeros(v, slots),
                "summary_count": torch.zeros(streams, slots, dtype=torch.int64, device=q.device),
            }
            self._summaries = History(summaries, [0] * streams, [0] * streams)
        self._emitted = [0] * streams
        self._ready = [0] * streams

    def _is_like_the_last(self, q: object, k: object, v: object) -> bool:
        """Whether a step has the shapes, the dtype and the device of one that was right."""
        if self._last is None:
            return False
        if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
            return False
        key = self._history.tensors["key"]
        shape, value_shape = self._last
        return (
            q.shape == shape
            and k.shape == shape
            and v.shape == value_shape
            and q.dtype == k.dtype == v.dtype == key.dtype
            and q.device == k.device == v.device == key.device
            and q.layout == k.layout == v.layout == torch.strided
        )

    def _check_step(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        tensors = self._history.tensors
        for name, tensor, buffer in (("q", q, "key"), ("k", k, "key"), ("v", v, "value")):
            kept = tensors[buffer]
            streams, heads, _, dim = kept.shape
            if (tensor.shape[0], tensor.shape[1], tensor.shape[3]) != (streams, heads, dim):
                raise ValueError(
                    f"{name} must have shape ({streams}, {heads}, time, {dim}) as in the state's "
                    f"first step, got {tuple(tensor.shape)}"
                )
            if tensor.dtype != kept.dtype:
                raise TypeError(
                    f"{name} must have the dtype of the state's first step, {kept.dtype}, "
                    f"got {tensor.dtype}"
                )
            if tensor.device != kept.device:
                raise ValueError(
                    f"{name} must be on the device of the state's first step, {kept.device}, "
                    f"got {tensor.device}"
                )

    def _cohorts(self, counts: list[int]) -> list[range]:
        """Return streams that are at the same place and bring the same number of steps."""
        streams = len(counts)
        if streams == 1:
            return [range(1)]
        histories = [self._history] if self._summaries is None else [self._history, self._summaries]
        places = [counts, self._emitted]
        places += [place for history in histories for place in (history.begin, history.end)]
        if streams and all(place.count(place[0]) == streams for place in places):
            return [range(streams)]
        return [range(stream, stream + 1) for stream in range(streams)]

    def _advance(
        self, rows: range, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> list[Tensor]:
        """Take in a piece of some streams and return the outputs that became final, in parts."""
        history, chunk_size, first = self._history, self.chunk_size, rows.start
        outputs: list[Tensor] = []
        done, count = 0, k.shape[2]
        while done < count:
            if history.room(first) == 0:
                chunk = self._emitted[first] // chunk_size
                history.drop(rows, max(chunk - self.lookback, 0) * chunk_size)
            before = history.end[first]
            taken = min(count - done, history.room(first))
            entries = {"key": k, "value": v} if self.causal else {"key": k, "value": v, "query": q}
            if taken < count:
                entries = {name: x.narrow(2, done, taken) for name, x in entries.items()}
            if "real" in history.tensors:
                entries["real"] = (
                    torch.ones(len(rows), taken, dtype=torch.bool, device=k.device)
                    if mask is None
                    else mask.narrow(1, done, taken)
                )
            history.append(rows, entries)
            for chunk in range(before // chunk_size, (before + taken) // chunk_size):
                self._summarise(rows, chunk)
            if self.causal:
                outputs += self._emit(
                    rows, before + taken, q if taken == count else q.narrow(2, done, taken)
                )
            else:
                outputs += self._emit(rows, self._complete(first))
            done += taken
        return outputs

    def _summarise(self, rows: range, chunk: int) -> None:
        """Add the summary of a chunk that is complete."""
        summaries, history, first = self._summaries, self._history, rows.start
        if summaries is None:
            return
        if summaries.room(first) == 0:
            oldest = self._emitted[first] // self.chunk_size - self.lookback - self._newest
            summaries.drop(rows, max(oldest, 0))
        steps = (chunk * self.chunk_size, (chunk + 1) * self.chunk_size)
        key, value = history.view("key", rows, *steps), history.view("value", rows, *steps)
        mask = history.view("real", rows, *steps) if "real" in history.tensors else None
        summary_key, summary_value = chunk_summaries(key, value, self.chunk_size, mask=mask)
        if mask is None:
            count = torch.full((len(rows), 1), self.chunk_size, device=key.device)
        else:
            count = mask.sum(dim=1, keepdim=True)
        summaries.append(
            rows,
            {
                "summary_key": summary_key,
                "summary_value": summary_value,
                "summary_count": count,
            },
        )

    def _emit(self, rows: range, complete: int, queries: Tensor | None = None) -> list[Tensor]:
        """Attend for the queries up to ``complete``, chunk by chunk.

        Args:
            rows: streams that are at the same place.
            complete: number of queries whose keys have arrived.
            queries: those queries; by default they are among what the streams keep.
        """
        outputs = []
        emitted = start = self._emitted[rows.start]
        while start < complete:
            chunk = start // self.chunk_size
            stop = min(complete, (chunk + 1) * self.chunk_size)
            if queries is None:
                query = self._history.view("query", rows, start, stop)
            else:
                query = queries
                if stop - start < queries.shape[2]:
                    query = queries.narrow(2, start - emitted, stop - start)
            outputs.append(self._attend(rows, query, start, stop))
            start = stop
        for stream in rows:
            self._emitted[stream] = max(complete, emitted)
        return outputs

    def _attend(self, rows: range, query: Tensor, start: int, stop: int) -> Tensor:
        """Attend for the queries from ``start`` to ``stop``, all of one chunk."""
        history, summaries, chunk_size = self._history, self._summaries, self.chunk_size
        chunk = start // chunk_size
        oldest = max(chunk - self.lookback, 0)
        begin, end = oldest * chunk_size, stop
        if not self.causal:
            end = min((chunk + 1 + self.lookahead) * chunk_size, history.end[rows.start])
        summary_key = summary_value = summary_count = query_mask = mask = None
        if summaries is not None and oldest > 0 and self._newest > 0:
            seen = (max(oldest - self._newest, 0), oldest)
            summary_key = summaries.view("summary_key", rows, *seen)
            summary_value = summaries.view("summary_value", rows, *seen)
            summary_count = summaries.view("summary_count", rows, *seen)
        if "real" in history.tensors:
            query_mask = history.view("real", rows, start, stop)
            mask = history.view("real", rows, begin, end)
        key, value = history.view("key", rows, begin, end), history.view("value", rows, begin, end)
        options = WindowOptions(
            summary_key,
            summary_value,
            summary_count,
            query_mask,
            mask,
            start - begin,
            self.causal,
            check_scale(self.scale, query.shape[3]),
        )
        return run(self.backend, WINDOW, (query, key, value), options, return_lse=False)[0]

    def _complete(self, stream: int) -> int:
        """Return how many queries of a stream have all their keys."""
        chunks = self._history.end[stream] // self.chunk_size - self.lookahead
        return max(chunks * self.chunk_size, self._emitted[stream])

    def _collect(self, parts: list[tuple[range, list[Tensor]]]) -> Tensor:
        """Put the outputs of all streams together, right-padded with zeros, and set ``ready``."""
        self._ready = [0] * len(self._emitted)
        for rows, outputs in parts:
            for stream in rows:
                self._ready[stream] = sum(x.shape[2] for x in outputs)
        if len(parts) == 1 and len(parts[0][1]) == 1 and len(parts[0][0]) == len(self._ready):
            return parts[0][1][0]
        value = self._history.tensors["value"]
        longest = max(self._ready, default=0)
        result = value.new_zeros(value.shape[0], value.shape[1], longest, value.shape[3])
        for rows, outputs in parts:
            if outputs:
                joined = torch.cat(outputs, dim=2)
                result[rows.start : rows.stop, :, : joined.shape[2]] = joined
        return result

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
        count = len(self._emitted)
        ended = [True] * count
        if streams is not None:
            streams = check_tensor("streams", streams)
            if streams.dtype != torch.bool:
                raise TypeError(f"streams must be bool, got {streams.dtype}")
            if streams.shape != (count,):
                raise ValueError(f"streams must have shape ({count},), got {tuple(streams.shape)}")
            ended = streams.tolist()
        parts = []
        with torch.no_grad():
            for rows in self._cohorts([int(x) for x in ended]):
                if ended[rows.start]:
                    parts.append((rows, self._emit(rows, self._history.end[rows.start])))
            out = self._collect(parts)
        for rows, _ in parts:
            self._history.clear(rows)
            if self._summaries is not None:
                self._summaries.clear(rows)
            for stream in rows:
                self._emitted[stream] = 0
        return out


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
    the whole recording (with the state's summaries: on ``chunk_summaries`` of it) within rounding:
    a kernel may take the keys of a whole recording in other tiles. With the CPU kernels for AVX2
    and later they do not depend, to the last bit, on how the stream is cut into pieces, as long as
    ``scale`` times the product of the longest query's and the longest key's length stays below 41.
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
        RuntimeError: the backend that the state asks for cannot run this.
    """
    if not isinstance(state, ChunkedAttentionState):
        raise TypeError(f"state must be a ChunkedAttentionState, got {type(state).__name__}")
    if not state._is_like_the_last(q, k, v):
        check_attention_tensors({"q": q, "k": k, "v": v})
        check_same_size(0, "batch size", {"q": q, "k": k, "v": v})
        check_same_size(2, "time", {"q": q, "k": k, "v": v})
        check_same_size(3, "head_dim", {"q": q, "k": k})
        if state.started:
            state._check_step(q, k, v)
        else:
            choose(state.backend, WINDOW, (q, k, v), None)
    streams, _, time, _ = q.shape
    mask = check_mask("mask", mask, (streams,), time, q.device)
    counts = [time] * streams
    if lengths is not None:
        lengths = check_tensor("lengths", lengths)
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be integers, got {lengths.dtype}")
        if lengths.shape != (streams,):
            raise ValueError(f"lengths must have shape ({streams},), got {tuple(lengths.shape)}")
        counts = lengths.tolist()
        if not all(0 <= count <= time for count in counts):
            raise ValueError(f"lengths must be in [0, {time}], got {counts}")
    with torch.no_grad():
        if not state.started:
            state._start(q, k, v)
        state._last = (q.shape, v.shape)
        history = state._history
        if mask is not None and "real" not in history.tensors:
            slots = history.tensors["key"].shape[2]
            history.tensors["real"] = torch.ones(streams, slots, dtype=torch.bool, device=q.device)
        parts = []
        for rows in state._cohorts(counts):
            count, part = counts[rows.start], slice(rows.start, rows.stop)
            own_q, own_k, own_v, own_mask = q, k, v, mask
            if len(rows) < streams or count < time:
                own_q, own_k, own_v = (x[part, :, :count] for x in (q, k, v))
                own_mask = None if mask is None else mask[part, :count]
            parts.append((rows, state._advance(rows, own_q, own_k, own_v, own_mask)))
        return state._collect(parts)
