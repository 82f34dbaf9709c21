"""What benchmarks/fuzz.py feeds: small files as the project's own writers make them, and what reads each kind.

A reader goes on to use what it has read, since a file is only known to be harmless when its content is.
"""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save as save_safetensors
from scipy.io import savemat

from cim.config.loading import load_config
from cim.core.photo import photo_size, read_photo
from cim.core.regions import RegionSet, load_members
from cim.datasets.base import Record
from cim.datasets.folder import open_folder
from cim.datasets.tags import cache
from cim.datasets.tags.coco_json import open_tag_file, read_tag_file
from cim.datasets.voc_boxes import read_annotation
from cim.datasets.voc_devkit import read_sbd_labels, read_voc_labels
from cim.engine.checkpoints import FORMAT, load_checkpoint
from cim.engine.run_logger import read_log
from cim.evaluation.box_files import Given
from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.metrics_file import load_rows, markdown
from cim.evaluation.verdicts import load_verdicts
from cim.inference.detections import PublishedScores, StoredScores
from cim.labels.label_files import read_labels, validate_labels
from cim.models.weights import read_weights
from cim.pictures.photo_set import PhotoSet
from cim.prm.assign import assign_from_peaks, assign_from_points, read_points
from cim.prm.first_labels import load_peaks, save_peaks
from cim.prm.network import Peaks, build_response_net, load_response_net
from cim.proposals.cob import read_cob, write_cob_mat
from cim.proposals.rle import RleFile
from cim.storage.published import CobPickle, LabelAssignPickle, StoredClusters, read_pickle
from cim.storage.store import Store

SIZE = (24, 32)  # (H, W)
Form = Literal["bytes", "json", "zip", "png", "text"]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: of the file below the folder it is tried in.
        seed: a good one.
        read: path -> anything; may raise CimError alone.
        form: how it is taken apart to be changed.
    """

    name: str
    seed: bytes
    read: Callable[[Path], Any]
    form: Form = "bytes"


def lay_out(folder: Path) -> None:
    """What some of the files refer to."""
    photo = _saved(Image.fromarray(_pixels()), "a.png", {})
    for name in ("a.png", "b/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo)
    (folder / "SegmentationClass").mkdir()
    (folder / "SegmentationClass" / "a.png").write_bytes(
        _saved(Image.fromarray(np.full(SIZE, 3, np.uint8)), "a.png", {})
    )


def readers() -> list[Reader]:
    """All of them, the files freshly made."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            *_photos(),
            *_coco(),
            *_texts(),
            *_stores(Path(folder)),
            *_published(Path(folder)),
            *_networks(),
        ]


# ---------------------------------------------------------------------- files


