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
        cuts: of grouping, see :class:`cim.proposals.grouping.propose.GroupingOptions`.
        sam_checkpoint: hub name or folder.
        prompts: points that SAM is asked about: a "grid", the response network's "peaks", or "both".
        sam_grid: points along a side of the grid; None: 32, beside peaks 8.
        peak_fraction: which peaks, see :func:`cim.prm.evidence.relative_peaks`.
    """

    method: str = "grouping"
    max_proposals: int = 1000
    deep_features: bool = True
    backbone: str = "mobilenet_v2"
    weights: str | None = None
    min_area: float = 0.0008
    max_area: float = 0.9
    cuts: int = 0
    sam_checkpoint: str | None = None
    prompts: str = "grid"
    sam_grid: int | None = None
    peak_fraction: float = 0.3

    @property
    def grid_side(self) -> int:
        """Points along a side of the grid that SAM is asked about; 0 where peaks stand alone."""
        return 0 if self.prompts == "peaks" else self.sam_grid or _GRID[self.prompts]


_GRID = {"grid": 32, "both": 8}


def provenance(
    options: ProposerOptions, root: Path | None = None, peaks: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the store's manifest says; whoever trains on it can see whether masks were learnt from.

    Args:
        root: of the store that this is compared with; version 0.1 did not write down the trunk's weights.
        peaks: what the peaks depend on that prompt, if any do.

    Raises:
        CimError: no such weights file; damaged manifest.
    """
    limits = {"max_proposals": options.max_proposals, "min_area": options.min_area, "max_area": options.max_area}
    made_from = {**MAKERS[options.method](options), **limits, **({} if peaks is None else {"peaks": peaks})}
    if root is not None and Store.kind_at(root) == "regions":
        there = Store.open(root, "regions").provenance
        made_from = {key: value for key, value in made_from.items() if key != "weights" or key in there}
    return made_from


def _grouping(options: ProposerOptions) -> dict[str, Any]:
    cue = options.backbone if options.deep_features else None
    weights = {"weights": weights_named(options.weights)} if options.deep_features else {}
    cuts = {"cuts": options.cuts} if options.cuts else {}  # which did not exist at first
    return {"maker": "cim grouping", "deep_features": cue, **weights, **cuts, "trained_on_masks": False}


def _sam(options: ProposerOptions) -> dict[str, Any]:
    grid = {} if options.grid_side == _GRID["grid"] else {"grid": options.grid_side}  # which had no choice at first
    return {"maker": "Segment Anything", "checkpoint": options.sam_checkpoint, **grid, "trained_on_masks": True}


MAKERS: dict[str, Callable[[ProposerOptions], dict[str, Any]]] = {"grouping": _grouping, "sam": _sam}
"""What each maker is, and whether it has learnt from masks; cim/proposals/stage.py opens them."""
