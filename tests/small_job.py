"""A whole job on a few drawn photos, all stages in a minute: what `cim run` leaves when it is done."""

from __future__ import annotations

from pathlib import Path

from cim.cli.main import main
from cim.datasets.drawn import make_demo

SMALL = [
    *("proposals.max_proposals=20", "prm.epochs=1", "prm.workers=0", "prm.image_size=64"),
    *("train.updates=4", "train.step=[3]", "train.workers=0", "train.warmup_updates=0", "train.sides=[64]"),
    *("train.picture_every=0", "infer.sides=[64]", "export.threshold=0"),
    *("refine.updates=2", "refine.step=[1]", "refine.workers=0", "refine.min_side=64", "refine.max_side=64"),
]


def words(folder: Path, *more: str) -> list[str]:
    """The command; ``more`` are settings."""
    data = folder / "drawn"
    return [
        *("run", "--images", str(data / "images" / "train"), "--tags", str(data / "train_tags.csv")),
        *("--val", str(data / "images" / "val"), "--val-masks", str(data / "val_instances.json")),
        *("--output", str(folder / "run"), "--config", "demo", "--device", "cpu", "--set", *SMALL, *more),
    ]


def finish(folder: Path) -> Path:
    """The run folder of a finished job; its photos are in ``folder``/drawn."""
    make_demo(folder / "drawn", train=8, val=3)
    assert main(words(folder)) == 0
    return folder / "run"


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
