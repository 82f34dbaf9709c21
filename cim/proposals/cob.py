"""COB proposals (Convolutional Oriented Boundaries) from the ``.mat`` files their authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.regions import RegionSet
from cim.core.safe_mat import load_mat
from cim.storage.published import image_id_of

KEY = "maskmat"
_MAT_FIX = "download the file again"


def read_cob(path: str | Path, size: tuple[int, int] | None = None, allow_empty: bool = False) -> RegionSet:
    """Proposals of one image; row i of the file is row i of the result.

    Both published layouts are read: VOC's object array [N, 1] of masks H x W, COCO's numeric array [N, H, W].

    Args:
        path: the ``.mat`` file.
        size: (H, W) of the photo, checked against the masks; None: not checked.
        allow_empty: keep masks without a pixel (box 0, 0, 0, 0) instead of refusing the file. They are never
            dropped: published grids, boxes and first labels refer to proposals by row.

    Raises:
        CimError: missing, damaged or MATLAB 7.3 file, no ``maskmat``, masks of unequal or wrong size, an empty mask.
    """
    path = Path(path)
    masks = _as_masks(_load(path), path, size)
    if size is not None and masks.shape[1:] != tuple(size):
        raise CimError(
            "masks are not of the photo's size",
            path=path,
            expected=f"{size[0]} x {size[1]} (H x W)",
            found=f"{masks.shape[1]} x {masks.shape[2]}",
            fix="take the file that was made from this photo",
        )
    regions = RegionSet.from_masks(masks)
    if not allow_empty and not regions.areas.all():
        raise CimError(
            "mask without a pixel",
            path=path,
            found=f"mask {int(np.flatnonzero(regions.areas == 0)[0])} of {len(regions)} (counted from 0)",
            fix="mend the file, or pass --allow-empty to keep such masks as they are",
        )
    return regions


def cob_files(folder: str | Path) -> dict[int | str, Path]:
    """All ``.mat`` files of a folder by image id, sorted by name.

    Names: ``2007_000100.mat`` (VOC), ``COCO_train2014_<12 digits>.mat``, ``COCO_val2014_<12 digits>.mat`` and
    ``<12 digits>.mat`` (COCO); any other name is its own id.

    Raises:
        CimError: no such folder, no ``.mat`` file in it, or two files for one image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CimError("no folder of COB files", path=folder, fix="download COB's proposals or name their folder")
    files: dict[int | str, Path] = {}
    for path in sorted(folder.glob("*.mat")):
        image_id = image_id_of(path.stem)
        if image_id in files:
            raise CimError(
                f"two files for image {image_id}", path=path, found=files[image_id].name, fix="remove one of them"
            )
        files[image_id] = path
    if not files:
        raise CimError("no .mat file here", path=folder, fix="download COB's proposals or name their folder")
    return files


def _load(path: Path) -> np.ndarray:
    try:
        content = load_mat(path, [KEY])
    except FileNotFoundError:
        raise CimError("no COB file for this image", path=path) from None
    except NotImplementedError:
        raise CimError(
            "MATLAB 7.3 file", path=path, expected="MATLAB 5 to 7.2", fix="in MATLAB: save(file, 'maskmat', '-v7')"
        ) from None
    except Exception as error:  # zlib, struct, value, type, end of file: a damaged file can fail in any way
        raise CimError("damaged .mat file", path=path, found=_one_line(error), fix=_MAT_FIX) from error
    if KEY not in content:
        raise CimError(f".mat file without {KEY}", path=path, found=_variables(path), fix=_MAT_FIX)
    return content[KEY]


def _variables(path: Path) -> str:
    from scipy.io import whosmat

    try:
        names = [name for name, _, _ in whosmat(path)]
    except Exception as error:  # as above
        return _one_line(error)
    return f"variables {', '.join(names)}" if names else "an empty file"


def _as_masks(value: np.ndarray, path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """[N, H, W], column-major as MATLAB stores them."""
    if value.size == 0:
        if size is None:
            raise CimError("no proposals in this file", path=path, fix="name the photo's size or leave the image out")
        return np.zeros((0, *size), bool)
    if value.dtype != object:
        if value.ndim != 3:
            raise CimError(f"{KEY} has another layout", path=path, expected="[N, H, W]", found=list(value.shape))
        return value
    cells = [np.asarray(cell) for cell in value.ravel()]
    shapes = {cell.shape for cell in cells}
    if len(shapes) > 1 or len(cells[0].shape) != 2:
        raise CimError("masks of different sizes in one file", path=path, found=sorted(shapes)[:3], fix=_MAT_FIX)
    turned = np.empty((len(cells), cells[0].shape[1], cells[0].shape[0]), bool)
    for index, cell in enumerate(cells):
        turned[index] = cell.T != 0
    return turned.transpose(0, 2, 1)


def _one_line(error: Any) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def write_cob_mat(path: str | Path, regions: RegionSet, layout: Literal["voc", "coco"] = "voc") -> None:
    """Proposals in a published layout, which the published program and :func:`read_cob` read, written atomically.

    voc: ``maskmat`` is an object array [N, 1] of uint8 H x W. coco: a uint8 array [N, H, W].
    """
    from scipy.io import savemat  # slow to import, needed here only

    masks = regions.masks().view(np.uint8)
    if layout == "voc":
        cells = np.empty((len(masks), 1), object)
        for index, mask in enumerate(masks):
            cells[index, 0] = mask
        masks = cells
    with atomic(path) as temporary, open(temporary, "wb") as file:
        savemat(file, {KEY: masks}, do_compression=True)
