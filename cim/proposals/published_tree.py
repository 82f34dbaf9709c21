"""The published files of one split, made from ``.mat`` files or from a region store (METHOD section 1).

``data`` is the folder that holds ``VOC2012`` and ``coco2017``; the files go to ``data/cob``, ``data/cob_iou``
and ``data/cob_asy_iou``, where the published program looks for them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cim.core.errors import CimError
from cim.core.leftovers import sweep
from cim.core.parallel import StageReport, run_stage
from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.datasets.coco import open_coco
from cim.datasets.voc import SPLITS, open_voc
from cim.proposals.cob import cob_files, read_cob
from cim.proposals.rle import RleFile, read_entries
from cim.storage.published import COB_PROVENANCE, GRIDS_KIND, CobPickle, image_id_of, write_pickle
from cim.storage.store import Store

COB_MAT = {**COB_PROVENANCE, "source": "COB .mat files"}
SETS = {"voc": "VOC2012", "coco": "coco2017"}
FIRST_SPLIT = {"voc": "trainaug", "coco": "train2017"}
_REGIONS_FIX = "cim proposals or cim import"


@dataclass(frozen=True)
class Tree:
    """Where the published program keeps the files of a data set.

    Attributes:
        dataset: "voc" or "coco".
        root: ``data/VOC2012`` or ``data/coco2017``.
    """

    dataset: Literal["voc", "coco"]
    root: Path

    @classmethod
    def find(cls, dataset: Literal["voc", "coco"], data_root: str | Path) -> Tree:
        """From ``data`` or from the data set's own folder."""
        inner = Path(data_root) / SETS[dataset]
        return cls(dataset, inner if inner.is_dir() else Path(data_root))

    @property
    def data_dir(self) -> Path:
        return self.root.resolve().parent

    def mat_dir(self, split: str) -> Path:
        return self.root / (f"COB_SBD_{split}" if self.dataset == "voc" else "COB-COCO")

    def cob(self, split: str) -> Path:
        name = f"voc_2012_{split}" if self.dataset == "voc" else f"coco_2017_{split.split('2017')[0].split('-')[0]}"
        return self.data_dir / "cob" / f"{name}.pkl"

    def matrices(self, folder: str) -> Path:
        return self.data_dir / folder / SETS[self.dataset]

    def open(self, split: str) -> Dataset:
        """The data set of a split.

        Raises:
            CimError: no split of that tree, or its annotations are missing.
        """
        if self.dataset == "voc" and SPLITS.get(split) != 2012:
            years = [name for name, year in SPLITS.items() if year == 2012]
            raise CimError("no such VOC split", expected=" or ".join(years), found=split)
        return (open_voc if self.dataset == "voc" else open_coco)(self.root, split)


@dataclass(frozen=True)
class Task:
    """One image and where its proposals are.

    Attributes:
        image_id, size: as in the data set, (H, W).
        photo: file name, for messages.
        source: ``.mat`` file, region store, or proposals json; None when there is none.
        places: (byte offset, length) of the image's entries in a json.
        allow_empty: keep masks without a pixel.
    """

    image_id: int | str
    size: tuple[int, int]
    photo: str
    source: Path | Store | None
    places: tuple[tuple[int, int], ...] = ()
    allow_empty: bool = False

    @property
    def name(self) -> str:
        """Published file name without ending."""
        return Path(self.photo).stem

    def load(self) -> RegionSet:
        """The proposals.

        Raises:
            CimError: missing, damaged, or of another size than the photo.
        """
        if self.source is None:
            raise CimError("no proposals for this image")
        if isinstance(self.source, Store):
            regions = self.source.load_regions(self.image_id)
            if regions.size != tuple(self.size):
                path = self.source.path(self.image_id)
                raise CimError("masks are not of the photo's size", path=path, expected=self.size, found=regions.size)
            return regions
        if self.source.suffix == ".mat":
            return read_cob(self.source, self.size, self.allow_empty)
        return read_entries(self.source, list(self.places), self.image_id, self.size)


# ---------------------------------------------------------------------- what there is to do


def tasks_from_mat(dataset: Dataset, folder: Path, allow_empty: bool = False) -> list[Task]:
    """One task per photo; ``.mat`` files are matched by the photo's name."""
    refuse_shared_names(dataset, folder)
    files = cob_files(folder)
    return [
        Task(r.image_id, r.size, r.path.name, files.get(image_id_of(r.path.stem)), allow_empty=allow_empty)
        for r in dataset
    ]


def refuse_shared_names(records: Iterable[Record], folder: Path) -> None:
    """``.mat`` files go by the photo's name alone.

    Raises:
        CimError: two photos of one name.
    """
    stems = Counter(image_id_of(record.path.stem) for record in records)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise CimError(f"two photos would share one .mat file: {twice}", path=folder, fix="give photos unique names")