def _masks() -> np.ndarray:
    """bool [3, 24, 32]."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:9, 3:20] = masks[1, 5:20, 10:30] = masks[2, 5:9, 10:20] = True
    return masks


def _pixels() -> np.ndarray:
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    return np.stack([x * 7 % 256 + 0 * y, y * 9 % 256 + 0 * x, (x + y) * 4 % 256], 2).astype(np.uint8)


def _photos() -> list[Reader]:
    photo, exif = Image.fromarray(_pixels()), Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "a.jpg": (photo, {"exif": exif}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "a.png": (photo, {"exif": exif}),
        "palette.png": (photo.quantize(8), {"transparency": 3}),
        "deep.png": (Image.fromarray(_pixels()[:, :, 0].astype(np.uint16) * 256), {}),
        "a.gif": (photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
        "a.webp": (photo.convert("RGBA"), {}),
        "a.bmp": (photo, {}),
        "a.tif": (photo, {"compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(_pixels()[:, :, 0].astype(np.float32)), {}),
    }
    return [
        Reader(f"photos/{name}", _saved(image, name, options), _photo, "png" if name.endswith(".png") else "bytes")
        for name, (image, options) in files.items()
    ]


def _saved(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    kind = Image.registered_extensions()[Path(name).suffix]
    image.save(data, kind, **options)
    return data.getvalue()


def _photo(path: Path) -> None:
    height, width = photo_size(path)
    pixels = read_photo(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and height > 0 and width > 0


def _coco() -> list[Reader]:
    regions = RegionSet.from_masks(_masks())
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": 1, "file_name": "a.png", **sizes}, {"id": 2, "file_name": "b/c.png", **sizes}]
    annotations: list[dict[str, Any]] = []
    masks = [*regions.rles(), {"size": [2, 3], "counts": [1, 5]}, [[1.0, 1.0, 9.0, 1.0, 9.0, 8.5]]]
    masks[3] = {"size": list(SIZE), "counts": [10, 20, SIZE[0] * SIZE[1] - 30]}
    for number, mask in enumerate(masks, 1):
        box = {"bbox": [3, 2, 17, 7], "area": 119, "iscrowd": 0, "difficult": 0}
        annotations.append({"id": number, "image_id": 1 + number % 2, "category_id": 5, "segmentation": mask, **box})
    categories = [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    results = [
        {
            "image_id": a["image_id"],
            "category_id": 5,
            "score": 0.5,
            "bbox": a["bbox"],
            "segmentation": a["segmentation"],
        }
        for a in annotations
    ]
    labels = {**truth, "annotations": [{**a, "score": 0.25} for a in annotations]}
    proposals = [{"image_id": 1, "segmentation": mask, "score": 0.5} for mask in masks[:4]]
    metrics = {"rows": {"CIM": {"mAP_50": 50.0, "per_class": {"cat": 1.0, "dog": None}}}}
    verdicts = {
        "prm": {"level": "fine", "reason": "x", "advice": "", "classes": {"cat": {"level": "fine", "reason": "y"}}}
    }
    good = load_ground_truth(truth)
    lines = "".join(json.dumps({"update": n, "loss": 0.5, "lr": 0.1}) + "\n" for n in range(3))
    return [
        _json("tags.json", truth, lambda path: list(read_tag_file(path).images)),
        _json("data.json", truth, lambda path: list(open_tag_file("x", path, path.parent, "fix"))),
        _json("listed.json", truth, lambda path: open_folder(path.parent, path)),
        _json("truth.json", truth, _truth),
        _json("results.json", results, lambda path: read_results(path, good)),
        _json("boxes.json", truth, lambda path: Given.read(path, path, {5: "cat", 7: "dog"}).boxes()),
        _json("judged.json", labels, lambda path: Given({**truth}, path, path, None).results_for_masks(False)),
        _json("labels.json", labels, _labels),
        _json("pictures.json", labels, lambda path: PhotoSet.read(path, path.parent).results(path)),
        _json("proposals.json", proposals, _rle),
        _json("metrics.json", metrics, lambda path: markdown(load_rows(path))),
        _json("verdicts.json", verdicts, load_verdicts),
        Reader("log.jsonl", lines.encode(), read_log, "text"),
    ]


def _json(name: str, content: Any, read: Callable[[Path], Any]) -> Reader:
    return Reader(name, json.dumps(content).encode(), read, "json")


def _truth(path: Path) -> None:
    truth = load_ground_truth(path)
    for annotation in truth.annotations:
        coco_mask.decode(annotation["rle"])
    truth.images_with(1)


def _labels(path: Path) -> None:
    read_labels(path)
    validate_labels(path, {5: "cat", 7: "dog"})


def _rle(path: Path) -> None:
    file = RleFile.open(path)
    for image_id in file.places:
        _use(file.load(image_id, SIZE))


def _use(regions: RegionSet) -> None:
    """What later stages ask of regions."""
    _ = regions.iou(), regions.boxes, regions.grids, regions.areas
    regions.masks()
    regions.rles()


def _texts() -> list[Reader]:
    config = (
        b"base: folder_mobilenet.yaml\nname: x\ndata: {images: a, tags: t.csv}\n"
        b"train: {lr: 0.01, step: [3, 4]}\nmodel: {axes: [64]}\n"
    )
    annotation = (
        "<annotation><folder>VOC2007</folder><size><width>32</width><height>24</height></size><object><name>cat</name>"
        "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>"
    )
    regions = RegionSet.from_masks(_masks())
    tags = 'image,labels\na.png,"cat,dog"\nb/c.png,cat\n'
    return [
        Reader("config.yaml", config, load_config, "text"),
        Reader("tags.csv", tags.encode(), lambda path: open_folder(path.parent, path), "text"),
        Reader("annotation.xml", annotation.encode(), read_annotation, "text"),
        Reader(
            "points.txt",
            b"3.5 4 0 1.0\n10 11 1 0.5\n",
            lambda path: assign_from_points(regions, read_points(path, 2)),
            "text",
        ),
    ]


def _stores(folder: Path) -> list[Reader]:
    regions = RegionSet.from_masks(_masks(), np.array([0.9, 0.8, 0.1], np.float32))
    regions.save(folder / "regions.npz")
    peaks, clusters, scores = (Store(folder / kind, kind) for kind in ("peaks", "clusters", "detections"))
    record = Record("a", folder / "a.jpg", (8, 8), (0, 1))
    save_peaks(peaks, record, Peaks(np.array([[0, 2, 3], [1, 4, 4]]), np.array([12.0, 11.0], np.float32), (7, 7)))
    clusters.save("a", class_ids=np.array([1, 0, -1]), cluster=np.array([1, 2, 0]))
    scores.save("a", scores=np.ones((3, 2), np.float32), mil=np.ones((3, 2), np.float32))
    about = {"format": 1, "kind": "regions", "provenance": {"maker": "x"}}
    return [
        Reader("regions.npz", (folder / "regions.npz").read_bytes(), _regions, "zip"),
        Reader("peaks/a.npz", peaks.path("a").read_bytes(), lambda path: _peaks(path, regions), "zip"),
        Reader(
            "clusters/a.npz",
            clusters.path("a").read_bytes(),
            lambda path: StoredClusters(Store(path.parent, "clusters")).load("a"),
            "zip",
        ),
        Reader(
            "detections/a.npz",
            scores.path("a").read_bytes(),
            lambda path: StoredScores(Store(path.parent, "detections"), "both").load("a"),
            "zip",
        ),
        _json(
            "store/manifest.json", about, lambda path: (Store.kind_at(path.parent), Store.open(path.parent, "regions"))
        ),
        Reader(".kept.json.cim-tags.npz", _kept_tags(folder), _read_kept, "zip"),
    ]


def _regions(path: Path) -> None:
    load_members(path)
    _use(RegionSet.load(path))


def _peaks(path: Path, regions: RegionSet) -> None:
    assign_from_peaks(regions, load_peaks(Store(path.parent, "peaks"), "a"))


def _kept_tags(folder: Path) -> bytes:
    """What stays of a json, as if that were a large one."""
    path = folder / "kept.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}))
    cache.write_npz(cache.cache_path(path), **cache._pack(read_tag_file(path), cache.Stamp(cache.SMALLEST, 1)))
    return cache.cache_path(path).read_bytes()


def _read_kept(path: Path) -> None:
    kept = cache.kept_tags(path.with_name("kept.json"), cache.Stamp(cache.SMALLEST, 1))
    assert kept is None or list(kept.images) is not None


def _published(folder: Path) -> list[Reader]:
    regions = RegionSet.from_masks(_masks())
    for layout in ("voc", "coco"):
        write_cob_mat(folder / f"{layout}.mat", regions, layout)  # type: ignore[arg-type]
    numbers = _masks().argmax(0).astype(np.uint8)
    cells = np.empty((1, 1), [("Segmentation", object), ("Categories", object)])
    cells[0, 0] = (numbers, np.array([[3], [4]]))
    savemat(folder / "sbd.mat", {"GTinst": cells})
    cob = {"indexes": [1], "boxes": [regions.boxes], "masks": [regions.grids], "scores": [np.ones(3)]}
    mats = {"indexes": [1], "mat": [np.array([[0, 1, 0], [2, 0, 0], [0, 0, 3]], np.float32)], "score": []}
    found = {"all_boxes": {"x/000000000001.jpg": {"boxes": np.ones((3, 4)), "scores": np.ones((3, 3))}}}
    png = _saved(Image.fromarray(numbers).convert("P"), "a.png", {})
    return [
        Reader("voc.mat", _dateless(folder / "voc.mat"), lambda path: _use(read_cob(path, SIZE, True))),
        Reader("coco.mat", _dateless(folder / "coco.mat"), lambda path: _use(read_cob(path, None))),
        Reader("sbd.mat", _dateless(folder / "sbd.mat"), read_sbd_labels),
        Reader("cob.pkl", pickle.dumps(cob, 4), lambda path: CobPickle(path).load(1)),
        Reader("cob2.pkl", pickle.dumps(cob, 2), lambda path: CobPickle(path).load(1)),
        Reader("labels.pkl", pickle.dumps(mats, 4), lambda path: LabelAssignPickle(path).load(1)),
        Reader("detections.pkl", pickle.dumps(found, 4), lambda path: PublishedScores(path, 2).load(1)),
        Reader("array.pkl", pickle.dumps(np.arange(9).reshape(3, 3).astype(object), 4), read_pickle),
        Reader("SegmentationObject/a.png", png, lambda path: read_voc_labels(path.parent.parent, "a"), "png"),
    ]


def _dateless(path: Path) -> bytes:
    """A MATLAB file without the time in its header, so that the same seed tries the same files."""
    return b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:]


def _networks() -> list[Reader]:
    torch.manual_seed(0)
    net = build_response_net("tiny", 2, weights="none", upsample=4, image_size=64, classes=("cat", "dog"))
    tensors = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2), "n": torch.tensor(3)}
    meta = {"kind": "prm", "classes": ["cat", "dog"], "settings": {"backbone": "tiny", "upsample": 4, "image_size": 64}}
    small, whole = _torch_file({"meta": meta, "model": tensors}), _torch_file({"meta": meta, "model": net.state_dict()})
    return [
        Reader("final.pth", small, load_checkpoint, "zip"),
        Reader("weights.pth", small, read_weights, "zip"),
        Reader("old.pth", _torch_file(tensors, _use_new_zipfile_serialization=False), read_weights),
        Reader("weights.safetensors", save_safetensors(tensors), read_weights),
        Reader("net.pth", whole, load_response_net, "zip"),
    ]


def _torch_file(state: dict[str, Any], **options: Any) -> bytes:
    """As save_checkpoint's, without the name of its temporary file inside."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **state}, data, **options)
    return data.getvalue()
