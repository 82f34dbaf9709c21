"""Brush strokes as Label Studio packs them: runs of RGBA values, the last of which says how far a pixel is covered."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

WORD = 8  # bits of a value, as that program writes them


def read_brush(packed: list[int], size: tuple[int, int], words: Container[int] = (WORD,)) -> np.ndarray:
    """uint8 [H, W], how much of each pixel is covered.

    32 bits: how many values. 5 bits: bits of a value, less one. Four times 4 bits: bits of a run's length, less one, in
    each of four forms. Then blocks: a bit, whether one value repeats; 2 bits, the form; the length less one; and one
    value, or as many as the length.

    Args:
        packed: bytes.
        words: bits that a value may have, 8 at the most.

    Raises:
        ValueError: no run lengths, those of a picture of another size, or bytes that end too early.
    """
    stream = _Bits(np.unpackbits(np.array(packed, np.uint8)))
    count, word = stream.number(32), stream.number(5) + 1
    forms = [stream.number(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1] or word not in words:  # before room is made for the values
        expected = f"expected {4 * size[0] * size[1]} of {WORD} bits"
        raise ValueError(f"a brush of {count} values in a photo of {size[0]} x {size[1]}, {word} bits each, {expected}")
    values, at = np.zeros(count, np.uint8), 0
    while at < count:
        same = stream.number(1)
        length = 1 + stream.number(forms[stream.number(2)])
        if at + length > count:
            raise ValueError("a run beyond the end of the picture")
        values[at : at + length] = stream.values(1 if same else length, word)
        at += length
    return values.reshape(*size, 4)[:, :, 3]


class _Bits:
    """Numbers out of a row of bits."""

    def __init__(self, bits: np.ndarray) -> None:
        self.bits, self.at = bits, 0

    def _take(self, count: int) -> np.ndarray:
        self.at += count
        if self.at > len(self.bits):
            raise ValueError("run lengths that break off")
        return self.bits[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int("".join(map(str, self._take(width).tolist())), 2)

    def values(self, count: int, width: int) -> np.ndarray:
        """uint8 [count], of at most 8 bits each."""
        bits = self._take(count * width).reshape(count, width)
        return np.packbits(bits, axis=1)[:, 0] >> (8 - width)
