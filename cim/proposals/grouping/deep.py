"""Feature maps of an ImageNet trunk as a cue for grouping: trained on image labels, never on masks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from cim.core.errors import CimError
from cim.models.backbones import TIMM, Backbone, build_backbone

FeatureMaps = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Photo uint8 [H, W, 3] -> maps float32 [D, h, w], fine to coarse; an empty sequence: no cue."""

_TAPS = {  # the last block at strides 8, 16 and 32
    "mobilenet_v2": ("features.6", "features.13", "features.17"),
    "resnet50_c5": ("layer2", "layer3", "layer4"),
}
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet
_STD = np.array([0.229, 0.224, 0.225], np.float32)


class TrunkFeatures:
    """Maps of a trunk at strides 8, 16 and 32, of a transformer at three depths; a :data:`FeatureMaps`.

    Args:
        name: "mobilenet_v2", "resnet50_c5", or "timm:NAME".
        weights: a file; None: the library's own, downloaded once; "none": random.
        side: long side that photos are resized to, pixels.
        device: torch device.

    Raises:
        CimError: unknown name, or weights that do not fit.
    """

    def __init__(
        self, name: str = "mobilenet_v2", weights: str | Path | None = None, side: int = 640, device: str = "cpu"
    ) -> None:
        if name not in _TAPS and not name.startswith(TIMM):
            raise CimError("no grouping cue from this backbone", expected=f"{', '.join(_TAPS)}, {TIMM}NAME", found=name)
        self.side, self.device = side, device
        try:
            self._trunk = build_backbone(name, weights, freeze="all").eval().to(device)
        except CimError as error:
            if weights is not None:
                raise
            fix = "connect to the internet, give proposals.weights (--weights), or set proposals.deep_features=false"
            raise CimError(error.message, found=error.found, fix=fix) from error
        self._maps_of = _timm_maps if name.startswith(TIMM) else _tapped(self._trunk, _TAPS[name])
        self._step = self._trunk.stride

    def __call__(self, photo: np.ndarray) -> list[np.ndarray]:
        """uint8 [H, W, 3] -> float32 maps [D, h, w], fine to coarse."""
        scale = self.side / max(photo.shape[:2])
        height, width = (max(1, round(length * scale / self._step)) * self._step for length in photo.shape[:2])
        small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        pixels = (small.astype(np.float32) / 255 - _MEAN) / _STD
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).to(self.device)
        with torch.inference_mode():
            return [one[0].float().cpu().numpy() for one in self._maps_of(self._trunk, image)]


def _timm_maps(trunk: Backbone, image: torch.Tensor) -> Sequence[torch.Tensor]:
    from cim.models.timm_trunks import cue_depths, depths  # opens timm, which other trunks do without

    maps = depths(trunk.body, trunk.prepared(image), cue_depths(trunk.body))
    return [*maps, *maps[-1:] * (3 - len(maps))]  # grouping looks at three, whatever the trunk has


def _tapped(trunk: Backbone, taps: Sequence[str]) -> Callable[[Backbone, torch.Tensor], Sequence[torch.Tensor]]:
    """What some layers give; one image at a time, though threads may ask for several at once."""
    seen: dict[str, torch.Tensor] = {}
    alone = threading.Lock()
    layers = dict(trunk.body.named_modules())
    for tap in taps:
        layers[tap].register_forward_hook(lambda _layer, _inputs, out, tap=tap: seen.update({tap: out}))

    def maps(trunk: Backbone, image: torch.Tensor) -> Sequence[torch.Tensor]:
        with alone:
            trunk(image)
            return [seen.pop(tap) for tap in taps]

    return maps
