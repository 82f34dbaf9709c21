"""A drawn folder data set with proposals and an untrained network, small enough for end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from pycocotools import mask as coco_mask

from cim.config.build import build_dataset, build_model
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.files import write_json
from cim.core.regions import RegionSet
from cim.engine.checkpoints import save_checkpoint
from cim.evaluation.coco_results import load_ground_truth
from cim.storage.store import Store

SIZE = (48, 64)
CLASSES = ("disc", "box")


def draw(folder: Path, count: int) -> Path:
    """Photos with a disc or a box each in ``folder``/photos, and ``folder``/truth.json with their masks."""
    rng = np.random.default_rng(1)
    (folder / "photos").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        photo = rng.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
        class_id, x, y = number % 2, int(rng.integers(14, 50)), int(rng.integers(14, 34))
        mask = np.zeros(SIZE, np.uint8)
        if class_id == 0:
            cv2.circle(mask, (x, y), 10, 1, -1)
        else:
            mask[y - 8 : y + 8, x - 10 : x + 10] = 1
        photo[mask > 0] = (220, 40, 40) if class_id == 0 else (40, 220, 40)
        cv2.imwrite(str(folder / "photos" / f"{number:03d}.png"), photo[:, :, ::-1])
        images.append({"id": number + 1, "file_name": f"{number:03d}.png", "height": SIZE[0], "width": SIZE[1]})
        rle = RegionSet.from_masks(mask[None]).rles()[0]
        x1, y1, x2, y2 = RegionSet.from_masks(mask[None]).boxes[0].tolist()
        annotations.append(
            {
                "id": number + 1,
                "image_id": number + 1,
                "category_id": class_id + 1,
                "segmentation": rle,
                "area": int(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
            }
        )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    write_json(folder / "truth.json", {"images": images, "annotations": annotations, "categories": categories})
    return folder / "truth.json"


def small_config(folder: Path, count: int = 4) -> Path:
    """Config file of a complete run folder: data, proposals (the object, halves of it, noise), random network."""
    truth = draw(folder, count)
    photos = str(folder / "photos")
    values = {
        "name": "small",
        "work_dir": str(folder / "run"),
        "device": "cpu",
        "data": {
            "dataset": "folder",
            "train_split": "train",
            "eval_split": "val",
            "images": photos,
            "tags": str(truth),
            "val_images": photos,
            "val_annotations": str(truth),
        },
        "proposals": {"deep_features": False},
        "model": {"backbone": "test_resnet", "weights": "none", "hidden": 32},
        "infer": {"sides": [64, 96], "flip": True},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    config = load_config(path)
    save_network(config, RunPaths(config).checkpoint)
    store = Store.create(RunPaths(config).proposals("val"), "regions", {})
    for record in build_dataset(config.data, "val"):
        store.save_regions(record.image_id, proposals(truth, int(record.image_id)))
    return path


def proposals(truth: Path, image_id: int) -> RegionSet:
    """The object first, then its left half, then noise."""
    mask = coco_mask.decode(load_ground_truth(truth).by_image[image_id][0]["rle"]).astype(bool)
    half = mask.copy()
    half[:, int(np.nonzero(mask.any(0))[0].mean()) :] = False
    rng = np.random.default_rng(image_id)
    noise = np.zeros((6, *SIZE), bool)
    for box in noise:
        y, x = rng.integers(0, SIZE[0] - 8), rng.integers(0, SIZE[1] - 8)
        box[y : y + 8, x : x + 8] = True
    return RegionSet.from_masks(np.concatenate([mask[None], half[None], noise]))


def save_network(config: Config, path: Path, seed: int = 0) -> None:
    """A random network as a checkpoint, scaled so that proposals get clearly different scores."""
    torch.manual_seed(seed)
    model = build_model(config, len(CLASSES)).eval()
    with torch.no_grad():
        features = model.features(torch.randn(3, 64, 96))
        model.roi_head.fuse.weight *= 3 / features.std()  # a fresh trunk's activations nearly vanish
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(0, 2 / layer.in_features**0.5)
    meta = {"kind": "cim", "classes": list(CLASSES), "config": config.model_dump(mode="json")}
    save_checkpoint(path, {"meta": meta, "model": model.state_dict()})
