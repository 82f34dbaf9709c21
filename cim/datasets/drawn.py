"""A small data set of drawn objects, made in seconds: the same flow as with real photos, with exact masks.

Every class has one small part that is the cheapest clue for a classifier on a large ordinary body
(:mod:`cim.datasets.drawing`), so the difference between the most telling part and the complete instance shows.
"""

from __future__ import annotations

import colorsys
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from cim.core.errors import CimError, cannot_write
from cim.core.files import read_json, write_json, write_text
from cim.core.leftovers import SUFFIX, prefix, sweep
from cim.datasets.coco_writer import document, encode, image_entry, instance_entry
from cim.datasets.drawing import CLASSES, Sprite, make_distractor, make_object

MARKER = "demo.json"
NEW_PHOTOS = 6
_FORMAT = 1
_MIN_VISIBLE = 0.45  # of every object and of its part, after occlusion
_FIRST_ID = {"train": 1, "val": 5001, "new": 9001}


class Picture(NamedTuple):
    """A drawn picture of n objects: image uint8 [H, W, 3] RGB, class_ids 0..4 [n], masks and parts bool [n, H, W]."""

    image: np.ndarray
    class_ids: list[int]
    masks: np.ndarray
    parts: np.ndarray


def make_demo(root: str | Path, train: int = 200, val: int = 60, seed: int = 0) -> None:
    """Write the demo data set; the same arguments give the same files.

    Args:
        root: new or empty folder; a demo made with the same arguments is kept as it is.
            As a folder data set: ``images/{train,val}``, ``{train,val}_tags.csv``, ``{train,val}_instances.json``
            (masks, for evaluation). In the published tree: ``VOC2012/{JPEGImages,annotations,Center_points}``.
            ``new/``: photos without any annotation.
        train: training pictures.
        val: validation pictures.
        seed: of everything drawn.

    Raises:
        CimError: the folder holds something else or cannot be written.
    """
    root = Path(root)
    marker = {"format": _FORMAT, "train": train, "val": val, "seed": seed}
    if (root / MARKER).is_file():
        found = read_json(root / MARKER)
        if found != marker:
            fix = "choose another folder or delete this one"
            raise CimError("a demo made with other settings", path=root, expected=marker, found=found, fix=fix)
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CimError("not an empty folder", path=root, fix="choose another folder")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        sweep(root.parent)
        temporary = Path(tempfile.mkdtemp(SUFFIX, prefix(root), root.parent))
    except OSError as error:
        raise cannot_write(root, error, "choose another folder") from error
    try:
        _write(temporary, {"train": train, "val": val, "new": NEW_PHOTOS}, seed)
        write_json(temporary / MARKER, marker)
        temporary.chmod(0o755)  # mkdtemp makes private folders
        temporary.replace(root)
    except OSError as error:
        raise cannot_write(root, error, "choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw_picture(index: int, rng: np.random.Generator) -> Picture:
    """One picture of 1-4 objects and some distractors; ``index`` chooses the first object's class in turn.

    Objects overlap, but at least 45 % of each object and of its part stays visible.
    """
    height, width = int(rng.integers(120, 161)), int(rng.integers(144, 177))
    count = int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))) + 1
    same = rng.random() < 0.4
    names = [index % len(CLASSES)]
    names += [names[0] if same else int(rng.integers(len(CLASSES))) for _ in range(count - 1)]
    scene = _Scene(_background(height, width, rng))
    for _ in range(int(rng.integers(1, 5))):
        scene.add(make_distractor(rng.uniform(8, 22), rng), None, rng)
    for name in names:
        scene.add(make_object(CLASSES[name], rng.uniform(23, 50) / count**0.25, rng), name, rng)
    for _ in range(int(rng.integers(0, 3))):
        scene.add(make_distractor(rng.uniform(6, 16), rng), None, rng)
    return scene.picture(rng)


