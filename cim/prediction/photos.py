"""What photos come as: a file, a picture, an array, a tensor; a list, a folder, a pattern, an iterator of these."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.datasets.photo_files import PHOTO_SUFFIXES, photos_in

Photo = Any
"""File (str or Path), PIL image, uint8 array [H, W, 3] (or [H, W], grey), tensor [3, H, W] (or [1, H, W])."""


def several(source: Any) -> Iterable[Photo] | None:
    """The photos that ``source`` stands for; None: it is a single one.

    A folder stands for the photos directly in it, a pattern (``holiday/**/*.jpg``) for those that it fits, both sorted;
    an array [B, H, W, 3] and a tensor [B, 3, H, W] for B; a list may hold any of these; an iterator stays as it is.

    Raises:
        CimError: a folder or pattern without photos.
    """
    if isinstance(source, str | Path):
        return _named(Path(source))
    if isinstance(source, Image.Image):
        return None
    if isinstance(source, np.ndarray) or is_tensor(source):
        return source if source.ndim == 4 else None
    if isinstance(source, Sequence):
        parts = [(part, several(part)) for part in source]
        return [photo for part, inside in parts for photo in ([part] if inside is None else inside)]
    return source if isinstance(source, Iterable) else None


def _named(path: Path) -> list[Path] | None:
    if path.is_dir():
        found = photos_in(path)
    elif not path.exists() and any(letter in str(path) for letter in "*?["):
        start = Path(path.anchor)
        files = sorted(start.glob(str(path.relative_to(start))))
        found = [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file()]
    else:
        return None
    if not found:
        raise CimError("no photos here", path=path, expected=", ".join(PHOTO_SUFFIXES))
    return found


def path_of(photo: Photo) -> Path | None:
    """The file that a photo is, if it is one."""
    return Path(photo) if isinstance(photo, str | Path) else None


def as_photo(photo: Photo, bgr: bool = False) -> np.ndarray:
    """uint8 [H, W, 3] RGB of a single photo.

    Args:
        photo: see :data:`Photo`; floating tensors hold 0..1.
        bgr: arrays and tensors hold blue, green, red, as OpenCV's do.

    Raises:
        CimError: unreadable file, or an array or tensor of another shape or type.
    """
    if isinstance(photo, str | Path):
        return read_photo(photo)
    if isinstance(photo, Image.Image):
        return np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
    array = _pixels(photo) if is_tensor(photo) else np.asarray(photo)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise CimError("not a photo", expected="uint8 [H, W, 3]", found=f"{array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array[:, :, ::-1] if bgr else array)


def is_tensor(value: Any) -> bool:
    """Is it a tensor of PyTorch? There is none as long as nobody has loaded that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _pixels(tensor: Any) -> np.ndarray:
    """Tensor [3, H, W] or [1, H, W], uint8 or floating 0..1 -> uint8 [H, W, 3]."""
    array = tensor.detach().cpu()
    array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype not in (np.uint8, np.float32):
        expected = "uint8, or floating 0..1, [3, H, W]"
        raise CimError("not a photo", expected=expected, found=f"{tensor.dtype} {list(tensor.shape)}")
    if array.dtype == np.float32:
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also where a value is not a number
            found = f"{low:.3g} to {high:.3g}"
            raise CimError("not a photo", expected="floating tensors of 0..1, not normalised", found=found)
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    return np.repeat(array.transpose(1, 2, 0), 3 // array.shape[0], axis=2)
