"""Pixels as trunks trained on ImageNet take them."""

from __future__ import annotations

import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(image: np.ndarray) -> torch.Tensor:
    """uint8 [h, w, 3] RGB -> float32 [3, h, w] by ImageNet's mean and standard deviation."""
    tensor = (
        torch.from_numpy(np.ascontiguousarray(image))
        .permute(2, 0, 1)
        .to(torch.float32, memory_format=torch.contiguous_format)
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return tensor.sub_(mean).div_(std)
