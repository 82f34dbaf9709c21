"""Photographs from disk as RGB arrays, whatever they were saved as."""

from __future__ import annotations

import logging
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cim.core.errors import CimError

log = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
_FIX = "replace the file, or take it out of the data set"


def read_photo(path: str | Path) -> np.ndarray:
    """A photo, upright (EXIF), as RGB.

    Grey and palette pictures are spread over three channels, CMYK is converted, transparent pixels are laid on
    white, and 16-bit grey is scaled to 8 bits (values above 65,535 and floating values: minimum to maximum).

    Returns:
        uint8 [H, W, 3].

    Raises:
        CimError: missing, not a picture, truncated, or too large for Pillow's safety limit.
    """
    with _opened(path) as image:
        try:
            image.load()
            if _orientation(image) is not None:
                image = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_as_rgb(image))
        except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise
            raise CimError("damaged photo", path=path, found=error, fix=_FIX) from error


def photo_size(path: str | Path) -> tuple[int, int]:
    """(H, W) in pixels of the upright photo, from the header alone.

    Raises:
        CimError: missing or not a picture.
    """
    with _opened(path) as image:
        width, height = image.size
        # PngImageFile.getexif would decode the whole picture first; the header's EXIF block is enough.
        # Pillow gives the upright size of a TIFF by itself.
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int | None:
    try:
        return Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # a damaged block says nothing
        return None


def _opened(path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd EXIF blocks are no news to the user
            return Image.open(path)
    except FileNotFoundError:
        raise CimError("missing photo", path=path, fix="check the data set's root folder") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CimError("not a readable photo", path=path, found=error, fix=_FIX) from error


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _DEEP_MODES:
        grey = _eight_bits(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth [H, W] to uint8."""
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        edges = (finite.min(), finite.max()) if finite.size else (0, 0)
        values = np.nan_to_num(values, nan=edges[0], neginf=edges[0], posinf=edges[1])
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "ui" and low >= 0 and high < 2**16:
        return (values.astype(np.uint32) >> (8 if high > 255 else 0)).astype(np.uint8)
    scale = 255.0 / (high - low) if high > low else 0.0
    return ((values.astype(np.float64) - low) * scale).astype(np.uint8)
