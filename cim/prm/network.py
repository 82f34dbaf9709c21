"""The response network (PRM, METHOD section 2): one map per class, learned from tags alone, and its peaks."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cim.core.errors import CimError
from cim.engine.checkpoints import load_checkpoint
from cim.models.backbones import build_backbone
from cim.models.preprocess import normalise
from cim.models.weights import read_weights

logger = logging.getLogger(__name__)

Score = Literal["peaks", "top", "mean"]
PUBLISHED_TRUNK = "resnet50_c5"
# The published trunk is a plain sequence: these parts of a ResNet-50, by position.
_PUBLISHED_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_TRAIN_FIX = "cim prm CONFIG, or set prm.checkpoint"


class ResponseNet(nn.Module):
    """A trunk, a 1x1 convolution to C response maps, and their enlargement.

    Attributes:
        image_size: side of the square that photos are squashed to, pixels.
        score: the image score is the mean of a map's peaks, of its highest tenth ("top") or of all of it ("mean").
        upsample: response maps are enlarged by this factor (bilinear, align_corners).
        num_classes: C.
        classes: their names; empty when the weights file did not say.
    """

    def __init__(
        self,
        trunk: nn.Module,
        channels: int,
        num_classes: int,
        *,
        upsample: int = 8,
        score: Score = "peaks",
        image_size: int = 448,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.upsample, self.image_size, self.score = upsample, image_size, score
        self.num_classes, self.classes = num_classes, tuple(classes)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised float [B, 3, s, s] -> response maps [B, C, h, w] (448 pixels: 112 x 112)."""
        return self.maps(self.trunk(image))

    def maps(self, features: Tensor) -> Tensor:
        """Trunk features [B, D, h', w'] -> response maps [B, C, h' * upsample, w' * upsample]."""
        return self.enlarge(self.head(features).float())

    def enlarge(self, maps: Tensor) -> Tensor:
        """Maps as the head gives them, times ``upsample``."""
        return functional.interpolate(maps, scale_factor=self.upsample, mode="bilinear", align_corners=True)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Score of every class [B, C] from response maps."""
        return _SCORES[self.score](maps)


@dataclass(frozen=True)
class Peaks:
    """Peaks of one image.

    Attributes:
        index: int64 [P, 3], class 0..C-1, row and column on the response map.
        values: float32 [P], the map there.
        grid: (h, w) of the response map.
    """

    index: np.ndarray
    values: np.ndarray
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.index.shape != (len(self.values), 3):
            raise ValueError(f"index must be [{len(self.values)}, 3]; found {list(self.index.shape)}")

    def __len__(self) -> int:
        return len(self.values)


def peak_mask(maps: Tensor) -> Tensor:
    """Which places are peaks: first maximum of their 3x3 window and no less than the map's (lower) median.

    On a plateau of equal values only the first place in reading order is a peak, so that every finite map has one.

    Args:
        maps: [B, C, h, w].

    Returns:
        bool [B, C, h, w].
    """
    height, width = maps.shape[-2:]
    padded = functional.pad(maps.detach(), (1, 1, 1, 1), value=float("-inf"))
    _, where = functional.max_pool2d(padded, 3, stride=1, return_indices=True)
    # Indices count in the padded map; the window's own middle is at (row + 1, column + 1) of it.
    rows, columns = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    middle = (rows[:, None] + 1) * (width + 2) + columns + 1
    median = maps.detach().flatten(2).median(2).values[..., None, None]
    return (where == middle) & (maps.detach() >= median)


def class_scores(maps: Tensor) -> Tensor:
    """Image score of every class [B, C]: the mean of its map at its peaks; gradients flow to the peaks alone."""
    peaks = peak_mask(maps)
    return (maps * peaks).sum((2, 3)) / peaks.sum((2, 3)).clamp(min=1)


def top_scores(maps: Tensor, share: float = 0.1) -> Tensor:
    """Image score of every class [B, C]: the mean of the highest ``share`` of its map [B, C, h, w].

    A trunk that starts from nothing has no peaks worth the name yet: its map must be allowed to learn at many places.
    """
    values = maps.flatten(2)
    return values.topk(max(round(share * values.shape[2]), 1), 2).values.mean(2)


def mean_scores(maps: Tensor) -> Tensor:
    """Image score of every class [B, C]: the mean of its map, as a network fitted to mean features has it."""
    return maps.mean((2, 3))


_SCORES = {"peaks": class_scores, "top": top_scores, "mean": mean_scores}


def find_peaks(maps: Tensor, classes: Sequence[int], threshold: float = 10.0) -> Peaks:
    """Peaks above ``threshold`` of each class, or else its single highest peak (METHOD section 3).

    Args:
        maps: [C, h, w] of one image.
        classes: which to look at, 0..C-1; none gives no peaks.

    Returns:
        the peaks, by class, row and column.
    """
    chosen = torch.as_tensor(sorted(set(classes)), dtype=torch.int64, device=maps.device)
    grid = (int(maps.shape[1]), int(maps.shape[2]))
    if not len(chosen):
        return Peaks(np.zeros((0, 3), np.int64), np.zeros(0, np.float32), grid)
    maps = maps.detach()[chosen]
    peaks = peak_mask(maps[None])[0]
    strong = peaks & (maps > threshold)
    highest = maps.masked_fill(~peaks, float("-inf")).flatten(1).argmax(1)
    fallback = torch.zeros_like(peaks).flatten(1).scatter_(1, highest[:, None], True).view_as(peaks) & peaks
    kept = torch.where(strong.flatten(1).any(1)[:, None, None], strong, fallback)
    index = kept.nonzero()
    values = maps[kept].float().cpu().numpy()
    index[:, 0] = chosen[index[:, 0]]
    return Peaks(index.cpu().numpy(), values, grid)


def prepare_photo(photo: np.ndarray, side: int) -> Tensor:
    """uint8 [H, W, 3] squashed to a square and normalised -> float32 [3, side, side]."""
    square = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
    return normalise(np.array(square))


@torch.inference_mode()
def response_maps(net: ResponseNet, photo: np.ndarray) -> np.ndarray:
    """Response maps float32 [C, h, w] of a photo uint8 [H, W, 3]; ``net`` in eval mode."""
    device = next(net.parameters()).device
    return net(prepare_photo(photo, net.image_size)[None].to(device))[0].float().cpu().numpy()


# ---------------------------------------------------------------------- weights


def load_response_net(path: str | Path, num_classes: int | None = None, *, image_size: int = 448) -> ResponseNet:
    """A trained response network in eval mode, on the CPU.

    Args:
        path: ``final.pth`` of ``cim prm``, or a published file (``0.features.*``, ``0.classifier.0.*``).
        num_classes: how many classes are expected; None: any.
        image_size: for published files, which do not say; ours do.

    Raises:
        CimError: missing, damaged or foreign file, or one for another number of classes.
    """
    if not Path(path).is_file():
        raise CimError("no trained response network", path=path, fix=_TRAIN_FIX)
    tensors = read_weights(path)
    published = published_names(tensors)
    net = _empty_net(published, image_size) if published else _ours(path)
    if num_classes is not None and net.num_classes != num_classes:
        raise CimError(
            "response network for other classes", path=path, expected=num_classes, found=net.num_classes, fix=_TRAIN_FIX
        )
    try:
        net.load_state_dict(published or tensors)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise CimError("weights do not fit the response network", path=path, found=problem) from error
    return net.eval()


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Published names (``[module.][0.]features.4.0.conv1.weight``) as ours; None when these are not such weights."""
    pattern = re.compile(r"(?:module\.)?(?:0\.)?(features|classifier)\.(\d+)\.(.+)")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = pattern.fullmatch(name)
        if match is None or (match[1] == "features" and int(match[2]) >= len(_PUBLISHED_PARTS)):
            return None
        part = f"trunk.body.{_PUBLISHED_PARTS[int(match[2])]}" if match[1] == "features" else "head"
        renamed[f"{part}.{match[3]}"] = tensor
    return renamed if "head.weight" in renamed else None


