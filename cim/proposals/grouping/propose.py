"""Proposals without training: superpixels merged in several ways, ranked by how much they look like objects.

In the line of Selective Search (IJCV 2013: many complementary groupings) and MCG (CVPR 2014: hierarchies of
strong contours). The ImageNet trunk that the project needs anyway can join in as a cue; no mask is ever learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cim.core.regions import RegionSet
from cim.proposals.frame import enlarge, shrink
from cim.proposals.grouping.cuts import cut_apart
from cim.proposals.grouping.deep import FeatureMaps
from cim.proposals.grouping.hierarchy import distinct, grow_trees, tree_regions
from cim.proposals.grouping.ranking import diverse_order, object_cues, objectness
from cim.proposals.grouping.superpixels import Superpixels, make_superpixels


@dataclass(frozen=True)
class GroupingOptions:
    """Settings of :func:`propose`.

    Attributes:
        max_proposals: the best n are kept.
        side: long side at which the photo is segmented, pixels.
        superpixels: segments at most.
        max_iou: a region that overlaps a better one more than this is a duplicate.
        min_area, max_area: size limits, fractions of the picture.
        cuts: so many of the best regions are cut in two as well; 0: none.
    """

    max_proposals: int = 1000
    side: int = 256
    superpixels: int = 500
    max_iou: float = 0.9
    min_area: float = 0.0008
    max_area: float = 0.9
    cuts: int = 0


_DEFAULT = GroupingOptions()


def propose(image: np.ndarray, options: GroupingOptions = _DEFAULT, features: FeatureMaps | None = None) -> RegionSet:
    """Regions of a photo that may be objects, best first.

    Args:
        image: uint8 [H, W, 3] RGB.
        options: see :class:`GroupingOptions`.
        features: deep feature maps of the photo (:class:`cim.proposals.grouping.deep.TrunkFeatures`); None: colour and
            texture only.

    Returns:
        at most ``options.max_proposals`` regions in the photo's full frame, ``scores`` falling; none when the photo
        has no structure (one colour, a single pixel).

    Raises:
        ValueError: the image is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be uint8 [H, W, 3]; found {image.dtype} {list(image.shape)}")
    small = shrink(image, options.side)
    if small.size == 3:  # a single pixel has no neighbours to be grouped with
        return RegionSet(np.zeros(image.shape[:2], np.int32), np.zeros((0, 1), bool))
    sp = make_superpixels(small, options.superpixels, () if features is None else features(image))
    trees = grow_trees(sp)
    regions = np.concatenate([np.zeros((0, len(sp)), bool), *(tree_regions(tree) for tree in trees)])
    regions = distinct(_of_fair_size(sp, regions, options))
    score = objectness(object_cues(sp, regions))
    if options.cuts:
        best = np.argsort(-score, kind="stable")[: options.cuts]
        halves = _of_fair_size(sp, cut_apart(sp, regions[best]), options)
        known = len(regions)
        regions = distinct(np.concatenate([regions, halves]))
        score = np.concatenate([score, objectness(object_cues(sp, regions[known:]))])
    order = diverse_order(sp, regions, score, options.max_iou, options.max_proposals)
    atoms = enlarge(sp.labels, image.shape[:2])
    return RegionSet(atoms, regions[order], score[order].astype(np.float32)).compact()


def _of_fair_size(sp: Superpixels, regions: np.ndarray, options: GroupingOptions) -> np.ndarray:
    share = regions @ sp.areas / sp.areas.sum()
    return regions[(share >= options.min_area) & (share <= options.max_area)]
