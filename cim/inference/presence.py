"""Whether a class is in a photo at all, as the response network sees it: what a region's own score cannot know.

CIM learns to order the regions of photos whose tags are given. On a photo without tags, a region that looks a little
like a class scores a little, wherever it is; the photo as a whole often says better whether that class is there. The
score of a region times a power of that probability orders regions of different photos better (docs/RESULTS.md).
"""

from __future__ import annotations

import numpy as np
import torch

from cim.prm.fit import figure_mask, mean_where
from cim.prm.network import ResponseNet, prepare_photo


@torch.inference_mode()
def presence(net: ResponseNet, photo: np.ndarray) -> np.ndarray:
    """Probability of every class, float32 [C], 0..1.

    Of a network that was solved (``prm.fit=converge``): the mean of the class map over the photo's figure, which was
    fitted as logits; of any other, its image score.

    Args:
        net: in eval mode.
        photo: uint8 [H, W, 3], RGB.
    """
    device = next(net.parameters()).device
    features = net.trunk(prepare_photo(photo, net.image_size)[None].to(device))
    maps = net.head(features).float()
    if net.score == "mean":
        scores = mean_where(maps, figure_mask(features).float())[0]
    else:
        scores = net.image_scores(net.enlarge(maps))[0]
    return scores.sigmoid().cpu().numpy()
