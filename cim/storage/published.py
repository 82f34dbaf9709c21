"""Files of the published program at the border: pickles read safely, proposals and first labels served by image.

RunPaths (METHOD section 1), ``data`` being the folder that holds ``VOC2012`` and ``coco2017``::

    data/cob/<name>.pkl                    indexes, masks (7x7 grids), boxes, scores of all images
    data/cob_iou/<set>/<image>.pkl         float16 [N, N] IoU
    data/cob_asy_iou/<set>/<image>.pkl     float16 [N, N] containment
    data/label_assign/<name>.pkl           indexes, mat, score
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.regions import GRID, Overlaps, RegionSet
from cim.core.safe_pickle import load_plain
from cim.core.types import Clusters
from cim.datasets.base import Dataset, Record
from cim.storage.photos import refuse_replaced
from cim.storage.store import MANIFEST, Store

logger = logging.getLogger(__name__)

GRIDS_KIND = "grids"  # store made from a published cob/*.pkl: boxes and 7x7 grids without masks
_PUBLISHED_NAME = re.compile(r"(\d{4})_(\d{6})|(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")
_PROPOSALS_FIX = "cim proposals or cim import"


def read_pickle(path: str | Path) -> Any:
    """A pickle of NumPy arrays and plain containers; nothing in it is executed.

    Raises:
        CimError: missing, truncated, foreign, or asking for anything that could run code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return load_plain(file, path)
    except FileNotFoundError:
        raise CimError("missing file", path=path) from None
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from error


