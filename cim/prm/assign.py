"""First pseudo labels from peaks or points (AGPL and CIM-p, METHOD section 3), in atom space."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.prm.network import Peaks


def assign_from_peaks(
    regions: RegionSet,
    peaks: Peaks,
    *,
    mean_mask_threshold: float = 0.7,
    iou: float = 0.5,
    background: str = "touching",
) -> Clusters:
    """First labels from the peaks of one image; a stronger peak overwrites a weaker one.

    Peaks of equal value keep their order (class, row, column). No peak: everything stays unlabelled.

    Args:
        regions: N proposals of the photo, H x W.
        peaks: places on a response map of any size, stretched over the photo.
    """
    class_ids, overlap = stand_ins_of_peaks(regions, peaks, mean_mask_threshold)
    return label_by_overlap(class_ids, overlap, iou=iou, background=background)


def stand_ins_of_peaks(regions: RegionSet, peaks: Peaks, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes 1..C, int64 [P], and IoU [P, N] of what stands in for each peak with every proposal; weak peaks first."""
    order = np.argsort(peaks.values, kind="stable")
    class_ids, rows, columns = peaks.index[order].T
    height, width = regions.size
    rows, columns = rows * height // peaks.grid[0], columns * width // peaks.grid[1]
    return class_ids + 1, regions.iou_with(stand_ins(regions, rows, columns, threshold))


def assign_from_points(
    regions: RegionSet,
    points: np.ndarray,
    *,
    mean_mask_threshold: float = 0.7,
    iou: float = 0.5,
    background: str = "touching",
) -> Clusters:
    """First labels from annotated points, a later one overwriting an earlier one.

    Args:
        points: float [P, 3], x and y in pixels of the photo, class 0..C-1 (see :func:`read_points`).

    Raises:
        CimError: a point outside the photo.
    """
    columns, rows, class_ids = np.trunc(points).astype(np.int64).T
    height, width = regions.size
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    if outside.any():
        x, y, _ = points[outside.argmax()]
        raise CimError("point outside the photo", expected=f"x < {width}, y < {height}", found=f"x {x:g}, y {y:g}")
    return assign(
        regions, class_ids + 1, rows, columns, mean_mask_threshold=mean_mask_threshold, iou=iou, background=background
    )


def assign(
    regions: RegionSet,
    class_ids: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    mean_mask_threshold: float,
    iou: float,
    background: str = "touching",
) -> Clusters:
    """First labels from P places of known class, a later one overwriting an earlier one.

    Every place keeps its cluster number (its position, from 1) even where it labels nothing: when no proposal
    covers it, or when later ones overwrite all that it had. The background cluster is number P + 1.

    Args:
        class_ids: int [P], 1..C.
        rows, columns: int [P], pixels of the photo.
        mean_mask_threshold: a pixel belongs to the stand-in mask when more than this share of the proposals that
            cover the place contain it.
        iou: proposals overlapping the stand-in by more than this take its class; those with less, but not
            nothing, are background unless another place claims them.
        background: "rest": those with nothing, too. What is far from every peak would else be free to become the class.
    """
    overlap = regions.iou_with(stand_ins(regions, rows, columns, mean_mask_threshold))
    return label_by_overlap(class_ids, overlap, iou=iou, background=background)


def label_by_overlap(
    class_ids: np.ndarray, overlap: np.ndarray, *, iou: float, background: str = "touching"
) -> Clusters:
    """The same from the IoU of each stand-in mask with every proposal, [P, N]."""
    places, count = overlap.shape
    result = Clusters(np.full(count, -1, np.int64), np.zeros(count, np.int64))
    if not count or not places:
        return result
    claims = overlap > iou
    claimed = claims.any(0)
    last = places - 1 - claims[::-1].argmax(0)
    rest = ~claimed if background == "rest" else ~claimed & (overlap > 0).any(0)
    result.class_ids[claimed], result.cluster[claimed] = np.asarray(class_ids)[last[claimed]], last[claimed] + 1
    result.class_ids[rest], result.cluster[rest] = 0, places + 1
    return result


def stand_ins(regions: RegionSet, rows: np.ndarray, columns: np.ndarray, threshold: float) -> np.ndarray:
    """The mask that stands in for the object at each place: the mean of the proposals there, cut at ``threshold``.

    Returns:
        bool [P, A], a selection of atoms per place; empty where no proposal covers the place.
    """
    covering = regions.members[:, regions.atoms[rows, columns]].T
    shared = covering.astype(np.float32) @ regions.members.astype(np.float32)
    # Counts are whole numbers; the division in float64 puts 7 of 10 exactly at 0.7, and so not above it.
    return shared / np.maximum(covering.sum(1), 1).astype(np.float64)[:, None] > threshold


def read_points(path: str | Path, num_classes: int) -> np.ndarray:
    """Points of one image from lines ``x y class confidence``, in file order.

    Returns:
        float64 [P, 3]: x, y in pixels, class 0..C-1; an empty file has none.

    Raises:
        CimError: missing file, a line that is not such numbers, a class that is not one.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CimError("no points for this image", path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CimError("cannot read points", path=path, found=error) from error
    points = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            x, y, class_id = (float(word) for word in line.split()[:3])
        except ValueError:
            raise CimError(
                "not a point", path=f"{path}, line {number}", expected="x y class confidence", found=line.strip()
            ) from None
        if class_id not in range(num_classes):
            raise CimError(
                "no such class", path=f"{path}, line {number}", expected=f"0..{num_classes - 1}", found=line.strip()
            )
        points.append((x, y, class_id))
    return np.array(points, np.float64).reshape(-1, 3)
