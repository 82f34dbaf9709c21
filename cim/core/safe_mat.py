"""MATLAB files (5 to 7.2) from anywhere: their structure is checked before SciPy reads them.

SciPy trusts the type numbers in a file and looks up memory with them; a forged one ends the process. And a few kB can
unpack to any size.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

_HEADER = 128  # bytes: text, version, byte order
_NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}  # types of elements that hold numbers or text
_MATRIX, _COMPRESSED = 14, 15
_DEEPEST = 20  # matrices in matrices
MOST = 2**30  # bytes unpacked


def load_mat(path: str | Path, names: list[str]) -> dict[str, Any]:
    """The variables of these names, as ``scipy.io.loadmat`` gives them.

    Raises:
        FileNotFoundError: no such file.
        NotImplementedError: a file of MATLAB 7.3.
        Exception: any other for a damaged file; SciPy raises what it likes.
    """
    from scipy.io import loadmat  # slow to import, needed here only

    return loadmat(io.BytesIO(checked_mat(Path(path).read_bytes())), variable_names=names)


def checked_mat(data: bytes) -> bytes:
    """The same file unpacked, after a look at every element: is it of a known type, and within the one around it?

    Bytes too many behind a variable, which COB's COCO files have, are left out.

    Raises:
        NotImplementedError: a file of MATLAB 7.3, which is another format.
        ValueError, struct.error, zlib.error: a damaged file, or one that unpacks to more than :data:`MOST`.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("no header of a MATLAB file")
    if data[124:126] in (b"\x00\x02", b"\x02\x00") and data[:10] == b"MATLAB 7.3":
        raise NotImplementedError("MATLAB 7.3")
    parts, room, at = [data[:_HEADER]], MOST, _HEADER
    while len(data) - at >= 8:
        kind, size = struct.unpack_from(f"{order}II", data, at)
        part = data[at + 8 : at + 8 + size]
        if len(part) < size:
            raise ValueError("a variable beyond the end of the file")
        at += 8 + size
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(part, room)
            room -= len(unpacked)
            kind, size = struct.unpack_from(f"{order}II", unpacked)
            part = unpacked[8 : 8 + size]
        if kind != _MATRIX or len(part) < size:
            raise ValueError(f"a variable that is no matrix, or not whole, or of more than {MOST >> 20} MB")
        _check_elements(memoryview(part), order, 0)
        parts += [struct.pack(f"{order}II", kind, size), part]
    return b"".join(parts)


def _check_elements(data: memoryview, order: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("matrices in matrices in matrices")
    at = 0
    while len(data) - at >= 8:
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # a small element: both numbers in one, and the data in the place of the second
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError("a small element that is large")
        else:
            begin = at + 8
        if size > len(data) - begin:
            raise ValueError("an element beyond the end of its matrix")
        if kind == _MATRIX:
            _check_elements(data[begin : begin + size], order, depth + 1)
        elif kind not in _NUMBERS:
            raise ValueError(f"an element of type {kind}")
        at += 8 if begin == at + 4 else 8 + -(-size // 8) * 8