def write_pickle(path: str | Path, value: Any) -> None:
    """Atomically; protocol 4, which every Python 3 and NumPy of the published program's time reads."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(value, file, protocol=4)


def published_names(image_id: int | str) -> tuple[str, ...]:
    """File names (without ending) under which an image may be published: VOC's, then COCO's."""
    text = str(image_id)
    if not text.isdigit():
        return (text,)
    return f"{text[:4]}_{text[4:]}", f"{int(text):012d}"


def image_id_of(name: str) -> int | str:
    """Image id of a published file name: ``2007_000100`` -> 2007000100, ``COCO_val2014_000000000042`` -> 42,
    ``000000000042`` -> 42; any other name is its own id."""
    match = _PUBLISHED_NAME.fullmatch(name)
    return int("".join(filter(None, match.groups()))) if match else name


@dataclass(frozen=True)
class PublishedProposals:
    """Proposals of one image without their masks: all that a published ``cob/*.pkl`` knows.

    Attributes:
        boxes: float32 [N, 4], xyxy, exclusive, pixels of the photo.
        grids: bool [N, 7, 7].
        scores: float32 [N].
        iou_path, containment_path: the published matrices; None when they were not found.
    """

    boxes: np.ndarray
    grids: np.ndarray
    scores: np.ndarray
    iou_path: Path | None = None
    containment_path: Path | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def overlaps(self) -> Overlaps:
        """IoU and containment, float32 [N, N] (published in float16).

        Raises:
            CimError: a matrix is missing, damaged, or of another number of proposals.
        """
        return Overlaps(self._matrix("cob_iou", self.iou_path), self._matrix("cob_asy_iou", self.containment_path))

    def _matrix(self, folder: str, path: Path | None) -> np.ndarray:
        if path is None:
            raise CimError(
                f"no {folder} file for this image: published grids carry no masks to compute it from",
                expected=f"{folder}/<set>/<image>.pkl beside cob/",
                fix=f"download {folder}, or import the .mat files with cim import",
            )
        matrix, shape = read_pickle(path), (len(self), len(self))
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f" or matrix.shape != shape:
            found = f"{matrix.dtype} {matrix.shape}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
            raise CimError("not the overlaps of these proposals", path=path, expected=f"float {shape}", found=found)
        return matrix.astype(np.float32)


def lineage(provenance: dict[str, Any]) -> dict[str, Any]:
    """What tells proposals of one kind from another's: their provenance without where they came from or lie."""
    return {key: value for key, value in provenance.items() if key not in ("source", "data_dir")}


class RegionSource(Protocol):
    """Proposals by image id, whatever file they come from."""

    @property
    def provenance(self) -> dict[str, Any]: ...
    def has(self, image_id: int | str) -> bool: ...
    def seen(self) -> Callable[[int | str], bool]: ...
    def load(self, image_id: int | str) -> RegionSet | PublishedProposals: ...


@dataclass(frozen=True)
class _InStore:
    """What a store holds, by image."""

    store: Store

    @property
    def provenance(self) -> dict[str, Any]:
        return self.store.provenance

    def has(self, image_id: int | str) -> bool:
        return self.store.has(image_id)

    def seen(self) -> Callable[[int | str], bool]:
        """:meth:`has` of what is there now, for many images."""
        return self.store.seen()


@dataclass(frozen=True)
class StoredRegions(_InStore):
    """Our region store (one RegionSet per image)."""

    def load(self, image_id: int | str) -> RegionSet:
        return self.store.load_regions(image_id)


@dataclass(frozen=True)
class StoredGrids(_InStore):
    """A ``grids`` store: an imported ``cob/*.pkl``, one small file per image (flat memory, unlike the pickle)."""

    def load(self, image_id: int | str) -> PublishedProposals:
        arrays = self.store.load(image_id)
        data_dir = self.provenance.get("data_dir")
        return _proposals(
            arrays.get("boxes"), arrays.get("grids"), arrays.get("scores"), image_id, self.store.root, data_dir
        )


# COB's contour network was trained on PASCAL's boundary annotations, which are drawn from masks.
COB_PROVENANCE = {"source": "published cob pickle", "maker": "COB", "trained_on_masks": True}


@dataclass(frozen=True)
class CobPickle:
    """A published ``cob/*.pkl``, whole in memory (about 60 bytes per proposal: COCO's 118,287 images take GBs;
    ``cim import --from pickle`` turns it into a folder that does not)."""

    path: Path
    provenance: dict[str, Any] = field(default_factory=lambda: dict(COB_PROVENANCE))

    @cached_property
    def _content(self) -> dict[str, list[Any]]:
        return read_lists(self.path, ("indexes", "masks", "boxes", "scores"))

    @cached_property
    def _row(self) -> dict[str, int]:
        return _rows(self._content["indexes"], self.path)

    def ids(self) -> list[int | str]:
        """Image ids in the file's order."""
        return [plain_id(i) for i in self._content["indexes"]]

    def has(self, image_id: int | str) -> bool:
        return str(image_id) in self._row

    def seen(self) -> Callable[[int | str], bool]:
        """:meth:`has`: all is in memory."""
        return self.has

    def load(self, image_id: int | str) -> PublishedProposals:
        row = self._row.get(str(image_id))
        if row is None:
            raise CimError(f"no proposals for image {image_id}", path=self.path, fix=_PROPOSALS_FIX)
        content = self._content
        return _proposals(
            content["boxes"][row],
            content["masks"][row],
            content["scores"][row],
            image_id,
            self.path,
            self.path.resolve().parent.parent,
        )


def open_regions(path: str | Path) -> RegionSource:
    """Proposals from a region store, a store of imported published grids, or a published ``cob/*.pkl``.

    Raises:
        CimError: nothing there, or something else there.
    """
    path = Path(path)
    if path.is_file():
        return CobPickle(path)
    if path.is_dir() and (path / MANIFEST).is_file():
        try:
            return StoredGrids(Store.open(path, GRIDS_KIND))
        except CimError:
            pass  # then it has to be a region store, or the error names that
    return StoredRegions(Store.open(path, "regions", fix=_PROPOSALS_FIX))


def refuse_replaced_photos(source: RegionSource, records: Iterable[Record]) -> None:
    """Proposals are to be those of the photos that are there now.

    Raises:
        CimError: photos were replaced since.
    """
    if isinstance(source, StoredRegions):  # others keep no table
        refuse_replaced(source.store, records, fix="cim proposals CONFIG, with the --split of these photos")


def having_proposals(dataset: Dataset, source: RegionSource) -> Dataset:
    """The images that have proposals; how many have none is logged.

    Raises:
        CimError: none has; or some have those of a photo that was replaced since.
    """
    there = source.seen()
    able = dataset.where(lambda record: there(record.image_id))
    if len(dataset) and not len(able):
        raise CimError(f"no image of {dataset.name} has proposals", fix="cim proposals CONFIG")
    refuse_replaced_photos(source, able)
    if len(able) < len(dataset):
        logger.warning("%d of %d images have no proposals and are left out", len(dataset) - len(able), len(dataset))
    return able


class ClusterSource(Protocol):
    """First labels by image id, and what is known about who made them from which proposals."""

    @property
    def provenance(self) -> dict[str, Any]: ...
    def has(self, image_id: int | str) -> bool: ...
    def seen(self) -> Callable[[int | str], bool]: ...
    def load(self, image_id: int | str) -> Clusters: ...


@dataclass(frozen=True)
class StoredClusters(_InStore):
    """Our clusters store (arrays ``class_ids``, ``cluster`` and, if first labels were made with it, ``evidence``)."""

    def load(self, image_id: int | str) -> Clusters:
        arrays = self.store.load(image_id)
        if "klass" in arrays:  # as version 0.1 named it
            arrays["class_ids"] = arrays.pop("klass")
        try:
            class_ids, cluster = (
                arrays[name].astype(np.int64, casting="same_kind") for name in ("class_ids", "cluster")
            )
            evidence = arrays["evidence"].astype(np.float32, casting="same_kind") if "evidence" in arrays else None
            if class_ids.ndim != 1 or cluster.ndim != 1 or (evidence is not None and evidence.ndim != 2):
                raise ValueError("arrays of another shape")
            return Clusters(class_ids, cluster, evidence)
        except (KeyError, TypeError, ValueError) as error:
            path = self.store.path(image_id)
            raise CimError("damaged clusters file", path=path, found=error, fix="delete it and run again") from error


@dataclass(frozen=True)
class LabelAssignPickle:
    """A published ``label_assign/*.pkl``."""

    path: Path
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _content(self) -> dict[str, list[Any]]:
        return read_lists(self.path, ("indexes", "mat"))

    @cached_property
    def _row(self) -> dict[str, int]:
        return _rows(self._content["indexes"], self.path)

    def has(self, image_id: int | str) -> bool:
        return str(image_id) in self._row

    def seen(self) -> Callable[[int | str], bool]:
        """:meth:`has`: all is in memory."""
        return self.has

    def load(self, image_id: int | str) -> Clusters:
        row = self._row.get(str(image_id))
        if row is None:
            raise CimError(f"no first labels for image {image_id}", path=self.path)
        try:
            return clusters_from_mat(np.asarray(self._content["mat"][row]))
        except ValueError as error:
            raise CimError(f"bad first labels of image {image_id}", path=self.path, found=error) from error


def open_clusters(path: str | Path) -> ClusterSource:
    """First labels from a clusters store or a published ``label_assign/*.pkl``.

    Raises:
        CimError: nothing there, or something else there.
    """
    path = Path(path)
    if path.is_file():
        return LabelAssignPickle(path)
    return StoredClusters(Store.open(path, "clusters", fix="cim labels"))


def clusters_from_mat(mat: np.ndarray) -> Clusters:
    """Published first labels [N, C+1] (the cluster number in its class's column, else 0) -> Clusters.

    Raises:
        ValueError: not a number matrix, or a proposal with two classes.
    """
    if mat.ndim != 2 or mat.shape[1] < 2 or mat.dtype.kind not in "fiu":
        raise ValueError(f"expected numbers [N, C+1], found {mat.dtype} {mat.shape}")
    if ((mat > 0).sum(1) > 1).any():
        raise ValueError("a proposal has two classes")
    class_ids = np.where((mat > 0).any(1), mat.argmax(1), -1).astype(np.int64)
    return Clusters(class_ids, mat.max(1).astype(np.int64))


def mat_from_clusters(clusters: Clusters, num_classes: int) -> np.ndarray:
    """The inverse of :func:`clusters_from_mat`: float32 [N, C+1]."""
    mat = np.zeros((len(clusters), num_classes + 1), np.float32)
    labelled = np.flatnonzero(clusters.class_ids >= 0)
    mat[labelled, clusters.class_ids[labelled]] = clusters.cluster[labelled]
    return mat


def read_detections_pickle(path: str | Path) -> dict[int | str, dict[str, np.ndarray]]:
    """Published ``detections.pkl`` / ``discovery.pkl``: image id -> {"boxes": [N, 4], "scores": [N, columns]}.

    The published program keys them by the photo's path on its own machine; the id is taken from the file name.

    Raises:
        CimError: not such a file.
    """
    content = read_pickle(path)
    boxes = content.get("all_boxes", content) if isinstance(content, dict) else None
    if not isinstance(boxes, dict):
        raise CimError("not a detections pickle", path=path, expected="a dict all_boxes", found=type(content).__name__)
    result = {}
    for key, value in boxes.items():
        if not isinstance(value, dict) or not {"boxes", "scores"} <= value.keys():
            raise CimError(f"no boxes and scores for {key}", path=path, expected="dict(boxes, scores) per image")
        name = str(key).replace("\\", "/").rpartition("/")[2]
        image_id = key if isinstance(key, int) else image_id_of(Path(name).stem)
        result[image_id] = {"boxes": np.asarray(value["boxes"]), "scores": np.asarray(value["scores"])}
    return result


def read_lists(path: str | Path, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    """A published dict of lists that run over the images.

    Raises:
        CimError: not a dict, a key missing, or lists of different lengths.
    """
    content = read_pickle(path)
    found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise CimError("another kind of pickle", path=path, expected=f"a dict of {', '.join(keys)}", found=found)
    lengths = {key: len(content[key]) if hasattr(content[key], "__len__") else None for key in keys}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise CimError("lists of different lengths", path=path, found=lengths)
    return {key: content[key] for key in keys}


def plain_id(value: Any) -> int | str:
    """An id as pickled by someone (NumPy number, float, text) -> int where it is a number."""
    if isinstance(value, (int, float, np.number)):
        return int(value)
    return int(value) if str(value).isdigit() else str(value)


def _rows(indexes: list[Any], path: Path) -> dict[str, int]:
    rows = {str(plain_id(image_id)): row for row, image_id in enumerate(indexes)}
    if len(rows) < len(indexes):
        raise CimError("an image is listed twice", path=path, found=f"{len(indexes)} entries, {len(rows)} images")
    return rows


def _proposals(
    boxes: Any, grids: Any, scores: Any, image_id: int | str, path: Path, data_dir: str | Path | None
) -> PublishedProposals:
    boxes, grids = np.asarray(boxes), np.asarray(grids)
    if boxes.size == 0:  # no proposals: the shapes of empty lists are free
        boxes, grids = np.zeros((0, 4), np.float32), np.zeros((0, GRID, GRID), bool)
    if boxes.shape[1:] != (4,) or grids.shape != (len(boxes), GRID, GRID):
        raise CimError(
            f"bad proposals of image {image_id}",
            path=path,
            expected="boxes [N, 4] and grids [N, 7, 7]",
            found=f"{list(boxes.shape)} and {list(grids.shape)}",
        )
    try:
        boxes = boxes.astype(np.float32)
        same = np.shape(scores) == (len(boxes),)
        scores = np.asarray(scores, np.float32) if same else np.zeros(len(boxes), np.float32)
    except (TypeError, ValueError) as error:
        raise CimError(f"bad proposals of image {image_id}", path=path, expected="numbers", found=error) from None
    iou, containment = (_matrix_path(data_dir, folder, image_id) for folder in ("cob_iou", "cob_asy_iou"))
    return PublishedProposals(boxes, grids != 0, scores, iou, containment)


def _matrix_path(data_dir: str | Path | None, folder: str, image_id: int | str) -> Path | None:
    root = Path(data_dir or ".") / folder
    if data_dir is None or not root.is_dir():
        return None
    names = [f"{name}.pkl" for name in published_names(image_id)]
    usual = (root / folder / name for folder in ("VOC2012", "coco2017", "") for name in names)
    found = next((path for path in usual if path.is_file()), None)
    if found is not None:
        return found
    others = (path for folder in sorted(root.iterdir()) if folder.is_dir() for path in map(folder.joinpath, names))
    return next((path for path in others if path.is_file()), None)
