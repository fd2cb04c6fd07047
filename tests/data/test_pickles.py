from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmer.data import RecordingError, load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=4)
    ),
    max_leaves=20,
)
DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.unicode_string_dtypes(endianness="?", max_len=5),
    hnp.byte_string_dtypes(max_len=5),
).filter(lambda dtype: dtype.itemsize)
SHAPES = hnp.array_shapes(min_dims=0, min_side=0, max_side=4)


def load(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return load_pickle(path)


def refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(RecordingError, match=words) as caught:
        load(tmp_path, content)
    assert caught.value.file == str(tmp_path / "x.pkl")
    assert caught.value.field.startswith(("pickle at byte", "file"))
    return caught.value


file_per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@file_per_example
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(tmp_path: Path, value: Any, protocol: int) -> None:
    read = load(tmp_path, pickle.dumps(value, protocol))
    assert read == value
    assert repr(read) == repr(value)


@file_per_example
@given(
    array=hnp.arrays(DTYPES, SHAPES),
    order=st.sampled_from("CF"),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_arrays_come_back(tmp_path: Path, array: np.ndarray, order: str, protocol: int) -> None:
    array = np.array(array, order=order)
    read = load(tmp_path, pickle.dumps([array, {"again": array}], protocol))
    assert read[0] is read[1]["again"]
    assert type(read[0]) is np.ndarray
    assert read[0].shape == array.shape
    assert read[0].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read[0], array)
    assert not read[0].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_plain_objects_come_back(tmp_path: Path, protocol: int, order: str) -> None:
    array = np.empty((2, 3), dtype=object, order=order)
    for index, item in enumerate(["ä", b"\xff", 3, [1, [2]], None, np.arange(3)]):
        array[index // 3, index % 3] = item
    read = load(tmp_path, pickle.dumps(array, protocol))
    assert read.shape == (2, 3)
    assert read.dtype == object
    assert repr(read) == repr(array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "scalar", [np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("ü"), np.float64(np.nan)]
)
def test_scalars_come_back(tmp_path: Path, scalar: Any, protocol: int) -> None:
    read = load(tmp_path, pickle.dumps(scalar, protocol))
    assert type(read) is type(scalar)
    np.testing.assert_equal(read, scalar)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_transposed_and_empty_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    for array in (np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), np.zeros((0, 3), ">f4")):
        read = load(tmp_path, pickle.dumps(array, protocol))
        np.testing.assert_array_equal(read, array)
        assert read.dtype.isnative


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    value = [1]
    value.append(value)
    read = load(tmp_path, pickle.dumps(value))
    assert read[1] is read


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_names_of_the_numpy_module(tmp_path: Path, module: str) -> None:
    content = pickle.dumps(np.arange(3.0), 2)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        content = content.replace(name, module.encode())
    np.testing.assert_array_equal(load(tmp_path, content), [0, 1, 2])


def python_2_array(protocol: int) -> Any:
    """As cPickle of Python 2 wrote {"a": array([1.5, 2.5])}: the bytes in a str."""
    raw = struct.pack("<2d", 1.5, 2.5)
    if protocol == 0:
        escaped = "".join(f"\\x{byte:02x}" for byte in raw).encode()
        return (
            b"(dp1\nS'a'\ncnumpy.core.multiarray\n_reconstruct\np2\n"
            b"(cnumpy\nndarray\np3\n(I0\ntS'b'\ntRp4\n(I1\n(I2\ntcnumpy\ndtype\np5\n"
            b"(S'f8'\nI0\nI1\ntRp6\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'" + escaped + b"'\ntbs."
        )
    return (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x10" + raw + b"tbs."
    )


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_python_2(tmp_path: Path, protocol: int) -> None:
    content = python_2_array(protocol)
    assert pickle.loads(content, encoding="latin1")["a"].tolist() == [1.5, 2.5]
    assert load(tmp_path, content)["a"].tolist() == [1.5, 2.5]


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_function_is_called(tmp_path: Path, protocol: int, depth: int) -> None:
    proof = tmp_path / "ran"
    command = f'open({str(proof)!r}, "w").close()'
    hostile = {
        r"asks for (posix|nt)\.system": Calls(os.system, f'{sys.executable} -c "{command!r}"'),
        r"asks for (builtins|__builtin__)\.eval": Calls(eval, command),
        r"asks for (builtins|__builtin__)\.exec": Calls(exec, command),
        r"asks for (subprocess|commands)\.Popen": Calls(
            subprocess.Popen, [sys.executable, "-c", command]
        ),
        r"asks for (builtins|__builtin__)\.getattr": Calls(getattr, "x", "upper"),
        r"asks for (io|_io|builtins|__builtin__)\.open": Calls(open, str(proof), "w"),
    }
    for words, value in hostile.items():
        for _ in range(depth):
            value = {"train": [np.ones(2), (value,)]}
        content = pickle.dumps(value, protocol)
        error = refused(tmp_path, content, words)
        assert "nothing was run" in str(error)
        assert not proof.exists()
    pickle.loads(pickle.dumps(Calls(eval, command), protocol))
    assert proof.exists(), "the test must be able to tell"


class Marker:
    """Says if it was ever made or given a state."""

    made = False

    def __new__(cls, *arguments: Any) -> Any:
        Marker.made = True
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        Marker.made = True


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_object_of_another_class_is_made(tmp_path: Path, protocol: int) -> None:
    value = Marker()
    value.x = 1
    content = pickle.dumps(value, protocol)
    Marker.made = False
    refused(tmp_path, content, r"asks for (copy_reg\._reconstructor|copyreg|.*Marker)")
    assert not Marker.made
    pickle.loads(content)
    assert Marker.made, "the test must be able to tell"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ma.masked_array([1.0], [True]), r"numpy\.ma"),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), "arrays of type 'V12'"),
        (np.array(["2026-11-23"], dtype="M8[D]"), "arrays of type 'M8'"),
        (np.array([1j]), "arrays of type 'c16'"),
        (np.zeros(3).view(np.matrix), "matrix"),
        ({1, 2}, "EMPTY_SET"),
        (frozenset([1]), "FROZENSET"),
        (range(3), "range"),
        (slice(1), "slice"),
        (1j, "complex"),
        (np.dtype("f8"), "before it is complete"),
        (np.ndarray, "holds ndarray as a value"),
        ([np.ndarray], "holds ndarray as a value"),
        ((np.ndarray,), "before it is complete"),
        ({"a": (1, [2, (np.ndarray,)])}, "before it is complete"),
        ({(1, 2): 3}, "a tuple as a key"),
        (os.system, "system"),
        (builtins.print, "print"),
    ],
)
def test_other_things_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    refused(tmp_path, pickle.dumps(value, 4), words)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT = b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R"
FLOAT_STATE = b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
HUGE = b"\x8a\x06" + (10**13).to_bytes(6, "little")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04" + ARRAY + b".", "before it is complete"),
        (b"\x80\x04" + ARRAY + b"N" + b"b.", "sets the state of a _Array"),
        (b"\x80\x04" + ARRAY + b"(K\x01tb.", "missing|positional"),
        (b"\x80\x04" + ARRAY + b"(K\x01K\x02\x85NK\x00C\x00tb.", "has no type"),
        (
            b"\x80\x04" + ARRAY + b"(K\x01" + HUGE + b"\x85" + FLOAT + b"\x89C\x00tb.",
            "needs 80000000000000 bytes, got 0",
        ),
        (
            b"\x80\x04" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT + b"\x89C\x08xxxxxxxxtb.",
            r"has the shape \(-1,\)",
        ),
        (
            b"\x80\x04" + ARRAY + b"(K\x01K\x01\x85" + FLOAT + b"\x89]tb.",
            "has a list as its content",
        ),
        (
            b"\x80\x04" + ARRAY + b"(K\x01K\x02\x85cnumpy\ndtype\n\x8c\x02O8\x89\x88\x87R\x89C\x10"
            + b"x" * 16 + b"tb.",
            "lacks objects",
        ),
        (
            b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + HUGE
            + b"\x85C\x01b\x87R.",
            r"starts with shape \(10000000000000,\)",
        ),
        (
            b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n\x8c\x01xK\x00\x85C\x01b\x87R.",
            "an array of a class of its own",
        ),
        (b"\x80\x04cnumpy\nndarray\n" + HUGE + b"\x85R.", r"calls numpy\.ndarray"),
        (b"\x80\x04" + FLOAT + FLOAT_STATE + b".", "before it is complete"),
        (b"\x80\x04" + FLOAT + b"(K\x03\x8c\x01<N]}K\x08K\x08K\x00tb.", "variant of type float64"),
        (b"\x80\x04" + FLOAT + b"}b.", "sets the state of a _Type"),
        (b"\x80\x04cnumpy\ndtype\n\x8c\x0aU999999999\x89\x88\x87R.", "arrays of type|broken"),
        (b"\x80\x04cnumpy\ndtype\n}b.", "sets the state of a _Name"),
        (b"\x80\x04]}b.", "sets the state of a list"),
        (b"\x80\x04K\x05)R.", "calls something that is no function"),
        (b"\x80\x04c_codecs\nencode\n\x8c\x01x\x8c\x05utf-7\x86R.", "in the encoding 'utf-7'"),
        (b"\x80\x04c_codecs\ndecode\n\x8c\x01x\x85R.", r"asks for _codecs\.decode"),
        (b"\x80\x04cnumpy.core.multiarray\nfromfile\n)R.", r"multiarray\.fromfile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", r"asks for numpy\.load"),
        (b"\x80\x04\x8c\x02os\x8c\x0asystem.x.y\x93.", r"asks for os\.system"),
        (b"(S'touch x'\nios\nsystem\n.", r"asks for os\.system"),
        (b"(cos\nsystem\nS'touch x'\no.", r"asks for os\.system"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02\x83\x01\x00.", "opcode EXT2"),
        (b"Pos\n.", "opcode PERSID"),
        (b"\x80\x02U\x01aQ.", "opcode BINPERSID"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x04]2.", "opcode DUP"),
        (b"\x80\x04]0.", "opcode POP"),
        (b"\x80\x06N.", "protocol 6 is not known"),
        (b"\x80\x04h\x07.", "memo has no entry 7"),
        (b"\x80\x04e.", "mark is missing"),
        (b"\x80\x04(e.", "an object is missing"),
        (b"\x80\x04K\x05K\x06a.", "a list is wanted, got a int"),
        (b"\x80\x04](K\x05K\x06u.", "a dict is wanted, got a list"),
        (b"\x80\x04}(K\x05u.", "key without a value"),
        (b"\x80\x04K\x05K\x06.", "2 objects are left"),
        (b"\x80\x04.", "missing|0 objects"),
        (b"\x80\x04K", "not enough data"),
        (b"\x80\x04N", "file ends before the pickle does"),
        (b"\xff", "no pickle has the opcode"),
        (b"Sx\n.", "no quotes"),
        (b"S'\\e'\n.", "invalid escape"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"xx", "expected .* bytes|broken"),
        (b"", "is empty"),
        (b"PK\x03\x04 this is a zip", "opcode"),
    ],
)  # fmt: skip
def test_pickles_written_by_hand(tmp_path: Path, content: Any, words: str) -> None:
    refused(tmp_path, content, words)