def tasks_from_store(dataset: Dataset, folder: Path) -> list[Task]:
    """One task per photo, from a region store."""
    store = Store.open(folder, "regions", fix=_REGIONS_FIX)
    return [Task(r.image_id, r.size, r.path.name, store) for r in dataset]


def tasks_from_json(dataset: Dataset, path: Path) -> list[Task]:
    """One task per photo; entries are matched by image id, else by the photo's file name."""
    places = {str(key): value for key, value in RleFile.open(path).places.items()}
    tasks = []
    for record in dataset:
        keys = (str(record.image_id), record.path.name, record.path.stem)
        found = next((places[key] for key in keys if key in places), None)
        tasks.append(Task(record.image_id, record.size, record.path.name, path if found else None, tuple(found or ())))
    return tasks


# ---------------------------------------------------------------------- one image


def save_regions(task: Task, store: Store) -> None:
    """Proposals of an image into the region store."""
    store.save_regions(task.image_id, task.load())


def save_grids(task: Task, store: Store) -> None:
    """Boxes uint16 [N, 4] and grids bool [N, 7, 7] of an image into a grids store."""
    if max(task.size) > np.iinfo(np.uint16).max:
        raise CimError("photo too large for the published format", expected="up to 65,535 pixels", found=task.size)
    regions = task.load()
    store.save(task.image_id, boxes=regions.boxes.astype(np.uint16), grids=regions.grids)


def save_matrix(task: Task, folder: Path, which: Literal["iou", "containment"]) -> None:
    """float16 [N, N] of an image as ``<folder>/<name>.pkl``."""
    matrices = task.load().overlaps()
    write_pickle(folder / f"{task.name}.pkl", getattr(matrices, which).astype(np.float16))


# ---------------------------------------------------------------------- one split

Run = Callable[[Callable[[Task], None], list[Task], str], StageReport]


def write_cob(tasks: list[Task], output: Path, run: Run, overwrite: bool = False) -> StageReport:
    """``cob/*.pkl``: dict(indexes, masks, boxes, scores) over the images of a split, in the data set's order.

    Images are first written to ``<output>.parts``, where a killed run continues; the folder goes when all are in.
    The pickle is one object by its format, so it is held in memory once: about 60 bytes per proposal.
    """
    parts = output.with_name(output.name + ".parts")
    complete = output.exists() and not parts.exists()
    if complete and not overwrite:
        return StageReport()
    sweep(output.parent)
    found = (task.source for task in tasks if task.source is not None)
    sources = sorted({str(source.root if isinstance(source, Store) else source.parent) for source in found})
    store = Store.create(parts, GRIDS_KIND, {"sources": sources}, overwrite)
    report = run(partial(save_grids, store=store), _waiting(tasks, store), "grids")
    if not (report.failed and complete):  # a complete file is not replaced by one with gaps
        there = store.seen()
        write_pickle(output, _cob_content(store, [t.image_id for t in tasks if there(t.image_id)]))
    if not report.failed:
        shutil.rmtree(parts)
    return report


def _waiting(tasks: list[Task], store: Store) -> list[Task]:
    there = store.seen()
    return [task for task in tasks if not there(task.image_id)]


def _cob_content(store: Store, image_ids: list[int | str]) -> dict[str, list[Any]]:
    content: dict[str, list[Any]] = {"indexes": image_ids, "masks": [], "boxes": [], "scores": []}
    for image_id in image_ids:
        arrays = store.load(image_id)
        content["masks"].append(arrays["grids"])
        content["boxes"].append(arrays["boxes"])
        content["scores"].append(np.zeros(len(arrays["boxes"]), np.float32))
    return content


def write_matrices(
    tasks: list[Task], folder: Path, which: Literal["iou", "containment"], run: Run, overwrite: bool = False
) -> StageReport:
    """``cob_iou/<set>/`` or ``cob_asy_iou/<set>/``, one file per image; those that exist are kept."""
    sweep(folder)
    waiting = [task for task in tasks if overwrite or not (folder / f"{task.name}.pkl").exists()]
    return run(partial(save_matrix, folder=folder, which=which), waiting, which)


def write_regions(tasks: list[Task], store: Store, run: Run) -> StageReport:
    """A region store, one file per image; those that exist are kept."""
    return run(partial(save_regions, store=store), _waiting(tasks, store), "proposals")


def write_grids(source: CobPickle, store: Store) -> StageReport:
    """A published ``cob/*.pkl`` as a grids store, in this process (the pickle is in its memory already)."""

    def save(image_id: int | str) -> None:
        proposals = source.load(image_id)
        store.save(image_id, boxes=proposals.boxes, grids=proposals.grids, scores=proposals.scores)

    there = store.seen()
    waiting = [image_id for image_id in source.ids() if not there(image_id)]
    return run_stage(save, waiting, description="grids")
