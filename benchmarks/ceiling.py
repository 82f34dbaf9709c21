"""What the light head could do if it were told: its layers taught anew by annotated boxes of training photos.

No command of cim learns like this. It says how far mining can get with such features and so many photos: every proposal
of a photo that the annotations list learns the box IoU it has with the best object of each class, as class scores from
0.5 on and as integrity. Everything else is the run's: proposals, kept features, selection, judging.

Writes OUTPUT/train/final.pth, a network like the run's, and has it judged on the validation photos by ``cim score`` and
``cim evaluate``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from review_round import cim
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou
from tqdm import trange

from cim.cli.common import parser, run
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.types import RoiScores
from cim.engine.checkpoints import load_checkpoint, save_checkpoint
from cim.evaluation.box_files import objects_of
from cim.inference.scores import trained_model
from cim.models.cim_net import CIMNet
from cim.models.region_pool import RegionPool
from cim.storage.published import open_regions
from cim.storage.store import Store
from cim.training.pooled_cache import PooledCache

PHOTOS, DROP_AFTER = 4, 0.7  # photos of an update; share of the updates after which the rate falls
RIGHT = 0.5  # box IoU from which a proposal is an instance


def taught(config: Config, annotations: Path) -> list[tuple[Tensor, Tensor]]:
    """Pooled features float16 [N, 2 d] and box IoU with each class float32 [N, C], of every listed photo."""
    paths, content = RunPaths(config), read_json(annotations)
    objects = objects_of(content, annotations)
    rows = {image["file_name"]: row for row, image in enumerate(content["images"])}
    split = config.data.train_split
    dataset, regions = build_dataset(config.data, split), open_regions(paths.proposals(split))
    cache = PooledCache(Store.open(paths.features, "pooled"))
    if unknown := set(objects.classes) - set(dataset.classes):
        raise CimError("boxes of a class that the run does not know", path=annotations, found=min(unknown))
    class_ids = np.array([dataset.classes.index(name) for name in objects.classes])[objects.class_ids]
    found = []
    for record in dataset:
        there = np.flatnonzero(objects.photo == rows.get(record.path.name, -1))
        kept = cache.kept(record.image_id) if len(there) else None
        if kept is None:
            continue
        boxes = torch.from_numpy(regions.load(record.image_id).boxes).float()
        overlap = box_iou(boxes, torch.from_numpy(objects.boxes[there]).float())
        target = torch.zeros(len(overlap), len(dataset.classes))
        target.scatter_reduce_(1, torch.from_numpy(class_ids[there]).expand(overlap.shape), overlap, "amax")
        found.append((kept.pooled, target))
    if not found:
        raise CimError("no training photo of the run is listed", path=annotations)
    return found


def loss_of(scores: RoiScores, target: Tensor) -> Tensor:
    """Cross entropy of the class, and smooth L1 of the integrity near objects, of every branch."""
    best, class_id = target.max(1)
    label = torch.where(best >= RIGHT, class_id + 1, 0)
    near = (best > 0.1).float()
    total = torch.zeros(())
    for cls, iou in zip(scores.refine_cls, scores.refine_iou, strict=True):
        total = total - 3 * cls.gather(1, label[:, None]).clamp_min(1e-9).log().mean()
        error = functional.smooth_l1_loss(iou.gather(1, class_id[:, None] + 1)[:, 0], best, reduction="none", beta=0.1)
        total = total + 10 * (error * near).sum() / near.sum().clamp_min(1)
    return total


def teach(model: CIMNet, head: RegionPool, photos: list[tuple[Tensor, Tensor]], updates: int, seed: int) -> None:
    """Train the head's layers and all branches from scratch."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):  # those of the head and of the branches: the trunk has none
            layer.reset_parameters()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(DROP_AFTER * updates)])
    model.train()
    for _ in trange(updates, desc="teaching", unit="update"):
        optimizer.zero_grad()
        for index in rng.integers(len(photos), size=PHOTOS):
            pooled, target = photos[index]
            loss_of(model.predict(head.from_pooled(pooled.float())), target).backward()
        nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()
        falls.step()


def get_parser() -> argparse.ArgumentParser:
    target = parser(__doc__, "python benchmarks/ceiling.py runs/voc boxes.json --output runs/ceiling")
    target.add_argument("run", type=Path, help="folder of a finished cim run with a light head")
    target.add_argument("annotations", type=Path, help="COCO json with boxes of some of its training photos")
    target.add_argument("--output", type=Path, required=True)
    target.add_argument("--photos", type=int, help="only so many of them, drawn by lot")
    target.add_argument("--updates", type=int, default=1400)
    target.add_argument("--seed", type=int, default=0)
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints what ``cim evaluate`` says."""
    args = get_parser().parse_args(argv)
    config = load_config(args.run / "config.yaml")
    paths = RunPaths(config)
    state = load_checkpoint(paths.checkpoint)
    model = trained_model(state, paths.checkpoint).model
    assert isinstance(model, CIMNet)
    if not isinstance(model.roi_head, RegionPool):
        raise CimError("not a light head", path=paths.checkpoint, expected="model.head region_pool")
    photos = taught(config, args.annotations)
    if args.photos:
        photos = [photos[k] for k in np.random.default_rng(args.seed).permutation(len(photos))[: args.photos]]
    print(f"{len(photos)} photos with boxes")
    teach(model, model.roi_head, photos, args.updates, args.seed)
    save_checkpoint(args.output / "train" / "final.pth", {**state, "model": model.state_dict()})
    cim("score", args.run / "config.yaml", "--checkpoint", args.output)
    cim("evaluate", args.run / "config.yaml", "--checkpoint", args.output, "--name", "taught by boxes")


if __name__ == "__main__":
    sys.exit(run(main))