def test_a_memo_entry_far_away_takes_no_memory(tmp_path: Path) -> None:
    assert load(tmp_path, b"\x80\x02]r\xff\xff\xff\xff.") == []


def test_an_array_in_the_memo_before_its_content_cannot_be_used(tmp_path: Path) -> None:
    content = b"\x80\x04" + ARRAY + b"\x94(K\x01K\x01\x85cnumpy\ndtype\n\x8c\x02O8\x89\x88\x87R"
    refused(tmp_path, content + b"\x89](h\x00etb.", "before it is complete")


def test_the_memo_holds_the_array_once_it_is_complete(tmp_path: Path) -> None:
    array = b"\x80\x04(" + ARRAY + b"\x94(K\x01K\x01\x85" + FLOAT + FLOAT_STATE
    content = array + b"\x89C\x08" + struct.pack("<d", 2.5) + b"tbh\x00t."
    first, second = load(tmp_path, content)
    assert first is second
    assert first.tolist() == [2.5]


def test_copies_may_not_outgrow_the_file(tmp_path: Path) -> None:
    # One string of 1000 letters, turned into bytes again and again.
    content = b"\x80\x02](X\xe8\x03\x00\x00" + b"x" * 1000 + b"q\x00X\x06\x00\x00\x00latin1q\x01"
    again = b"c_codecs\nencode\nh\x00h\x01\x86R"
    refused(tmp_path, content + again * 5000 + b"e.", "grow far beyond its size")


def test_an_error_in_a_long_file_says_where(tmp_path: Path) -> None:
    content = pickle.dumps([np.ones(1000), Calls(os.system, "true")])
    error = refused(tmp_path, content, "system")
    assert int(error.field.split()[-1]) > 8000


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        load_pickle(tmp_path / "none.pkl")


@file_per_example
@given(content=st.binary(max_size=60))
def test_any_bytes_give_a_value_or_our_error(tmp_path: Path, content: Any) -> None:
    with contextlib.suppress(RecordingError):
        load(tmp_path, content)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.sampled_from(PROTOCOLS))
def test_damaged_pickles_give_a_value_or_our_error(
    tmp_path: Path, data: st.DataObject, protocol: int
) -> None:
    value = {"a": [np.arange(3), np.array(["x"]), np.float32(1)], "b": ("c", b"d", 1.5, None)}
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RecordingError):
        load(tmp_path, bytes(content))
