"""The arguments of a launch: what a kernel may read and write, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.findings import PtxError
from tests.ptx.global_memory import GLOBAL_BASE, DeviceBytes
from tests.ptx.parser import Parameter, Variable

_ALIGNMENT = 256
_PAD = 256


class Buffer:
    """An argument that the kernel may write; after a launch the array holds what it wrote.

    ``written`` remembers, over several launches, which bytes hold something.
    """

    poisons = True
    must_be_written = False

    def __init__(self, array: Any) -> None:
        self.array = array
        host = HostView(array)
        self.written = np.zeros(host.size, np.bool_)
        if self.poisons:
            # All bits set is NaN in every floating-point type, and -1 in integers.
            host.bytes[host.elements] = 0xFF
        else:
            self.written[:] = True


class Output(Buffer):
    """Must be written completely; filled with NaN at first. Reading before writing is a finding."""

    must_be_written = True


class Scratch(Buffer):
    """May be written partly; filled with NaN at first. Reading before writing is a finding."""


class InOut(Buffer):
    """Holds something before the launch, and may be read and written."""

    poisons = False


@dataclass(frozen=True)
class Struct:
    """A parameter passed by value as a struct: fields in order, aligned as in C.

    Fields are arrays and buffers (pointers), NumPy scalars, or None (a null pointer).
    """

    fields: Sequence[Any]


@dataclass(frozen=True)
class Packed:
    """A struct whose bytes somebody else packs, once the addresses of its arrays are known.

    Attributes:
        pack: Takes the addresses of ``arrays`` and returns the bytes of the parameter.
        arrays: The arrays and buffers that the struct points to.
    """

    pack: Callable[[list[int]], bytes]
    arrays: Sequence[Any]


class HostView:
    """The bytes that an array or tensor covers in its storage.

    Attributes:
        bytes: All of the storage from its first byte on, as a writable view.
        elements: Offsets in ``bytes`` of every byte of every element; a slice where they are one.
        size: The number of those bytes.
        start: Offset of the first element.
        storage: Identifies the storage: views of one storage share memory.
    """

    def __init__(self, array: Any) -> None:
        if hasattr(array, "untyped_storage"):
            import torch

            if array.device.type != "cpu":
                raise ValueError(f"arguments live on the CPU, this one is on {array.device}")
            storage = torch.empty(0, dtype=torch.uint8).set_(array.detach().untyped_storage())
            self.bytes: NDArray[np.uint8] = storage.numpy()
            item = array.element_size()
            strides = [stride * item for stride in array.stride()]
            self.start = array.storage_offset() * item
            shape = tuple(array.shape)
        elif isinstance(array, np.ndarray):
            root = array
            while isinstance(root.base, np.ndarray):
                root = root.base
            if not root.flags.c_contiguous:
                raise ValueError("the array that a view is taken of must be contiguous")
            self.bytes = root.reshape(-1).view(np.uint8)
            item, strides, shape = array.itemsize, list(array.strides), array.shape
            self.start = array.ctypes.data - root.ctypes.data if array.size else 0
        else:
            raise TypeError(f"an argument must be a tensor or an array, not {type(array).__name__}")
        self.storage = self.bytes.ctypes.data
        self.size = math.prod(shape) * item
        self.elements: slice | NDArray[np.int64] = slice(self.start, self.start + self.size)
        if not _is_contiguous(shape, strides, item):
            offsets = np.full((1,), self.start, np.int64)
            for extent, stride in zip(shape, strides, strict=True):
                offsets = (offsets[:, None] + np.arange(extent) * stride).reshape(-1)
            self.elements = (offsets[:, None] + np.arange(item)).reshape(-1)

    def elements_from(self, offset: int) -> slice | NDArray[np.int64]:
        """The elements' bytes, where the storage begins at ``offset``."""
        if isinstance(self.elements, slice):
            return slice(self.elements.start + offset, self.elements.stop + offset)
        return self.elements + offset


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    expected = item
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


@dataclass
class _Segment:
    """A storage in device memory: at ``offset``, with the arguments that view it."""

    data: NDArray[np.uint8]
    views: list[tuple[HostView, Buffer | None]] = field(default_factory=list)
    offset: int = 0

    @property
    def is_written(self) -> bool:
        return any(buffer is not None for _, buffer in self.views)


