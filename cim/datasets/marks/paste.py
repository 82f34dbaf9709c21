"""Small masks put where they belong in a photo: a PNG, as LabelMe keeps them, or run lengths, as CVAT does."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def png_mask(text: str, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of a PNG in base64, whatever is not black in it.

    Args:
        corner: x, y of its first pixel in the photo.
        size: (H, W) of the photo.

    Raises:
        ValueError: no such PNG, or one that leaves the photo.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if image.height > size[0] or image.width > size[1]:  # before it is unpacked
                raise ValueError(f"mask of {image.size} in a photo of {size[::-1]} (W, H)")
            return _pasted(np.asarray(image.convert("L")) > 0, corner, size)
    except (OSError, SyntaxError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise ValueError(f"no PNG in base64 ({type(error).__name__})") from None


def runs_mask(text: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of run lengths row by row, of background and mask in turn, parted by commas.

    Args:
        box: left, top, width, height of what they fill.
        size: (H, W) of the photo.

    Raises:
        ValueError: no such run lengths, or a box that leaves the photo.
    """
    left, top, width, height = box
    _check_inside(left, top, width, height, size)  # before room is made for runs
    runs = [int(run) for run in text.split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"runs that do not fill {width} x {height}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return _pasted(flat.reshape(height, width), (left, top), size)


def _pasted(small: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    x, y = corner
    height, width = small.shape
    _check_inside(x, y, width, height, size)
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = small
    return mask


def _check_inside(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> None:
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[1] or y + height > size[0]:
        found = f"{width} x {height} at {x}, {y}, in {size[1]} x {size[0]}"
        raise ValueError(f"mask that leaves the photo ({found})")
