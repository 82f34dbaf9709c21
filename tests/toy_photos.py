"""A folder data set so small that CIM trains on it within seconds: coloured shapes, proposals, first labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cim.config.schema import Config
from cim.core.regions import RegionSet
from cim.storage.store import Store

CLASSES = ("box", "disc")
H, W = 48, 64


def make_photos(root: Path, count: int = 6) -> Config:
    """Photos, tags, proposals and first labels under ``root``, and a config that trains on them in seconds."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    regions = Store.create(root / "regions", "regions", {"maker": "toy"})
    labels = Store.create(root / "labels", "clusters", {"maker": "toy"})
    lines = ["image,labels"]
    for number in range(count):
        kind, masks = number % 2, toy_masks(rng, number % 2)
        photo = rng.integers(0, 60, (H, W, 3)).astype(np.uint8)
        photo[masks[0]] = (220, 40, 40) if kind == 0 else (40, 40, 220)
        Image.fromarray(photo).save(root / "photos" / f"p{number}.png")
        lines.append(f"p{number}.png,{CLASSES[kind]}")
        regions.save_regions(f"p{number}.png", RegionSet.from_masks(masks))
        class_ids = np.full(len(masks), -1)
        class_ids[:2], class_ids[-2:] = kind + 1, 0
        labels.save(
            f"p{number}.png", class_ids=class_ids, cluster=np.where(class_ids > 0, 1, np.where(class_ids == 0, 2, 0))
        )
    (root / "tags.csv").write_text("\n".join(lines) + "\n")
    return Config(**settings(root))


def settings(root: Path) -> dict:
    return {
        "work_dir": str(root / "run"),
        "device": "cpu",
        "data": {
            "dataset": "folder",
            "train_split": "train",
            "images": str(root / "photos"),
            "tags": str(root / "tags.csv"),
            "proposals": str(root / "regions"),
            "first_labels": str(root / "labels"),
        },
        "model": {"backbone": "mobilenet_v2_s16", "weights": "none", "hidden": 16},
        "train": {
            "updates": 4,
            "step": (3,),
            "images_per_update": 2,
            "warmup_updates": 2,
            "lr": 1e-3,
            "sides": (64, 96),
            "workers": 0,
            "checkpoint_every": 2,
            "picture_every": 2,
            "max_proposals": 10,
        },
    }


def toy_masks(rng: np.random.Generator, kind: int, count: int = 12) -> np.ndarray:
    """bool [N, H, W]: the shape, a part of it, and random boxes."""
    y, x = np.mgrid[:H, :W]
    cy, cx = rng.integers(16, H - 16), rng.integers(16, W - 16)
    shape = (abs(y - cy) < 10) & (abs(x - cx) < 10) if kind == 0 else (y - cy) ** 2 + (x - cx) ** 2 < 100
    masks = [shape, shape & (y < cy)]
    for _ in range(count - 2):
        top, left = rng.integers(0, H - 8), rng.integers(0, W - 8)
        masks.append((y >= top) & (y < top + rng.integers(4, 20)) & (x >= left) & (x < left + rng.integers(4, 20)))
    return np.array(masks)
