"""Complete Instances Mining: from photographs with plain tags to instance masks.

Three lines for a new photo::

    model = cim.load_model("runs/resnet50_voc/train/final.pth")
    result = model.predict("photo.jpg")
    result.masks, result.boxes, result.labels, result.scores
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cim.predict import Predictor

__all__ = ["load_model"]


def load_model(path: str | Path, device: str = "auto", weights: str | Path | None = None) -> Predictor:
    """A trained network, ready to predict; see :func:`cim.predict.load_model`."""
    from cim import predict  # torch is slow to import, and most of the package does without

    return predict.load_model(path, device, weights)
