"""Instance masks out of peak responses alone (PRM as a method of its own, METHOD section 2, last item)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.core.types import Instances
from cim.datasets.base import Record
from cim.inference.selection import compressed_rles, greedy_nms
from cim.prm.evidence import PeakOptions
from cim.prm.network import Peaks, ResponseNet, prepare_photo
from cim.prm.peak_response import peak_responses


@dataclass(frozen=True)
class Retrieval:
    """Constants of the retrieval, named after the PRM paper's section 3.3.

    Attributes:
        inside: a, weight of the peak response inside the mask.
        background: b, weight of the mask's pixels on background.
        background_factor: c; background is where the class map is below c times its mean.
        smallest, largest: shares of the photo; masks outside are skipped.
        contour: side of the square that thickens a mask's outline, pixels.
        nms_iou: mask IoU above which the lower of two instances goes, whatever their classes.
    """

    inside: float = 0.8
    background: float = 1e-5
    background_factor: float = 0.95
    smallest: float = 2e-5
    largest: float = 0.85
    contour: int = 5
    nms_iou: float = 0.3


def instances_of_photo(
    net: ResponseNet,
    record: Record,
    regions: RegionSet,
    peaks_of: PeakOptions,
    classes: Sequence[int] | None = None,
    constants: Retrieval = Retrieval(),
) -> Instances:
    """Everything from the photo to its instances.

    Args:
        net: in eval mode, on the device to use.
        regions: proposals of the photo.
        peaks_of: which places count as peaks.
        classes: which to look for, 0..C-1; None: those whose image score is above 0.

    Raises:
        CimError: unreadable photo, or proposals of another size.
    """
    if regions.size != record.size:
        raise CimError("proposals made for another size of the photo", expected=record.size, found=regions.size)
    image = prepare_photo(read_photo(record.path), net.image_size).to(next(net.parameters()).device)
    with torch.inference_mode():
        maps = net(image[None])
        if classes is None:
            classes = (net.image_scores(maps)[0] > 0).nonzero().flatten().tolist()
    peaks = peaks_of.find(maps[0], classes)
    responses = peak_responses(net, image, peaks.index)
    found = retrieve(regions, maps[0].float().cpu().numpy(), peaks, responses, constants)
    return as_instances(record.image_id, regions, *found)


def retrieve(
    regions: RegionSet, maps: np.ndarray, peaks: Peaks, responses: np.ndarray, constants: Retrieval = Retrieval()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The proposal of highest value for every peak, then NMS.

    Args:
        regions: N proposals of the photo.
        maps: float [C, h, w], response maps.
        peaks: P peaks on them.
        responses: float [P, s, s], their response maps.

    Returns:
        (proposal int64 [n], class int64 [n] 0..C-1, value float32 [n]), best first.
    """
    values = proposal_values(regions, maps, peaks, responses, constants)
    if not values.size or not np.isfinite(values).any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    best = values.argmax(1)
    value = values[np.arange(len(values)), best]
    overlap = regions.iou_with(regions.members[best])[:, best]
    kept, _ = greedy_nms(overlap > constants.nms_iou, value[:, None], np.isfinite(value)[:, None], None)
    return best[kept], peaks.index[kept, 0], value[kept].astype(np.float32)


def proposal_values(
    regions: RegionSet, maps: np.ndarray, peaks: Peaks, responses: np.ndarray, constants: Retrieval
) -> np.ndarray:
    """a * R[mask] + R[contour] - b * Q[mask], float64 [P, N]; -inf for proposals of unfit size.

    R is stretched over the photo and sums to 1 there, so that the value does not depend on the photo's size
    except through b, as published. Mask sums are one count per atom and a product.
    """
    if not len(regions) or not len(peaks):
        return np.full((len(peaks), len(regions)), -np.inf)
    stretched = np.stack([_stretched(response, regions.size) for response in responses])
    stretched /= np.maximum(stretched.sum((1, 2), keepdims=True), 1e-12)
    background = {
        class_id: _background(maps[class_id], regions.size, constants.background_factor)
        for class_id in np.unique(peaks.index[:, 0])
    }
    inside = _atom_sums(regions, stretched)
    empty = _atom_sums(regions, np.stack([background[class_id] for class_id in peaks.index[:, 0]]))
    members = regions.members.T.astype(np.float64)
    share = regions.areas / regions.atoms.size
    fit = (share >= constants.smallest) & (share <= constants.largest)
    values = (constants.inside * inside - constants.background * empty) @ members
    values += contour_sums(regions, stretched, constants.contour, fit)
    values[:, ~fit] = -np.inf
    return values


def contour_sums(regions: RegionSet, maps: np.ndarray, side: int, chosen: np.ndarray) -> np.ndarray:
    """Sum of P maps [P, H, W] over the outline of every chosen proposal (bool [N]), float64 [P, N].

    The outline is the morphological gradient by a square: what its dilation has and its erosion lacks. It is
    exact, at the photo's size; each mask is handled inside its own box and once for all peaks.
    """
    sums = np.zeros((len(maps), len(regions)))
    by_pixel = np.ascontiguousarray(maps.transpose(1, 2, 0))
    square, reach = np.ones((side, side), np.uint8), side // 2
    boxes = regions.boxes.astype(np.int64)
    table = regions.members.view(np.uint8)
    for number in np.flatnonzero(chosen):
        left, top = np.maximum(boxes[number, :2] - reach, 0)
        right, bottom = boxes[number, 2:] + reach
        mask = table[number][regions.atoms[top:bottom, left:right]]
        outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, square)
        sums[:, number] = by_pixel[top:bottom, left:right][outline.view(bool)].sum(0)
    return sums


def as_instances(
    image_id: int | str, regions: RegionSet, proposal: np.ndarray, class_ids: np.ndarray, score: np.ndarray
) -> Instances:
    """What :func:`retrieve` gave, as detections."""
    return Instances(
        image_id,
        regions.size,
        class_ids,
        score,
        regions.boxes[proposal],
        compressed_rles(regions, proposal),
        proposal,
    )


def _stretched(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values.astype(np.float64), size[::-1], interpolation=cv2.INTER_LINEAR)


def _background(values: np.ndarray, size: tuple[int, int], factor: float) -> np.ndarray:
    stretched = _stretched(values, size)
    return stretched < factor * stretched.mean()


def _atom_sums(regions: RegionSet, maps: np.ndarray) -> np.ndarray:
    """Sums of [P, H, W] over every atom, float64 [P, A]."""
    flat, count = regions.atoms.ravel(), regions.members.shape[1]
    return np.stack([np.bincount(flat, one.ravel(), count) for one in maps])
