"""What was found on one photo, and the forms in which others want it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import write_json, write_text
from cim.core.run_lengths import mask_areas
from cim.core.types import Instances

if TYPE_CHECKING:
    import supervision

_SHOWN = 1024  # long side of the picture in a notebook, pixels
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Instances found on one photo, best first.

    Attributes:
        image: uint8 [H, W, 3], the photo, upright.
        instances: masks as run lengths, boxes (float32 [n, 4], xyxy, exclusive, pixels), class indices, scores.
        classes: names of all classes of the network.
        path: the photo's file; None where it did not come from one.
    """

    image: np.ndarray
    instances: Instances
    classes: tuple[str, ...]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.instances)

    def __repr__(self) -> str:
        found = ", ".join(f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True))
        height, width = self.image.shape[:2]
        return f"<{self.path.name if self.path else 'photo'}, {width} x {height}: {found or 'nothing found'}>"

    @cached_property
    def masks(self) -> np.ndarray:
        """bool [n, H, W]."""
        if not len(self):
            return np.zeros((0, *self.image.shape[:2]), bool)
        return np.moveaxis(coco_mask.decode(self.instances.rles), 2, 0).astype(bool)

    @property
    def boxes(self) -> np.ndarray:
        """float32 [n, 4], xyxy, exclusive, pixels."""
        return self.instances.boxes

    @property
    def labels(self) -> list[str]:
        """n class names."""
        return [self.classes[k] for k in self.instances.class_ids]

    @property
    def scores(self) -> np.ndarray:
        """float32 [n]."""
        return self.instances.score

    def to_coco(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """COCO annotations with ``score``; class c has category id c + 1."""
        found = self.instances
        areas = mask_areas(found.rles).tolist()
        return [
            {
                "image_id": image_id,
                "category_id": int(class_id) + 1,
                "segmentation": rle,
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": int(area),
                "iscrowd": 0,
                "score": float(score),
            }
            for class_id, rle, (x1, y1, x2, y2), area, score in zip(
                found.class_ids, found.rles, found.boxes, areas, found.score, strict=True
            )
        ]

    def to_yolo(self, scores: bool = False) -> list[str]:
        """A line of ultralytics' labels per instance: class 0..C-1, then x y x y ... as shares of width and height.

        The polygon of a mask with holes or several parts is joined by bridges of no width, as in ``cim export``.

        Args:
            scores: the score as a last number, as ultralytics does with ``save_conf``.
        """
        from cim.labels.formats.polygons import joined, outlines  # OpenCV and SciPy, which few predictions need

        size = self.image.shape[1::-1]
        lines = []
        for class_id, rle, score in zip(self.instances.class_ids, self.instances.rles, self.scores, strict=True):
            polygon = joined(outlines(coco_mask.decode(rle).astype(bool)))
            numbers = (
                ((polygon + 0.25) / size).ravel().tolist()
            )  # a quarter into the pixel: rounded or cut, the same one
            numbers += [float(score)] if scores else []
            lines.append(" ".join([str(class_id), *(f"{number:.6f}" for number in numbers)]))
        return lines

    def to_supervision(self) -> supervision.Detections:
        """supervision's Detections: boxes, masks, scores, class indices, and names as ``data["class_name"]``.

        Raises:
            CimError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise CimError("supervision is not installed", fix="pip install 'cim[supervision]'") from None
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.instances.class_ids,
            data={"class_name": np.array(self.labels, dtype=np.str_)},
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row per instance, for ``pandas.DataFrame(result.rows())`` or a csv: numbers and texts only.

        ``photo`` (file, or None), ``label``, ``class_id`` (0..C-1), ``score``, ``x1``, ``y1``, ``x2``, ``y2`` (pixels,
        exclusive), ``area`` (pixels of the mask).
        """
        found = self.instances
        return [
            {
                "photo": None if self.path is None else str(self.path),
                "label": label,
                "class_id": int(class_id),
                "score": float(score),
                **dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)),
                "area": int(area),
            }
            for label, class_id, score, box, area in zip(
                self.labels, found.class_ids, found.score, found.boxes, mask_areas(found.rles), strict=True
            )
        ]

    def crops(self, margin: float = 0.0, cut_out: bool = False) -> list[np.ndarray]:
        """The part of the photo inside every box, uint8 [h, w, 3].

        Args:
            margin: what is added on every side, as a share of the box's own sides; ends at the photo's edge.
            cut_out: uint8 [h, w, 4] instead, transparent outside the mask.
        """
        height, width = self.image.shape[:2]
        pictures = []
        for number, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            more_x, more_y = margin * (x2 - x1), margin * (y2 - y1)
            rows = slice(max(0, int(y1 - more_y)), min(height, int(np.ceil(y2 + more_y))))
            columns = slice(max(0, int(x1 - more_x)), min(width, int(np.ceil(x2 + more_x))))
            picture = self.image[rows, columns]
            if cut_out:
                alpha = self.masks[number, rows, columns].astype(np.uint8) * 255
                picture = np.dstack([picture, alpha])
            pictures.append(picture.copy())
        return pictures

    def overlay(self) -> np.ndarray:
        """The photo with masks, class names and scores painted on it, uint8 [H, W, 3]."""
        from cim.pictures.visualize import draw_instances

        found = self.instances
        return draw_instances(self.image, found.rles, self.labels, found.score.tolist(), found.class_ids.tolist())

    def save(self, path: str | Path) -> Path:
        """Write what the ending of ``path`` says; the path.

        ``.json``: COCO, of this photo alone; ``.txt``: :meth:`to_yolo`; ``.jpg``, ``.png``, ``.webp``: the overlay.

        Raises:
            CimError: another ending, or the file cannot be written.
        """
        from cim.pictures.visualize import save_picture

        path = Path(path)
        ending = path.suffix.lower()
        if ending == ".json":
            write_json(path, as_coco([self], self.classes))
        elif ending == ".txt":
            write_text(path, "".join(f"{line}\n" for line in self.to_yolo()))
        elif ending in _PICTURES:
            save_picture(path, self.overlay())
        else:
            raise CimError("no such form of a prediction", path=path, expected=", ".join((".json", ".txt", *_PICTURES)))
        return path

    def show(self) -> None:
        """Show the overlay: below the cell in a notebook, else in the system's picture viewer."""
        try:
            from IPython.core.getipython import get_ipython
            from IPython.display import display
        except ImportError:
            pass
        else:
            if get_ipython() is not None:
                display(self)
                return
        Image.fromarray(self.overlay()).show()

    def _repr_jpeg_(self) -> bytes:
        """What a notebook shows for a prediction."""
        picture = Image.fromarray(self.overlay())
        picture.thumbnail((_SHOWN, _SHOWN))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        return file.getvalue()


def as_coco(found: Iterable[Prediction], classes: Sequence[str]) -> dict[str, Any]:
    """A COCO json of photos with what was found on them; ids of photos and instances count from 1.

    Predictions are taken one after the other and not kept.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        height, width = one.image.shape[:2]
        images.append({"id": number, "file_name": str(one.path or ""), "height": height, "width": width})
        for annotation in one.to_coco(number):
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}
