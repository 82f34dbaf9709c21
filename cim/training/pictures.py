"""Pictures of what is mined while training: the same few images again and again, to watch masks grow whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cim.core.errors import CimError
from cim.core.types import PseudoLabels, Sample
from cim.mining.losses import Criterion
from cim.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from cim.pictures.visualize import draw_instances, save_picture
from cim.training.samples import overlaps_of

logger = logging.getLogger(__name__)

_TRIES = 100  # images looked at to find some with proposals and tags


class MinedPictures:
    """Draws the last branch's pseudo ground truth of a few fixed images.

    Args:
        sample_at: (index, side, flip) -> sample or None.
        images: how many indices there are.
        criterion: mines.
        classes: C names.
        side: long side of each panel, pixels.
        device: of the network.
        panels: images per picture.
    """

    def __init__(
        self,
        sample_at: Callable[[int, int, bool], Sample | None],
        images: int,
        criterion: Criterion,
        classes: Sequence[str],
        side: int,
        device: torch.device,
        panels: int = 4,
    ) -> None:
        self.sample_at, self.images, self.criterion, self.classes = sample_at, images, criterion, tuple(classes)
        self.side, self.device, self.panels = side, device, panels
        self._samples: list[Sample] | None = None

    def save(self, model: nn.Module, path: Path) -> None:
        """Write one PNG, panels side by side; a disk or image that fails costs the picture, not the training."""
        try:
            panels = [self._panel(model, sample) for sample in self._chosen()]
            if panels:
                save_picture(path, np.concatenate(_same_height(panels), 1))
        except CimError as error:
            logger.warning("no picture of what was mined: %s", error)

    def _chosen(self) -> list[Sample]:
        if self._samples is None:
            self._samples = []
            for index in range(min(self.images, _TRIES)):
                sample = self.sample_at(index, self.side, False)
                if sample is not None and sample.members.shape[1]:  # published grids have no masks to draw
                    self._samples.append(sample)
                if len(self._samples) == self.panels:
                    break
        return self._samples

    @torch.no_grad()
    def _panel(self, model: nn.Module, sample: Sample) -> np.ndarray:
        model.eval()
        moved = sample.to(self.device)
        generator = torch.Generator(device=self.device).manual_seed(0)
        scores = self.criterion.informed(model(moved), moved)
        mined = self.criterion.mine(scores, moved.tags, overlaps_of(moved), generator, moved.told)
        image = denormalise(sample.image)
        last = next((labels for labels in reversed(mined) if labels is not None), None)
        return image if last is None else draw_mined(image, sample, last, self.classes)


def draw_mined(image: np.ndarray, sample: Sample, labels: PseudoLabels, classes: Sequence[str]) -> np.ndarray:
    """uint8 [h, w, 3]: the pseudo ground truth over the image, with class and weight."""
    rows = torch.nonzero(labels.mined)[:, 0].cpu()
    masks = sample.members[rows][:, sample.atoms.long()].numpy()
    class_ids = [int(k) - 1 for k in labels.class_ids[rows.to(labels.class_ids.device)]]
    shown = [i for i, k in enumerate(class_ids) if k >= 0]
    class_ids = [class_ids[i] for i in shown]
    weights = labels.weight[rows.to(labels.weight.device)].tolist()
    return draw_instances(image, masks[shown], [classes[k] for k in class_ids], [weights[i] for i in shown], class_ids)


def denormalise(image: torch.Tensor) -> np.ndarray:
    """float32 [3, h, w] as the networks eat it -> uint8 [h, w, 3] RGB."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image.cpu() * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _same_height(panels: list[np.ndarray]) -> list[np.ndarray]:
    height = max(len(panel) for panel in panels)
    return [np.pad(panel, ((0, height - len(panel)), (0, 4), (0, 0)), constant_values=255) for panel in panels]
