"""Instance masks on any photos with a trained network: a COCO json and overlays; nothing else is needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import write_json
from cim.core.locks import hold
from cim.datasets.photo_files import photos_in
from cim.pictures.visualize import save_picture
from cim.prediction.predict import Predictor, load_model


def main(args: argparse.Namespace) -> int:
    """2 when some photos could not be read; the others are done."""
    photos = _photos(args.photos)
    model = load_model(args.checkpoint, args.device, args.weights)
    with hold(args.output):
        return _predict(args, photos, model)


def _predict(args: argparse.Namespace, photos: list[Path], model: Predictor) -> int:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    failed: list[str] = []
    for number, path in enumerate(tqdm(photos, desc="photos", unit="photo"), 1):
        try:
            found = model.predict(path, tags=args.tags, score_threshold=args.score_threshold)
        except CimError as error:
            if error.path is None or Path(error.path) != path:  # not this photo's fault
                raise
            failed.append(str(error))
            continue
        height, width = found.image.shape[:2]
        images.append({"id": number, "file_name": str(path), "height": height, "width": width})
        for annotation in found.to_coco(number):
            annotations.append({"id": len(annotations) + 1, **annotation})
        if not args.no_overlays:
            save_picture(args.output / "overlays" / f"{number:05d}_{path.stem}.jpg", found.overlay())
    _save(args.output / "predictions.json", model, images, annotations)
    print(f"{len(annotations)} instances on {len(images)} photos: {args.output}")
    for message in failed:
        print(f"skipped: {message}", file=sys.stderr)
    return 2 if failed else 0


def _photos(given: list[Path]) -> list[Path]:
    """The files, folders replaced by the photos in them.

    Raises:
        CimError: nothing there.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += photos_in(path)
        elif path.is_file():
            found.append(path)
        else:
            raise CimError("no such photo or folder", path=path)
    if not found:
        raise CimError("no photos here", path=given[0], expected=".jpg, .png, .webp, ...")
    return found


def _save(path: Path, model: Predictor, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(model.classes, 1)]
    write_json(path, {"images": images, "categories": categories, "annotations": annotations})
