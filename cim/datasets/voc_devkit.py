"""COCO json for VOC 2012 from the segmentation masks of a VOCdevkit and, for ``trainaug``, of an SBD copy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import write_json
from cim.core.leftovers import sweep
from cim.core.safe_mat import load_mat
from cim.datasets.coco_writer import document, image_entry, instance_entry
from cim.datasets.voc import CLASSES, annotation_path, image_id

log = logging.getLogger(__name__)

VOID = 255  # pixels on borders between objects; they belong to nobody
_DEVKIT_FIX = "unpack VOCtrainval_11-May-2012.tar and pass its VOCdevkit/VOC2012"
_SBD_FIX = "unpack SBD's benchmark.tgz and pass its benchmark_RELEASE/dataset"


class Labels(NamedTuple):
    """Instances of one photo: numbers uint8 [H, W] (0 background, 255 void, others instances), class_ids 1..20."""

    numbers: np.ndarray
    class_ids: dict[int, int]


def make_voc_annotations(
    devkit: str | Path, output: str | Path, sbd: str | Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write ``annotations/voc_2012_trainaug.json`` and ``annotations/voc_2012_val.json`` below ``output``.

    ``val`` is VOC's own. ``trainaug`` is ``ImageSets/Segmentation/trainaug.txt`` when the devkit has it, else VOC's
    train plus SBD's train and val less VOC's val. A photo of VOC's train takes its masks from VOC, others from SBD.

    Args:
        devkit: VOCdevkit/VOC2012, with ImageSets/Segmentation, SegmentationClass and SegmentationObject.
        output: root of the published tree, e.g. data/VOC2012.
        sbd: folder with inst/*.mat, train.txt, val.txt (or one that holds it as ``dataset``); None: VOC alone.
        overwrite: make files again that are there.

    Returns:
        the two paths.

    Raises:
        CimError: a list or mask that is missing or damaged; nothing is written for that split.
    """
    devkit, sbd = Path(devkit), _sbd_root(sbd)
    paths = []
    for split, names in _splits(devkit, sbd).items():
        path = annotation_path(Path(output), split)
        paths.append(path)
        if path.exists() and not overwrite:
            log.info("%s is there already; --overwrite makes it again", path)
            continue
        content = _annotate(names, devkit, sbd, split)
        sweep(path.parent)
        write_json(path, content)
        log.info("%s: %d photos, %d instances", path, len(content["images"]), len(content["annotations"]))
    return paths


def _splits(devkit: Path, sbd: Path | None) -> dict[str, list[str]]:
    lists = devkit / "ImageSets" / "Segmentation"
    train, val = (read_names(lists / f"{name}.txt", _DEVKIT_FIX) for name in ("train", "val"))
    if (lists / "trainaug.txt").is_file():
        names = set(read_names(lists / "trainaug.txt", _DEVKIT_FIX))
        source = "ImageSets/Segmentation/trainaug.txt"
    else:
        names, source = set(train), "VOC train alone, as no SBD copy is given"
        if sbd is not None:
            names |= {name for split in ("train", "val") for name in read_names(sbd / f"{split}.txt", _SBD_FIX)}
            source = "VOC train and SBD without VOC val"
        names -= set(val)
    log.info("trainaug: %d photos (%s)", len(names), source)
    return {"trainaug": sorted(names), "val": sorted(val)}


def _annotate(names: Sequence[str], devkit: Path, sbd: Path | None, split: str) -> dict[str, Any]:
    images, annotations = [], []
    for name in tqdm(names, desc=split, unit="image"):
        labels = _read_labels(name, devkit, sbd)
        images.append(image_entry(image_id(name), f"{name}.jpg", labels.numbers.shape))
        for number, class_id in labels.class_ids.items():
            annotations.append(instance_entry(image_id(name), class_id, labels.numbers == number))
    return document(CLASSES, images, annotations)


