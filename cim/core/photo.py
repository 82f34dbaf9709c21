"""Photographs from disk as RGB arrays, whatever they were saved as."""

from __future__ import annotations

import logging
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cim.core.errors import CimError

log = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
_FIX = "replace the file, or take it out of the data set"
# What photos come as. Pillow knows thirty more; one of them (EPS) runs another program on what the file says.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
_LARGEST = 2**29  # bytes
_MOST_PIXELS = 120_000_000  # a photo takes 8 bytes each while it is read: 1 GB
_MOST_DEEP_PIXELS = 50_000_000  # of more than 8 bits: 20 bytes each
_STRIP = 2**20  # pixels turned into RGB at once
_ODD_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def read_photo(path: str | Path) -> np.ndarray:
    """A photo, upright (EXIF), as RGB.

    Grey and palette pictures are spread over three channels, CMYK is converted, transparent pixels are laid on
    white, and 16-bit grey is scaled to 8 bits (values above 65,535 and floating values: minimum to maximum).

    Returns:
        uint8 [H, W, 3].

    Raises:
        CimError: missing, not a file, not a picture, truncated, or too large for Pillow's safety limit.
    """
    with _opened(path) as image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                if _orientation(image) is None:
                    return _as_rgb(image)
                upright = ImageOps.exif_transpose(image)
                image.close()  # one of them in memory is enough
                return _as_rgb(upright)
        except MemoryError as error:
            raise CimError("photo too large for the memory here", path=path, found=image.size, fix=_FIX) from error
        except Exception as error:  # decoders raise all sorts of things; all mean the same here
            raise CimError("damaged photo", path=path, found=_gist(error), fix=_FIX) from error


def photo_size(path: str | Path) -> tuple[int, int]:
    """(H, W) in pixels of the upright photo, from the header alone.

    Raises:
        CimError: missing, not a file or not a picture.
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
    except Exception:  # a damaged block raises all sorts of things, and says nothing
        return None


def _opened(path: str | Path) -> Image.Image:
    check_file(Path(path))
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd EXIF blocks are no news to the user
            image = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Exception as error:  # as above
        raise CimError("not a readable photo", path=path, found=_gist(error), fix=_FIX) from error
    width, height = image.size
    most = _MOST_DEEP_PIXELS if image.mode in _DEEP_MODES else _MOST_PIXELS
    if width * height > most:
        image.close()
        found = f"{width} x {height}: a decompression bomb?"
        raise CimError("photo too large", path=path, expected=f"at most {most:,} pixels", found=found, fix=_FIX)
    return image


def check_file(path: Path) -> None:
    """Before anything is opened: a named pipe would wait for ever, a device might never end.

    Raises:
        CimError: missing, empty, too large, or no file.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            target = f"a link to {path.readlink()}, which does not exist"
            raise CimError("not a readable photo", path=path, found=target, fix=_FIX) from None
        raise CimError("missing photo", path=path, fix="check the data set's root folder") from None
    except (OSError, ValueError) as error:  # a circular link, a folder that may not be entered, a 0 in the name
        raise CimError("not a readable photo", path=path, found=_gist(error), fix=_FIX) from None
    if not stat.S_ISREG(state.st_mode):
        kind = _ODD_KINDS.get(stat.S_IFMT(state.st_mode), "no file")
        raise CimError("not a readable photo", path=path, expected="a file", found=kind, fix=_FIX)
    if not state.st_size:
        raise CimError("not a readable photo", path=path, found="an empty file", fix=_FIX)
    if state.st_size > _LARGEST:
        limit, size = f"at most {_LARGEST >> 20} MB", f"{state.st_size >> 20} MB"
        raise CimError("not a readable photo", path=path, expected=limit, found=size, fix=_FIX)


def _gist(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture of a known format"  # its text repeats the path
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _as_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], strip by strip: the whole picture in another mode would take its memory several times."""
    if image.mode in _DEEP_MODES:
        grey = _eight_bits(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), _STRIP // width + 1
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if strip.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in strip.info:
            rgba = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


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