class _Scene:
    """Sprites painted over one another, with the record of who is visible where."""

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas  # float32 [H, W, 3]
        self.owner: np.ndarray = np.full(canvas.shape[:2], -1)  # object number; -1 background and distractors
        self.part: np.ndarray = np.zeros(canvas.shape[:2], bool)
        self.class_ids: list[int] = []
        self.needed: list[tuple[float, float]] = []  # pixels of the object and of its part that must stay visible

    def add(self, sprite: Sprite, class_id: int | None, rng: np.random.Generator) -> None:
        """Paint a sprite at a place where it hides no object too much; leave it out if none is found."""
        for _ in range(30):
            owner, part = self.owner.copy(), self.part.copy()
            place, crop = _window(self.owner.shape, sprite.opacity.shape, rng)
            opacity = sprite.opacity[crop]
            solid = opacity >= 0.5
            owner[place][solid] = len(self.class_ids) if class_id is not None else -1
            part[place][solid] = sprite.part[crop][solid] >= 0.5
            needed = list(self.needed)
            if class_id is not None:
                needed.append((_MIN_VISIBLE * (sprite.opacity >= 0.5).sum(), _MIN_VISIBLE * (sprite.part >= 0.5).sum()))
            if self._visible_enough(owner, part, needed):
                blend = opacity[..., None]
                self.canvas[place] = self.canvas[place] * (1 - blend) + sprite.colour[crop] * blend
                self.owner, self.part, self.needed = owner, part, needed
                self.class_ids += [class_id] if class_id is not None else []
                return

    @staticmethod
    def _visible_enough(owner: np.ndarray, part: np.ndarray, needed: list[tuple[float, float]]) -> bool:
        seen = np.bincount(owner.ravel() + 1, minlength=len(needed) + 1)[1:]
        seen_part = np.bincount(owner.ravel() + 1, weights=part.ravel(), minlength=len(needed) + 1)[1:]
        return all(a >= least and b >= least_part for a, b, (least, least_part) in zip(seen, seen_part, needed))

    def picture(self, rng: np.random.Generator) -> Picture:
        """The finished picture, with light falling off to one side and sensor noise."""
        height, width = self.owner.shape
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        side = rng.uniform(0, 2 * np.pi)
        light = 1 + rng.uniform(0.0, 0.22) * (x * np.cos(side) + y * np.sin(side))
        noisy = self.canvas * light[..., None] + rng.normal(0, 0.012, self.canvas.shape)
        image = (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
        masks = self.owner == np.arange(len(self.class_ids))[:, None, None]
        return Picture(image, self.class_ids, masks, masks & self.part)


def _window(
    frame: tuple[int, ...], sprite: tuple[int, ...], rng: np.random.Generator
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the frame and of the sprite for a random place; up to 15 % of the sprite may stick out."""
    place, crop = [], []
    for size, length in zip(frame, sprite, strict=True):
        out = int(0.15 * length)
        start = int(rng.integers(-out, max(size - length + out, -out) + 1))
        place.append(slice(max(start, 0), min(start + length, size)))
        crop.append(slice(max(-start, 0), min(length, size - start)))
    return tuple(place), tuple(crop)


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Muted colours, float32 [H, W, 3]: one or two zones, blotches of several sizes, strokes and pebbles."""
    zones = [np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.3), rng.uniform(0.35, 0.8))) for _ in "12"]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    horizon = height * rng.uniform(0.25, 0.75) + 6 * np.sin(x / width * rng.uniform(2, 9)) if rng.random() < 0.6 else -1
    canvas: np.ndarray = np.where((y < horizon)[..., None], zones[0], zones[1]).astype(np.float32)
    for cells in (4, 12, 40):
        blotches = rng.normal(0, 0.05, (cells, cells)).astype(np.float32)
        canvas += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    for _ in range(int(rng.integers(0, 60))):
        start = rng.integers(0, (width, height))
        end = start + rng.integers(-9, 10, 2)
        colour = canvas[start[1], start[0]] * rng.uniform(0.75, 1.25)
        cv2.line(canvas, tuple(map(int, start)), tuple(map(int, end)), tuple(map(float, colour)), 1, cv2.LINE_AA)
    return canvas


# ---------------------------------------------------------------------- files


def _write(root: Path, counts: dict[str, int], seed: int) -> None:
    for number, (split, count) in enumerate(counts.items()):
        images: list[dict[str, Any]] = []
        instances: list[dict[str, Any]] = []
        lines = ["image,labels"]
        for index in range(count):
            picture = draw_picture(index, np.random.default_rng([seed, number, index]))
            image_id = _FIRST_ID[split] + index
            name = f"{split}_{index + 1:04d}.jpg"
            photo = _jpeg(picture.image)
            if split == "new":
                _write_bytes(root / "new" / name, photo)
                continue
            _write_bytes(root / "images" / split / name, photo)
            _write_bytes(root / "VOC2012" / "JPEGImages" / f"2030_{image_id:06d}.jpg", photo)
            _write_points(root / "VOC2012" / "Center_points" / f"2030_{image_id:06d}.txt", picture)
            lines.append(f"{name},{' '.join(sorted({CLASSES[class_id] for class_id in picture.class_ids}))}")
            images.append(image_entry(image_id, name, picture.image.shape[:2]))
            instances += _instances(image_id, picture)
        if split != "new":
            write_text(root / f"{split}_tags.csv", "\n".join(lines) + "\n")
            write_json(root / f"{split}_instances.json", document(CLASSES, images, instances))
            _write_voc(root / "VOC2012" / "annotations", split, images, instances)


def _write_voc(folder: Path, split: str, images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> None:
    def voc_id(number: int) -> int:
        return 2030_000000 + number

    images = [{**image, "id": voc_id(image["id"]), "file_name": f"2030_{image['id']:06d}.jpg"} for image in images]
    instances = [{**instance, "image_id": voc_id(instance["image_id"])} for instance in instances]
    name = {"train": "trainaug", "val": "val"}[split]
    write_json(folder / f"voc_2012_{name}.json", document(CLASSES, images, instances))


def _instances(image_id: int, picture: Picture) -> list[dict[str, Any]]:
    """Annotations; ``part`` is an addition to COCO's format: the visible pixels of the telling part."""
    return [
        {**instance_entry(image_id, class_id + 1, mask), "part": encode(part)}
        for class_id, mask, part in zip(picture.class_ids, picture.masks, picture.parts, strict=True)
    ]


def _write_points(path: Path, picture: Picture) -> None:
    """One line ``x y class confidence`` per object: the visible pixel deepest inside it, class from 0."""
    lines = []
    for class_id, mask in zip(picture.class_ids, picture.masks, strict=True):
        x, y = deepest_pixel(mask)
        lines.append(f"{x} {y} {class_id} 1.0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def deepest_pixel(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask [H, W] that lies deepest inside, where a person might click."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=94, subsampling=0)
    return buffer.getvalue()


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