def _read_labels(name: str, devkit: Path, sbd: Path | None) -> Labels:
    if (devkit / "SegmentationObject" / f"{name}.png").is_file():
        return read_voc_labels(devkit, name)
    if sbd is not None:
        return read_sbd_labels(sbd / "inst" / f"{name}.mat")
    path = devkit / "SegmentationObject" / f"{name}.png"
    raise CimError("no masks for this photo", path=path, fix=f"pass --sbd, or: {_DEVKIT_FIX}")


def read_voc_labels(devkit: Path, name: str) -> Labels:
    """Instances from SegmentationObject; the class of each is the one that SegmentationClass has under it.

    Raises:
        CimError: missing or unreadable png, sizes that differ, an instance without a class.
    """
    objects, classes = (_read_png(devkit / f"Segmentation{kind}" / f"{name}.png") for kind in ("Object", "Class"))
    path = devkit / "SegmentationClass" / f"{name}.png"
    if objects.shape != classes.shape:
        raise CimError(
            "mask of another size than in SegmentationObject", path=path, expected=objects.shape, found=classes.shape
        )
    class_ids = {}
    for number in _instance_numbers(objects):
        under = classes[objects == number]
        counts = np.bincount(under[(under > 0) & (under < VOID)], minlength=1)
        class_ids[number] = _checked_class(int(counts.argmax()), number, path)
    return Labels(objects, class_ids)


def read_sbd_labels(path: Path) -> Labels:
    """Instances from an SBD ``inst`` file: GTinst.Segmentation and GTinst.Categories.

    Raises:
        CimError: missing or damaged file, an instance without a class.
    """
    if not path.is_file():
        raise CimError("no masks for this photo", path=path, fix=_SBD_FIX)
    try:
        truth = load_mat(path, ["GTinst"])["GTinst"][0, 0]
        numbers, categories = np.asarray(truth["Segmentation"]), np.asarray(truth["Categories"]).ravel()
    except Exception as error:  # SciPy raises anything from TypeError to zlib.error for damaged files
        raise CimError("not an SBD instance file", path=path, expected="GTinst", found=error, fix=_SBD_FIX) from None
    class_ids = {}
    for number in _instance_numbers(numbers):
        class_ids[number] = _checked_class(
            int(categories[number - 1]) if number <= len(categories) else 0, number, path
        )
    return Labels(numbers, class_ids)


def _instance_numbers(numbers: np.ndarray) -> list[int]:
    return [int(number) for number in np.unique(numbers) if number not in (0, VOID)]


def _checked_class(class_id: int, number: int, path: Path) -> int:
    if not 1 <= class_id <= len(CLASSES):
        raise CimError(f"instance {number} without a class", path=path, expected=f"1 to {len(CLASSES)}", found=class_id)
    return class_id


def _read_png(path: Path) -> np.ndarray:
    """Palette indices uint8 [H, W]."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("P", "L"):
                raise CimError("mask is not a palette picture", path=path, found=f"mode {image.mode}", fix=_DEVKIT_FIX)
            return np.asarray(image)
    except FileNotFoundError:
        raise CimError("missing mask", path=path, fix=_DEVKIT_FIX) from None
    except CimError:
        raise
    except Exception as error:  # decoders raise all sorts of things; all mean the same here
        raise CimError("damaged mask", path=path, found=error, fix=_DEVKIT_FIX) from None


def read_names(path: Path, fix: str) -> list[str]:
    """The names of a list of photos.

    Raises:
        CimError: missing, or not text; ``fix`` says where it is had.
    """
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise CimError("missing list of photos", path=path, fix=fix) from None
    except UnicodeDecodeError as error:
        raise CimError("not a list of photos", path=path, found=error, fix=fix) from None


def _sbd_root(sbd: str | Path | None) -> Path | None:
    if sbd is None:
        return None
    for root in (Path(sbd), Path(sbd) / "dataset"):
        if (root / "inst").is_dir():
            return root
    raise CimError("no SBD copy here", path=sbd, expected="inst/*.mat, train.txt, val.txt", fix=_SBD_FIX)
