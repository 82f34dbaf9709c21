"""A finished run of two photos, drawn by hand, for reviews: two dogs taken for one, and a cat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cim.config.loading import load_config, save_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.files import write_json
from cim.core.regions import RegionSet
from cim.core.run_lengths import compressed
from cim.storage.store import Store

SIZE = (40, 60)
LEFT, RIGHT, WHOLE, CAT, SPOT = range(5)  # proposals of both photos
BOXES = {
    LEFT: (4, 10, 20, 30),
    RIGHT: (20, 10, 36, 30),
    WHOLE: (4, 10, 36, 30),
    CAT: (44, 6, 56, 18),
    SPOT: (8, 14, 14, 20),
}


def mask(proposal: int) -> np.ndarray:
    """bool [40, 60]."""
    x1, y1, x2, y2 = BOXES[proposal]
    pixels = np.zeros(SIZE, bool)
    pixels[y1:y2, x1:x2] = True
    return pixels


def as_runs(pixels: np.ndarray) -> str:
    """COCO's compressed run lengths of a mask."""
    return str(compressed(RegionSet.from_masks(pixels[None]).rles(), SIZE)[0]["counts"])


def text(proposal: int) -> str:
    return as_runs(mask(proposal))


def small_review(folder: Path, tags: str = "sure.png,dog\ndoubt.png,dog cat\n") -> tuple[Config, Path]:
    """The run's config and its folder. Its labels: the two dogs as one (score 0.9 and 0.2), and on one photo a cat."""
    (folder / "photos").mkdir(parents=True)
    for name in ("sure.png", "doubt.png"):
        picture = np.full((*SIZE, 3), 90, np.uint8)
        for proposal, colour in ((LEFT, (200, 60, 60)), (RIGHT, (60, 60, 200)), (CAT, (60, 180, 60))):
            picture[mask(proposal)] = colour
        Image.fromarray(picture).save(folder / "photos" / name)
    (folder / "tags.csv").write_text(f"image,labels\n{tags}")
    data = [f"data.images={folder / 'photos'}", f"data.tags={folder / 'tags.csv'}"]
    data += ["data.train_split=train", "data.eval_split=val"]
    config = load_config("demo", [f"work_dir={folder / 'run'}", "device=cpu", *data])
    save_config(config, folder / "run" / "config.yaml")
    store = Store.create(RunPaths(config).proposals("train"), "regions", {})
    scores = Store.create(RunPaths(config).detections("train"), "detections", {})
    for name in ("sure.png", "doubt.png"):
        store.save_regions(name, RegionSet.from_masks(np.array([mask(proposal) for proposal in BOXES])))
        scores.save(name, scores=np.array([[0, 0.6], [0, 0.5], [0, 0.9], [0.7, 0], [0, 0.1]], np.float32))  # cat, dog
    images = [{"id": n, "file_name": name, "source_id": name, "height": SIZE[0], "width": SIZE[1]}
              for n, name in enumerate(("sure.png", "doubt.png"), 1)]  # fmt: skip
    found = [(1, 2, WHOLE, 0.9), (2, 2, WHOLE, 0.2), (2, 1, CAT, 0.7)]
    lines = [
        {"id": n, "image_id": image, "category_id": category, "score": score, "iscrowd": 0}
        | {"segmentation": {"size": list(SIZE), "counts": text(proposal)}}
        for n, (image, category, proposal, score) in enumerate(found, 1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    labels = RunPaths(config).pseudo_labels / "msrcnn_pseudo_label_0.3.json"
    write_json(labels, {"images": images, "annotations": lines, "categories": categories})
    return config, folder / "run"
