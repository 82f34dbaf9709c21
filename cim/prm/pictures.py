"""What the first stages made of a photo, as one picture: responses, peaks, what peaks saw, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import cv2
import numpy as np
import torch

from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.pictures.visualize import Colour, class_colour, shrink, side_by_side
from cim.prm.assign import assign_from_peaks
from cim.prm.evidence import PeakOptions
from cim.prm.first_labels import AssignOptions
from cim.prm.network import Peaks, ResponseNet, prepare_photo
from cim.prm.peak_response import peak_responses

_PALE = (225, 225, 235)


def explain_photo(
    net: ResponseNet,
    photo: np.ndarray,
    tags: Sequence[int],
    regions: RegionSet | None,
    classes: Sequence[str],
    *,
    peaks_of: PeakOptions,
    options: AssignOptions,
    side: int = 320,
) -> np.ndarray:
    """One row per tag: response map with peaks, peak response maps, the proposals that took the class, background.

    Args:
        net: in eval mode, on the device to use.
        photo: uint8 [H, W, 3].
        regions: its proposals; None leaves the last two panels out.
        side: long side of a panel, pixels.

    Returns:
        uint8 [h, w, 3]; a photo without tags is shown as it is.
    """
    if not len(tags):
        return shrink(photo, side)
    image = prepare_photo(photo, net.image_size).to(next(net.parameters()).device)
    with torch.inference_mode():
        maps = net(image[None])[0]
    peaks = peaks_of.find(maps, tags)
    responses = peak_responses(net, image, peaks.index)
    values = maps.float().cpu().numpy()
    labels = None if regions is None else assign_from_peaks(regions, peaks, **asdict(options))
    rows = []
    for tag in tags:
        mine = peaks.index[:, 0] == tag
        title = f"{classes[tag]}: {int(mine.sum())} peaks, highest {peaks.values[mine].max(initial=-np.inf):.1f}"
        panels = [
            (title, _with_peaks(photo, values[tag], peaks, mine)),
            ("peak responses", _with_peaks(photo, _brightened(responses[mine]), peaks, mine)),
        ]
        if regions is not None and labels is not None:
            panels += _label_panels(photo, regions, labels, tag)
        rows.append(_row([(text, shrink(panel, side)) for text, panel in panels]))
    return np.concatenate(rows)


def _label_panels(photo: np.ndarray, regions: RegionSet, labels: Clusters, tag: int) -> list[tuple[str, np.ndarray]]:
    count = len(regions)
    mine, ground = labels.class_ids == tag + 1, labels.class_ids == 0
    return [
        (f"first labels: {int(mine.sum())} of {count}", draw_share(photo, regions, mine, class_colour(tag))),
        (f"background: {int(ground.sum())}", draw_share(photo, regions, ground, _PALE)),
    ]


def draw_share(photo: np.ndarray, regions: RegionSet, chosen: np.ndarray, colour: Colour) -> np.ndarray:
    """The photo with every pixel tinted by how many of the chosen proposals (bool [N]) hold it; most: full tint."""
    share = regions.mean_mask(chosen)
    share = (share / max(share.max(initial=0), 1e-12))[regions.atoms][..., None]
    dimmed = photo * 0.45
    return (dimmed * (1 - share) + (0.35 * photo + 0.65 * np.array(colour)) * share).round().astype(np.uint8)


def draw_heat(photo: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map of any size over the photo, lowest to highest value in blue to red."""
    stretched = cv2.resize(values.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    low, high = float(stretched.min()), float(stretched.max())
    scaled = (stretched - low) * (255 / (high - low) if high > low else 0)
    heat = cv2.applyColorMap(scaled.astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return cv2.addWeighted(photo, 0.45, np.ascontiguousarray(heat), 0.55, 0)


def _with_peaks(photo: np.ndarray, values: np.ndarray, peaks: Peaks, chosen: np.ndarray) -> np.ndarray:
    picture = draw_heat(photo, values)
    (height, width), radius = photo.shape[:2], max(3, min(photo.shape[:2]) // 60)
    for _, row, column in peaks.index[chosen]:
        at = (int(column * width // peaks.grid[1]), int(row * height // peaks.grid[0]))
        cv2.circle(picture, at, radius + 1, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(picture, at, radius, (255, 255, 255), -1, cv2.LINE_AA)
    return picture


def _brightened(responses: np.ndarray) -> np.ndarray:
    """All peaks in one map: each scaled to its own highest value; the root lifts the faint parts."""
    highest = responses.max((1, 2), keepdims=True)
    smooth = [cv2.GaussianBlur(one, (0, 0), 3) for one in responses / np.maximum(highest, 1e-12)]
    return np.sqrt(np.max(smooth, axis=0))


def _row(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    pairs = [side_by_side(left[1], right[1], (left[0], right[0])) for left, right in zip(panels[::2], panels[1::2])]
    return np.concatenate(pairs, axis=1)
