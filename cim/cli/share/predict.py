"""Instance masks on any photos with a trained network: a COCO json and overlays; nothing else is needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import as_json, write_json
from cim.core.locks import hold
from cim.datasets.tags.csv_file import counted, csv_rows
from cim.pictures.visualize import save_picture
from cim.prediction.photos import several
from cim.prediction.predict import Predictor, load_model
from cim.prediction.result import Prediction, as_coco


def main(args: argparse.Namespace) -> int:
    """2 when some photos could not be read; the others are done."""
    photos = _photos(args.photos)
    tags = args.tags if args.tags_file is None else _tags(args.tags_file)
    model = load_model(args.checkpoint, args.device, args.weights)
    with hold(args.output):
        return _predict(args, len(photos), tags, model)


def _predict(
    args: argparse.Namespace,
    total: int,
    tags: Sequence[str] | Mapping[str, Sequence[str]] | None,
    model: Predictor,
) -> int:
    failed: list[CimError] = []
    found = model.stream(
        args.photos, tags, score_threshold=args.score_threshold, batch=args.batch, skipped=failed.append
    )
    content = as_coco(_told(tqdm(found, desc="photos", unit="photo", total=total), args), model.classes)
    write_json(args.output / "predictions.json", content)
    summary = f"{len(content['annotations'])} instances on {len(content['images'])} photos: {args.output}"
    print(summary, file=sys.stderr if args.jsonl else sys.stdout)
    for error in failed:
        print(f"skipped: {error}", file=sys.stderr)
    return 2 if failed else 0


def _tags(path: Path) -> dict[str, tuple[str, ...]]:
    """By photo, without numbers and without classes that are said to be absent."""
    return {name: counted(labels, f"{path}, line {line}")[0] for line, name, labels in csv_rows(path)}


def _photos(given: list[Path]) -> list[Path]:
    """The files, folders and patterns replaced by the photos in them.

    Raises:
        CimError: nothing there.
    """
    for path in given:
        if several(path) is None and not path.is_file():
            raise CimError("no such photo or folder", path=path)
    return list(several(given) or ())


def _told(found: Iterable[Prediction], args: argparse.Namespace) -> Iterator[Prediction]:
    """The same predictions, each painted and printed as it passes."""
    for number, one in enumerate(found, 1):
        assert one.path is not None  # it came from a file
        if not args.no_overlays:
            save_picture(args.output / "overlays" / f"{number:05d}_{one.path.stem}.jpg", one.overlay())
        if args.jsonl:
            print(json.dumps(as_json(_line(one))), flush=True)
        yield one


def _line(one: Prediction) -> dict[str, Any]:
    height, width = one.image.shape[:2]
    found = [
        {"label": label, **{key: entry[key] for key in ("score", "bbox", "area", "segmentation")}}
        for label, entry in zip(one.labels, one.to_coco(), strict=True)
    ]
    return {"photo": str(one.path), "height": height, "width": width, "instances": found}
