"""Which maker of proposals is meant, in plain words: known without loading any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cim.models.backbones import weights_named
from cim.storage.store import Store


@dataclass(frozen=True)
class ProposerOptions:
    """Which maker of proposals, and how it is set.

    Attributes:
        method: a name in ``MAKERS``: our own grouping, or Segment Anything.
        max_proposals: the best n are kept.
        deep_features: group with the maps of an ImageNet trunk as well as with colour and texture.
        backbone, weights: that trunk and its file (None: the library's own).
        min_area, max_area: size limits, fractions of the picture.
        sam_checkpoint: hub name or folder.
    """

    method: str = "grouping"
    max_proposals: int = 1000
    deep_features: bool = True
    backbone: str = "mobilenet_v2"
    weights: str | None = None
    min_area: float = 0.0008
    max_area: float = 0.9
    sam_checkpoint: str | None = None


def provenance(options: ProposerOptions, root: Path | None = None) -> dict[str, Any]:
    """What the store's manifest says; whoever trains on it can see whether masks were learnt from.

    Args:
        root: of the store that this is compared with; version 0.1 did not write down the trunk's weights.

    Raises:
        CimError: no such weights file; damaged manifest.
    """
    limits = {"max_proposals": options.max_proposals, "min_area": options.min_area, "max_area": options.max_area}
    made_from = {**MAKERS[options.method](options), **limits}
    if root is not None and Store.kind_at(root) == "regions":
        there = Store.open(root, "regions").provenance
        made_from = {key: value for key, value in made_from.items() if key != "weights" or key in there}
    return made_from


def _grouping(options: ProposerOptions) -> dict[str, Any]:
    cue = options.backbone if options.deep_features else None
    weights = {"weights": weights_named(options.weights)} if options.deep_features else {}
    return {"maker": "cim grouping", "deep_features": cue, **weights, "trained_on_masks": False}


def _sam(options: ProposerOptions) -> dict[str, Any]:
    return {"maker": "Segment Anything", "checkpoint": options.sam_checkpoint, "trained_on_masks": True}


MAKERS: dict[str, Callable[[ProposerOptions], dict[str, Any]]] = {"grouping": _grouping, "sam": _sam}
"""What each maker is, and whether it has learnt from masks; cim/proposals/stage.py opens them."""
