"""What a batch of streams has brought and still needs, in memory of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class History:
    """The newest entries of each stream in tensors along time, each stream with a begin of its own.

    Entries are appended behind those that are there. Where a stream's memory is full, what is no
    longer needed is dropped and the rest moved to the front: with memory for twice what is needed,
    an entry is moved once on average.

    Args:
        tensors: by name, (streams, entries, ...) or (streams, heads, entries, dim).
        begin: for each stream, number of the entry that its memory begins with.
        end: for each stream, number of entries it has had in all.
    """

    def __init__(self, tensors: Mapping[str, Tensor], begin: list[int], end: list[int]) -> None:
        self.tensors = dict(tensors)
        self.begin = begin
        self.end = end

    @property
    def capacity(self) -> int:
        """Number of entries that fit."""
        tensor = next(iter(self.tensors.values()))
        return tensor.shape[_axis(tensor)]

    def view(self, name: str, rows: range, first: int, last: int) -> Tensor:
        """Return the entries from ``first`` to ``last`` of streams whose memory begins alike."""
        tensor = self.tensors[name]
        if len(rows) != tensor.shape[0]:
            tensor = tensor[rows.start : rows.stop]
        return tensor.narrow(_axis(tensor), first - self.begin[rows.start], last - first)

    def room(self, stream: int) -> int:
        """Return how many entries fit behind those of a stream."""
        return self.capacity - (self.end[stream] - self.begin[stream])

    def drop(self, rows: range, needed_from: int) -> None:
        """Make room: forget the entries before ``needed_from``, or make the memory larger."""
        begin, end = self.begin[rows.start], self.end[rows.start]
        first = min(max(needed_from, begin), end)
        if 2 * (end - first) > self.capacity:
            for name, tensor in self.tensors.items():
                self.tensors[name] = torch.cat((tensor, torch.zeros_like(tensor)), _axis(tensor))
        for name in self.tensors:
            kept = self.view(name, rows, first, end).clone()
            self.view(name, rows, begin, begin + end - first).copy_(kept)
        for stream in rows:
            self.begin[stream] = first

    def append(self, rows: range, entries: Mapping[str, Tensor]) -> None:
        """Append entries to streams whose memory has room for them."""
        end = self.end[rows.start]
        count = 0
        for name, new in entries.items():
            count = new.shape[_axis(new)]
            self.view(name, rows, end, end + count).copy_(new)
        for stream in rows:
            self.end[stream] = end + count

    def clear(self, rows: range) -> None:
        """Forget everything of some streams."""
        for stream in rows:
            self.begin[stream] = self.end[stream] = 0


def _axis(tensor: Tensor) -> int:
    return 2 if tensor.dim() == 4 else 1
