"""Reading of pickled arrays without running anything a file asks for.

The standard unpickler calls whatever a file names. This reader interprets the opcodes that numbers,
strings, lists, tuples, dictionaries and NumPy arrays are pickled with, builds those itself, and
refuses the rest, so that there is nothing a file could call: the names it may mention are markers,
never the functions they stand for. A claimed size is compared with the bytes there are before
memory is taken.

Pickles of all protocols are read, of Python 2 (its strings as latin-1) and of NumPy 1 and 2.
"""

from __future__ import annotations

import codecs
import math
import mmap
import os
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmer.data.errors import RecordingError

# What an array, its type and a byte string are pickled with, and the modules that ever held it.
KNOWN_NAMES = {
    "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "ndarray": ("numpy",),
    "dtype": ("numpy",),
    "encode": ("_codecs",),
    "bytes": ("builtins", "__builtin__"),
}
# fmt: off
LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,8}|O[48]?")
KEY_TYPES = (str, bytes, int, float, type(None), np.generic)
# What is built from parts of the file by copying them may hold this many times its size.
EXPANSION = 16
HIGHEST_PROTOCOL = 5
OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
BROKEN = (
    ArithmeticError,
    DeprecationWarning,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of plain values and arrays.

    Args:
        path: The file.

    Returns:
        The object. Arrays are read-only; an array of objects holds plain values only.

    Raises:
        RecordingError: If the file is broken, or asks for anything but arrays, lists, tuples,
            dictionaries, strings and numbers; nothing it asks for is run.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise RecordingError(path, "file", "is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content, size)
            try:
                with warnings.catch_warnings():
                    # Python only warns of a string that no pickler ever wrote.
                    warnings.simplefilter("error", DeprecationWarning)
                    return reader.load()
            except _Refused as error:
                problem = (
                    f"{error}; only arrays, lists, tuples, dictionaries, strings and numbers "
                    "are read, and nothing was run"
                )
                raise RecordingError(path, f"pickle at byte {reader.position}", problem) from None
            except BROKEN as error:
                raise RecordingError(
                    path, f"pickle at byte {reader.position}", f"broken: {error}"
                ) from error


class _Refused(Exception):
    """The file asks for something that is not read."""


class _NoValue:
    """What may stand on the stack while an array is built, but in no result."""

    __slots__ = ()


class _Name(_NoValue):
    """A known name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Type(_NoValue):
    """The type of an array."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype


class _Array(_NoValue):
    """An array before its content is known, and where the memo holds it."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: list[int] = []


class _Arguments(_NoValue):
    """A tuple that holds any of these."""

    __slots__ = ("items",)

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items


class _Reader:
    """A stack machine for the opcodes of plain values."""

    def __init__(self, content: Any, size: int) -> None:
        self.content = content
        self.position = 0
        self.allowance = EXPANSION * size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        while True:
            self.position = self.content.tell()
            code = self.content.read(1)
            if not code:
                raise EOFError("the file ends before the pickle does")
            opcode = OPCODES.get(code.decode("latin-1"))
            if opcode is None:
                raise ValueError(f"no pickle has the opcode {code!r}")
            if opcode.name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise ValueError(f"{len(self.stack)} objects are left at the end, not one")
                return _value(self.pop())
            if opcode.name in LITERALS:
                self.stack.append(self.literal(opcode))
            elif opcode.name in ACTIONS:
                argument = () if opcode.arg is None else (opcode.arg.reader(self.content),)
                ACTIONS[opcode.name](self, *argument)
            elif opcode.name == "INST":
                names = opcode.arg.reader(self.content) if opcode.arg else ""
                raise _Refused(f"it asks for {names.replace(' ', '.')}")
            else:
                raise _Refused(f"it uses the opcode {opcode.name}")

    def literal(self, opcode: pickletools.OpcodeInfo) -> Any:
        assert opcode.arg is not None
        if opcode.name != "STRING":
            return opcode.arg.reader(self.content)
        # pickletools takes these for ASCII, but Python 2 put the bytes of arrays there.
        line = self.content.readline()
        if len(line) < 3 or line[-1:] != b"\n" or line[:1] not in b"'\"" or line[-2:-1] != line[:1]:
            raise ValueError("a string has no quotes")
        escaped: bytes = codecs.escape_decode(line[1:-2])[0]
        return escaped.decode("latin-1")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("an object is missing")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("a mark is missing")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def container(self, kind: type) -> Any:
        container = self.pop()
        if type(container) is not kind:
            raise ValueError(f"a {kind.__name__} is wanted, got a {type(container).__name__}")
        self.push(container)
        return container

    def spend(self, size: int) -> None:
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("it would grow far beyond its size")

    def protocol(self, version: int) -> None:
        if version > HIGHEST_PROTOCOL:
            raise ValueError(f"protocol {version} is not known")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def tuple_to_mark(self) -> None:
        self.push_tuple(self.pop_to_mark())

    def push_tuple(self, items: list[Any]) -> None:
        inner = any(isinstance(item, _NoValue) for item in items)
        self.push(_Arguments(tuple(items)) if inner else tuple(items))

    def short_tuple(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.push_tuple(items[::-1])

    def list_to_mark(self) -> None:
        self.push([_value(item) for item in self.pop_to_mark()])

    def append(self) -> None:
        item = _value(self.pop())
        self.container(list).append(item)

    def appends(self) -> None:
        items = [_value(item) for item in self.pop_to_mark()]
        self.container(list).extend(items)

    def dict_to_mark(self) -> None:
        self.push(self.filled({}, self.pop_to_mark()))

    def set_item(self) -> None:
        item = self.pop()
        key = self.pop()
        self.filled(self.container(dict), [key, item])

    def set_items(self) -> None:
        items = self.pop_to_mark()
        self.filled(self.container(dict), items)

    def filled(self, target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
        if len(items) % 2:
            raise ValueError("a dictionary has a key without a value")
        for key, item in zip(items[::2], items[1::2], strict=True):
            # The hash of a nested tuple can take forever.
            if not isinstance(key, KEY_TYPES):
                raise _Refused(f"it has a {type(key).__name__} as a key")
            target[key] = _value(item)
        return target

    def put(self, slot: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[slot] = value
        if isinstance(value, _Array):
            value.slots.append(slot)

    def memoize(self) -> None:
        self.put(len(self.memo))

    def get(self, slot: int) -> None:
        if slot not in self.memo:
            raise ValueError(f"the memo has no entry {slot}")
        self.push(self.memo[slot])

    def name(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self.push_name(module, name)

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name is not a string")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        if module not in KNOWN_NAMES.get(name, ()):
            raise _Refused(f"it asks for {module}.{name}")
        self.push(_Name(name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if isinstance(arguments, _Arguments):
            arguments = arguments.items
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls something that is no function")
        if function.name not in CALLS:
            raise _Refused(f"it calls numpy.{function.name}")
        self.push(CALLS[function.name](self, *arguments))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if isinstance(state, _Arguments):
            state = state.items
        if not isinstance(target, (_Type, _Array)) or not isinstance(state, tuple):
            raise _Refused(f"it sets the state of a {type(target).__name__}")
        if isinstance(target, _Type):
            target.dtype = _with_state(target.dtype, *state)
            self.push(target)
        else:
            # NumPy's first releases left out the version.
            array = self.array(*(state[1:] if len(state) == 5 else state))
            for slot in target.slots:
                if self.memo[slot] is target:
                    self.memo[slot] = array
            self.push(array)

    def array(self, shape: Any, kind: Any, fortran: Any, content: Any) -> NDArray[Any]:
        if not isinstance(kind, _Type):
            raise ValueError("an array has no type")
        count = _count(shape)
        if kind.dtype.hasobject:
            if type(content) is not list or len(content) != count:
                raise ValueError(f"an array of shape {shape} lacks objects")
            self.spend(count * kind.dtype.itemsize)
            array = np.empty(count, dtype=object)
            for index, item in enumerate(content):
                array[index] = item
            return _read_only(array.reshape(shape))
        return self.plain_array(content, kind.dtype, shape, "F" if fortran else "C")

    def plain_array(
        self, content: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
    ) -> NDArray[Any]:
        raw = self.raw(content)
        if len(raw) != _count(shape) * dtype.itemsize:
            raise ValueError(
                f"an array of shape {shape} and type {dtype} needs "
                f"{_count(shape) * dtype.itemsize} bytes, got {len(raw)}"
            )
        if len(raw) == 0:
            return _read_only(np.empty(shape, dtype.newbyteorder("=")))
        array = np.frombuffer(raw, dtype).reshape(shape, order=order)
        if not dtype.isnative:
            self.spend(len(raw))
            array = array.astype(dtype.newbyteorder("="))
        return _read_only(array)

    def raw(self, content: Any) -> bytes | bytearray:
        if isinstance(content, str):
            self.spend(len(content))
            return content.encode("latin-1")
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError(f"an array has a {type(content).__name__} as its content")
        return content

    def new_type(self, code: Any, align: Any = False, copy: Any = False) -> _Type:
        if not isinstance(code, str) or not DTYPE_CODE.fullmatch(code):
            raise _Refused(f"it asks for arrays of type {code!r}")
        return _Type(np.dtype("O" if code.startswith("O") else code))

    def new_array(self, kind: Any, shape: Any, code: Any) -> _Array:
        if not isinstance(kind, _Name) or kind.name != "ndarray":
            raise _Refused("it asks for an array of a class of its own")
        if shape != (0,):
            raise ValueError(f"an array starts with shape {shape}, not (0,)")
        return _Array()

    def new_scalar(self, kind: Any, content: Any) -> Any:
        if not isinstance(kind, _Type) or kind.dtype.hasobject:
            raise _Refused("it asks for an object as a scalar")
        return self.plain_array(content, kind.dtype, (1,), "C")[0]

    def array_of_buffer(
        self, content: Any, kind: Any, shape: Any, order: Any, axes: Any = None
    ) -> NDArray[Any]:
        if not isinstance(kind, _Type) or kind.dtype.hasobject:
            raise _Refused("it asks for objects in a buffer")
        if isinstance(content, str) or order not in ("C", "F", "K"):
            raise ValueError(f"an array has the order {order!r}")
        if order != "K":
            return self.plain_array(content, kind.dtype, shape, order)
        _count(axes)
        return self.plain_array(content, kind.dtype, shape, "C").transpose(axes)

    def encoded(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _Refused(f"it asks for bytes in the encoding {encoding!r}")
        self.spend(len(text))
        return text.encode("latin-1")

    def no_bytes(self) -> bytes:
        return b""


CALLS: dict[str, Callable[..., Any]] = {
    "dtype": _Reader.new_type,
    "_reconstruct": _Reader.new_array,
    "scalar": _Reader.new_scalar,
    "_frombuffer": _Reader.array_of_buffer,
    "encode": _Reader.encoded,
    "bytes": _Reader.no_bytes,
}
ACTIONS: dict[str, Callable[..., None]] = {
    "PROTO": _Reader.protocol,
    "FRAME": lambda reader, length: None,
    "NONE": lambda reader: reader.push(None),
    "NEWTRUE": lambda reader: reader.push(True),
    "NEWFALSE": lambda reader: reader.push(False),
    "MARK": _Reader.mark,
    "EMPTY_TUPLE": lambda reader: reader.push(()),
    "TUPLE": _Reader.tuple_to_mark,
    "TUPLE1": lambda reader: reader.short_tuple(1),
    "TUPLE2": lambda reader: reader.short_tuple(2),
    "TUPLE3": lambda reader: reader.short_tuple(3),
    "EMPTY_LIST": lambda reader: reader.push([]),
    "LIST": _Reader.list_to_mark,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "EMPTY_DICT": lambda reader: reader.push({}),
    "DICT": _Reader.dict_to_mark,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "PUT": _Reader.put,
    "BINPUT": _Reader.put,
    "LONG_BINPUT": _Reader.put,
    "MEMOIZE": _Reader.memoize,
    "GET": _Reader.get,
    "BINGET": _Reader.get,
    "LONG_BINGET": _Reader.get,
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": _Reader.stack_name,
    "REDUCE": _Reader.call,
    "BUILD": _Reader.build,
}


def _value(item: Any) -> Any:
    if isinstance(item, _Name):
        raise _Refused(f"it holds {item.name} as a value")
    if isinstance(item, _NoValue):
        raise ValueError("an array is used before it is complete")
    return item


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape!r}")
    return math.prod(shape)


def _with_state(
    dtype: np.dtype[Any],
    version: Any,
    order: Any,
    *structure_and_size: Any,
) -> np.dtype[Any]:
    """Apply the state of a plain type: its byte order. Fields and subarrays are refused."""
    if version != 3 or order not in ("<", ">", "|", "=") or len(structure_and_size) != 6:
        raise _Refused(f"it asks for a variant of type {dtype}")
    *structure, size, _, _ = structure_and_size
    if structure != [None, None, None] or size not in (-1, dtype.itemsize):
        raise _Refused(f"it asks for a variant of type {dtype}")
    return dtype if dtype.hasobject or order == "|" else dtype.newbyteorder(order)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
