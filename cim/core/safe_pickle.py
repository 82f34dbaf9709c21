"""An unpickler that cannot run code: NumPy arrays and plain containers, nothing else.

A pickle is a program; Python's own loader calls whatever it names. Here every name resolves to a function of
this module that builds one harmless thing and checks its arguments. NumPy's own dtype and array constructors
are not handed out either: a forged dtype state could make NumPy take bytes for object pointers.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from cim.core.errors import CimError

_NDARRAY = object()  # stands for the class numpy.ndarray, which a pickle may name but never call


class _Dtype:
    """A dtype under construction: a code such as "f4" or "O8", and the byte order from its state."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: str) -> None:
        self.code = code
        self.dtype: np.dtype | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, subdtype, names, fields = state[1:5]
        if subdtype is not None or names is not None or fields is not None or order not in "<>|=":
            raise pickle.UnpicklingError("structured arrays are not admitted")
        dtype = np.dtype(self.code)
        if dtype.kind in "SU" and dtype.itemsize == 0:
            dtype = np.dtype((dtype.type, int(state[5]) // (4 if dtype.kind == "U" else 1)))
        if dtype.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"arrays of {dtype} are not admitted")
        self.dtype = dtype if order in "|=" else dtype.newbyteorder(order)


class _Array:
    """Stands for an array under construction; :func:`_plain` puts the array in its place.

    NumPy's own way to fill one trusts the pickle (a second state for the same array makes it free memory that is in
    use), so the array is made here, once its bytes are known to fit.
    """

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = np.empty(0, np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        real, shape = _real(dtype), tuple(int(n) for n in shape)
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        count = math.prod(shape)
        if min(shape, default=0) < 0:
            raise pickle.UnpicklingError("an array of a negative size")
        if real.kind == "O" and isinstance(data, list) and len(data) == count:
            flat = np.empty(count, object)
            for index, value in enumerate(data):
                flat[index] = value
            self.array = flat.reshape(shape, order="F" if fortran else "C")
        elif real.kind != "O" and isinstance(data, bytes) and len(data) == count * real.itemsize:
            self.array = np.ndarray(shape, real, data, order="F" if fortran else "C").copy("K")
        else:
            raise pickle.UnpicklingError("array data does not fit its dtype and shape")


def _real(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype) or dtype.dtype is None:
        raise pickle.UnpicklingError("array without a dtype")
    return dtype.dtype


def _make_dtype(code: str, align: Any = False, copy: Any = True) -> _Dtype:
    if not isinstance(code, str) or not code[:1].isalpha() or not code[1:].isdigit() | (code[1:] == ""):
        raise pickle.UnpicklingError(f"dtype {code!r} is not admitted")
    return _Dtype(code)


def _make_array(subtype: Any, shape: Any, code: Any) -> _Array:
    if subtype is not _NDARRAY:
        raise pickle.UnpicklingError("array subclasses are not admitted")
    return _Array()


def _make_scalar(dtype: Any, data: bytes | str) -> np.generic:
    real = _real(dtype)
    if real.kind == "O":
        raise pickle.UnpicklingError("object scalars are not admitted")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, real, count=1)[0]


def _make_from_buffer(buffer: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    real = _real(dtype)
    if real.kind == "O" or axes is not None:
        raise pickle.UnpicklingError("this array layout is not admitted")
    return np.frombuffer(bytes(buffer), real).reshape(shape, order="F" if order == "F" else "C").copy("K")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not admitted")
    return text.encode("latin1")


def _set(values: Any = ()) -> set[Any]:
    if any(isinstance(value, _Array | _Dtype) for value in values):
        raise pickle.UnpicklingError("a set of more than numbers and texts")
    return set(values)


def _bytes(*values: Any) -> bytes:
    return values[0].encode("latin1") if values and isinstance(values[0], str) else b""


def _bytearray(*values: Any) -> bytearray:
    return bytearray(values[0]) if values and isinstance(values[0], bytes) else bytearray(_bytes(*values[:1]))


def _ordered(values: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(values)


_ADMITTED = {
    ("_codecs", "encode"): _encode,  # how protocol 2 writes bytes
    ("collections", "OrderedDict"): _ordered,
    ("numpy", "dtype"): _make_dtype,
    ("numpy", "ndarray"): _NDARRAY,
}
for _module in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _ADMITTED[f"{_module}.multiarray", "_reconstruct"] = _make_array
    _ADMITTED[f"{_module}.multiarray", "scalar"] = _make_scalar
    _ADMITTED[f"{_module}.numeric", "_frombuffer"] = _make_from_buffer
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    _ADMITTED[_module, "set"] = _set
    _ADMITTED[_module, "bytes"] = _bytes
    _ADMITTED[_module, "bytearray"] = _bytearray


class _Unpickler(pickle._Unpickler):
    """Python's own one: that in C makes room for as many objects as the file says, 16 GB in five bytes."""

    refused: str | None = None
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def _bounded_bytearray(self) -> None:
        """As load_bytearray8, which makes room before it reads."""
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]  # the stubs lack what it does inside
        self.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = _bounded_bytearray

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(self.refused) from None


def load_plain(file: BinaryIO, path: str | Path) -> Any:
    """The content of an open pickle file.

    Raises:
        CimError: truncated, not a pickle, or naming anything but arrays and plain containers.
    """
    unpickler = _Unpickler(file, encoding="latin1")
    try:
        return _plain(unpickler.load(), {})
    except Exception as error:  # a damaged program can fail in any way; nothing of ours runs inside
        if unpickler.refused is not None:
            raise CimError(
                "pickle refused, it asks for more than arrays and plain containers",
                path=path,
                found=unpickler.refused,
                fix="get the file from its original source; never open it with pickle.load",
            ) from None
        reason = str(error) or type(error).__name__
        raise CimError(
            "damaged or foreign pickle", path=path, found=reason.replace("\n", " "), fix="download the file again"
        ) from None


def _plain(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """The same containers with ordinary arrays; ``seen`` keeps shared parts shared (and their ids alive)."""
    if not isinstance(value, (_Array, list, dict, tuple)):
        if isinstance(value, _Dtype) or value is _NDARRAY or callable(value):
            raise pickle.UnpicklingError("a class where data should be")
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    result: Any
    if isinstance(value, tuple):
        result = tuple(_plain(part, seen) for part in value)
    else:
        result = value.array if isinstance(value, _Array) else value
    seen[id(value)] = value, result
    if isinstance(result, dict):
        for key in result:
            result[key] = _plain(result[key], seen)
    elif isinstance(result, list):
        result[:] = [_plain(part, seen) for part in result]
    elif isinstance(result, np.ndarray) and result.dtype.kind == "O":
        for index in np.ndindex(result.shape):
            result[index] = _plain(result[index], seen)
    return result