def build_response_net(
    backbone: str,
    num_classes: int,
    *,
    weights: str | Path | None = None,
    frozen_trunk: bool = False,
    train_norms: bool = True,
    upsample: int = 8,
    score: Score = "peaks",
    image_size: int = 448,
    classes: Sequence[str] = (),
) -> ResponseNet:
    """An untrained response network on any trunk of the registry.

    Args:
        weights: see :func:`cim.models.backbones.build_backbone`.
        frozen_trunk: train the last layer alone.
        train_norms: batch norms learn and use batch statistics (published: batches of 16 photos).

    Raises:
        CimError: unknown trunk, or weights that do not fit.
    """
    trunk = build_backbone(
        backbone, weights, freeze="all" if frozen_trunk else "none", train_norms=train_norms and not frozen_trunk
    )
    return ResponseNet(
        trunk, trunk.channels, num_classes, upsample=upsample, score=score, image_size=image_size, classes=classes
    )


def _empty_net(tensors: dict[str, Tensor], image_size: int) -> ResponseNet:
    count = len(tensors["head.weight"])
    return build_response_net(PUBLISHED_TRUNK, count, weights="none", image_size=image_size)


def _ours(path: str | Path) -> ResponseNet:
    meta: dict[str, Any] = load_checkpoint(path, lazy=True)["meta"]
    if meta.get("kind") != "prm":
        raise CimError("checkpoint of another network", path=path, expected="prm", found=meta.get("kind"))
    settings, classes = meta["settings"], meta["classes"]
    return build_response_net(
        settings["backbone"],
        len(classes),
        weights="none",
        upsample=settings["upsample"],
        score=settings.get("score", "peaks"),
        image_size=settings["image_size"],
        classes=classes,
    )