class DeviceMemory:
    """Places the storages of a launch's arguments in device memory, inputs first."""

    def __init__(self, arguments: Iterable[Any], variables: Iterable[Variable]) -> None:
        self.segments: dict[int, _Segment] = {}
        self.variables = {v.name: v for v in variables if v.initial is not None}
        for argument in arguments:
            buffer = argument if isinstance(argument, Buffer) else None
            host = HostView(argument.array if buffer is not None else argument)
            segment = self.segments.setdefault(host.storage, _Segment(host.bytes))
            segment.views.append((host, buffer))
        self.symbols: dict[str, int] = {}
        position = _PAD
        placed = [
            (v.name, np.frombuffer(v.initial or b"", np.uint8)) for v in self.variables.values()
        ]
        for name, data in placed:
            self.symbols[name] = GLOBAL_BASE + position
            position += -(-len(data) // _ALIGNMENT) * _ALIGNMENT + _PAD
        ordered = sorted(self.segments.values(), key=lambda segment: segment.is_written)
        tracked_from: int | None = None
        for segment in ordered:
            if segment.is_written and tracked_from is None:
                tracked_from = position
            segment.offset = position
            position += -(-len(segment.data) // _ALIGNMENT) * _ALIGNMENT + _PAD
        self.device = DeviceBytes(position, position if tracked_from is None else tracked_from)
        for name, data in placed:
            start = self.symbols[name] - GLOBAL_BASE
            self.device.bytes[start : start + len(data)] = data
            self.device.valid[start : start + len(data)] = True
        for segment in ordered:
            self._fill(segment)
        self.device.seal()

    def _fill(self, segment: _Segment) -> None:
        device, start = self.device, segment.offset
        device.bytes[start : start + len(segment.data)] = segment.data
        for host, buffer in segment.views:
            places = host.elements_from(start)
            device.valid[places] = True
            if buffer is None:
                device.initialised[places] = True
            else:
                device.writable[places] = True
                device.initialised[places] |= buffer.written

    def address(self, argument: Any) -> int:
        """The device address of an argument's first element."""
        host = HostView(argument.array if isinstance(argument, Buffer) else argument)
        return GLOBAL_BASE + self.segments[host.storage].offset + host.start

    def collect(self) -> None:
        """Copy what was written back into the arguments."""
        for segment in self.segments.values():
            for host, buffer in segment.views:
                if buffer is not None:
                    places = host.elements_from(segment.offset)
                    host.bytes[host.elements] = self.device.bytes[places]
                    buffer.written = self.device.initialised[places].copy()

    def unwritten(self) -> list[str]:
        """Describe outputs with elements that no launch wrote."""
        messages = []
        for segment in self.segments.values():
            for host, buffer in segment.views:
                if buffer is not None and buffer.must_be_written and not buffer.written.all():
                    missing = int((~buffer.written).sum())
                    shape = tuple(buffer.array.shape)
                    first = int(np.flatnonzero(~buffer.written)[0])
                    messages.append(
                        f"{missing} of {host.size} bytes of the output of shape {shape} "
                        f"were not written, the first is byte {first}"
                    )
        return messages


def arrays_of(arguments: Iterable[Any]) -> list[Any]:
    """The arrays, tensors and buffers among ``arguments``, those inside structs included."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Struct):
            found += arrays_of(argument.fields)
        elif isinstance(argument, Packed):
            found += argument.arrays
        elif isinstance(argument, (Buffer, np.ndarray)) or hasattr(argument, "untyped_storage"):
            found.append(argument)
    return found


def pack_argument(parameter: Parameter, argument: Any, memory: DeviceMemory) -> bytes:
    """The bytes that a parameter receives."""
    if parameter.is_array:
        if isinstance(argument, Struct):
            argument = _pack_struct(argument, memory)
        elif isinstance(argument, Packed):
            argument = argument.pack([memory.address(array) for array in argument.arrays])
        if not isinstance(argument, bytes) or len(argument) > parameter.size:
            raise PtxError(f"{parameter.name} is a struct of {parameter.size} bytes: {argument!r}")
        return argument.ljust(parameter.size, b"\0")
    if argument is None:
        argument = 0
    elif arrays_of([argument]):
        argument = memory.address(argument)
    type_ = parameter.type
    if type_.family == "float":
        return np.asarray(argument, type_.dtype).tobytes()
    if isinstance(argument, float):
        raise PtxError(f"{parameter.name} of .{type_.name} was given {argument}")
    return (int(argument) & (2**type_.bits - 1)).to_bytes(type_.bits // 8, "little")


def _pack_struct(struct: Struct, memory: DeviceMemory) -> bytes:
    data = b""
    for entry in struct.fields:
        if entry is None or arrays_of([entry]):
            raw = (0 if entry is None else memory.address(entry)).to_bytes(8, "little")
        elif isinstance(entry, np.generic):
            raw = entry.tobytes()
        else:
            raise TypeError(f"a field of a struct is a pointer or a NumPy scalar, not {entry!r}")
        data = data.ljust(-(-len(data) // len(raw)) * len(raw), b"\0") + raw
    return data
