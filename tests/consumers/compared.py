"""How masks of other programs are compared with those that were exported."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from cim.labels.formats.marks import Mark, mask_iou


def same_masks(found: np.ndarray, marks: list[Mark]) -> bool:
    """Are these masks [n, H, W] those of the marks, in any order?"""
    ours = sorted(mark.mask().tobytes() for mark in marks)
    return ours == sorted(np.asarray(mask).astype(bool).tobytes() for mask in found)


def ious(found: np.ndarray, marks: list[Mark]) -> list[float]:
    """Of masks [n, H, W] with those of the marks, in the same order."""
    assert len(found) == len(marks)
    return [mask_iou(np.asarray(mask).astype(bool), mark.mask()) for mask, mark in zip(found, marks, strict=True)]


def tell(package: str, text: str) -> None:
    """A line for docs/EXPORT.md."""
    print(f"\n{package} {importlib.metadata.version(package)}: {text}")
