"""A batch of photos beside the same photos one by one, with ``load_model``'s predictor, from files.

Prints a Markdown table. Networks are random and made to find little (random ones would find a hundred a photo), and the
photos are drawn. Both ways take turns in one process and must find the same; each row is the median of the rounds. The
ratio is what counts: on a machine that others use as well, times of different runs cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from cim.cli.common import parser, positive, run
from cim.config.build import build_model
from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.datasets.drawn import draw_picture
from cim.engine.checkpoints import save_checkpoint
from cim.models.mask_rcnn import build_mask_rcnn
from cim.prediction.predict import Predictor, load_model
from cim.prediction.result import Prediction


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/prediction.py --sides 500 2000")
    target.add_argument("--batch", type=positive, default=8)
    target.add_argument("--sides", type=positive, nargs="+", default=[500, 2000], help="long sides of the photos")
    target.add_argument("--rounds", type=positive, default=5)
    target.add_argument("--device", default="auto")
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = get_parser().parse_args(argv)
    device = resolve_device(args.device)
    print(f"{args.batch} photos, {device}, {torch.get_num_threads()} threads; medians of {args.rounds} rounds\n")
    print(
        "| network | long side | one by one, s | a batch, s | ratio | ratios of the rounds |\n|---|--:|--:|--:|--:|---|"
    )
    with TemporaryDirectory() as folder:
        models = {name: make(Path(folder), args.device) for name, make in NETWORKS.items()}
        for side in args.sides:
            photos = draw(Path(folder) / str(side), args.batch, side)
            for name, model in models.items():
                single, batch = compare(model, photos, args.rounds)
                ratios = np.sort(batch / single)
                shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                row = f"{np.median(single):.2f} | {np.median(batch):.2f} | {np.median(ratios):.2f} | {shown}"
                print(f"| {name} | {side} | {row} |", flush=True)


def compare(model: Predictor, photos: list[Path], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every round, one by one and as a batch."""
    ways: list[Callable[[], list[Prediction]]] = [
        lambda: [model.predict(photo) for photo in photos],
        lambda: model.predict(photos, batch=len(photos)),
    ]
    first, second = (way() for way in ways)  # also warms up
    for alone, together in zip(first, second, strict=True):
        assert alone.labels == together.labels and np.allclose(alone.scores, together.scores, atol=1e-3)
    times = np.zeros((rounds, 2))
    for turn in range(rounds):
        for way in ((0, 1), (1, 0))[turn % 2]:
            start = time.perf_counter()
            ways[way]()
            times[turn, way] = time.perf_counter() - start
    return times[:, 0], times[:, 1]


def draw(folder: Path, count: int, side: int) -> list[Path]:
    """Drawn photos as files, enlarged to a long side of ``side`` pixels."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        image = draw_picture(number, rng).image
        scale = side / max(image.shape[:2])
        paths.append(folder / f"{number}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))
    return paths


def _cim(folder: Path, device: str) -> Predictor:
    torch.manual_seed(0)
    config = load_config("folder_mobilenet", ["model.weights=none", "proposals.weights=none"])
    meta = {"kind": "cim", "classes": ["a", "b", "c"], "config": config.model_dump(mode="json")}
    save_checkpoint(folder / "cim.pth", {"meta": meta, "model": build_model(config, 3).state_dict()})
    return load_model(folder / "cim.pth", device)


def _mask_rcnn(folder: Path, device: str) -> Predictor:
    torch.manual_seed(0)
    config = load_config("folder_mobilenet")
    refine = config.refine
    model = build_mask_rcnn(refine.backbone, 3, "none", refine.min_side, refine.max_side)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 4  # background
    meta = {"kind": "mask_rcnn", "classes": ["a", "b", "c"], "config": config.model_dump(mode="json")}
    save_checkpoint(folder / "mask_rcnn.pth", {"meta": meta, "model": model.state_dict()})
    return load_model(folder / "mask_rcnn.pth", device)


NETWORKS = {"CIM (folder_mobilenet)": _cim, "Mask R-CNN (mobilenet_fpn)": _mask_rcnn}


if __name__ == "__main__":
    sys.exit(run(main))
