"""The stage from a trained response network (or annotated points) to the first labels of a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cim.core.errors import CimError
from cim.core.files import fingerprint
from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.datasets.base import Dataset, Record
from cim.mining.told import Told, told_of
from cim.prm.assign import assign_from_peaks, assign_from_points, read_points
from cim.prm.evidence import PeakOptions, class_evidence, complete, speaks_against, with_background
from cim.prm.fit import response_strength
from cim.prm.network import Peaks, ResponseNet
from cim.prm.photos import photo_batches
from cim.prm.told_places import assign_told, told_evidence
from cim.storage.photos import PhotoFile, PhotoTable, drop_replaced, tags_of
from cim.storage.published import (
    ClusterSource,
    RegionSource,
    mat_from_clusters,
    open_clusters,
    published_names,
    write_pickle,
)
from cim.storage.store import Store


@dataclass(frozen=True)
class AssignOptions:
    """See :func:`cim.prm.assign.assign`; background "negative" is "touching" there, and more is added from the maps."""

    mean_mask_threshold: float = 0.7
    iou: float = 0.5
    background: Literal["touching", "negative", "rest"] = "touching"


# ---------------------------------------------------------------------- peaks


def peak_provenance(net: ResponseNet, checkpoint: Path, options: PeakOptions) -> dict[str, Any]:
    """What peaks depend on; the weights by their content, since a file of one name may be trained again."""
    return {"weights": fingerprint(checkpoint), "image_size": net.image_size} | options.provenance()


def store_peaks(
    net: ResponseNet,
    records: Sequence[Record],
    store: Store,
    options: PeakOptions,
    *,
    batch: int = 8,
    workers: int = 2,
) -> dict[str, str]:
    """Peaks of the tagged classes of every photo that has none stored yet.

    Args:
        net: in eval mode, on the device to use.

    Returns:
        the message of every unreadable photo, by its name; the others are done.
    """
    failed: dict[str, str] = {}
    device = next(net.parameters()).device
    drop_replaced(store, records, tags_of)
    there = store.seen()
    waiting = [record for record in records if not there(record.image_id)]
    untagged = [record for record in waiting if not record.tags]
    tagged = [record for record in waiting if record.tags]
    for record in untagged:  # nothing to look for: known without the network
        save_peaks(store, record, Peaks(np.zeros((0, 3), np.int64), np.zeros(0, np.float32), (1, 1)))
    for chunk, images in photo_batches(tagged, net.image_size, batch, workers, "peaks", failed):
        with torch.inference_mode():
            features = net.trunk(images.to(device))
            small = net.head(features).float()
            maps, strength = net.enlarge(small), response_strength(features)
        for n, record in enumerate(chunk):
            peaks = options.find(maps[n], record.tags)
            kept = {"maps": _half(small[n, list(record.tags)]), "strength": _half(strength[n])} if options.maps else {}
            save_peaks(store, record, peaks, **kept)
    return failed


def save_peaks(store: Store, record: Record, peaks: Peaks, **kept: np.ndarray) -> None:
    """Arrays ``peaks`` int32 [P, 3], ``values`` float32 [P], ``grid`` int32 [2], and what else is ``kept``.

    With :attr:`PeakOptions.maps` that is ``maps`` float16 [T, h, w] of the photo's tags and ``strength`` [h, w].
    """
    index, grid = peaks.index.astype(np.int32), np.array(peaks.grid, np.int32)
    store.save(record.image_id, peaks=index, values=peaks.values, grid=grid, **kept)
    PhotoTable(store.root).note(record.image_id, PhotoFile.of(record.path, tags_of(record)))


def _half(values: Tensor) -> np.ndarray:
    return values.clamp(-60000, 60000).half().cpu().numpy()


def load_peaks(store: Store, image_id: int | str) -> Peaks:
    """What :func:`save_peaks` wrote.

    Raises:
        CimError: missing or damaged.
    """
    arrays = store.load(image_id)
    try:
        height, width = (int(side) for side in arrays["grid"])
        index, values = arrays["peaks"].astype(np.int64, casting="same_kind"), arrays["values"]
        if values.ndim != 1 or values.dtype.kind != "f" or index.shape != (len(values), 3):
            raise ValueError("peaks and values disagree")
        if (index < 0).any() or (index[:, 1:] >= (height, width)).any():
            raise ValueError("a peak outside its map")
        return Peaks(index, values, (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise CimError("damaged peaks file", path=store.path(image_id), found=error, fix=store.mend) from error


# ---------------------------------------------------------------------- labels


@dataclass(frozen=True)
class LabelStage:
    """First labels of one image at a time, into a store; picklable, for worker processes.

    Attributes:
        regions: proposals with their masks.
        output: clusters store.
        peaks: where peaks are; None: points.
        points: folder of point files, used without peaks.
        evidence: say of every proposal how well it covers what the maps show, and give every tag a label; from peaks
            stored with maps.
        known: heed what is known of the photos beyond tags.
    """

    regions: RegionSource
    output: Store
    options: AssignOptions
    num_classes: int
    peaks: Store | None = None
    points: Path | None = None
    evidence: bool = False
    known: bool = False

    def __call__(self, record: Record) -> None:
        """Label the record's proposals and save.

        Raises:
            CimError: no proposals, no peaks, bad points, or files that do not belong together.
        """
        photo = PhotoFile.of(record.path, tags_of(record))
        labels = self.label(record)
        kept = {} if labels.evidence is None else {"evidence": labels.evidence.astype(np.float16)}
        self.output.save(record.image_id, class_ids=labels.class_ids, cluster=labels.cluster, **kept)
        PhotoTable(self.output.root).note(record.image_id, photo)

    def label(self, record: Record) -> Clusters:
        """First labels of the record's proposals."""
        regions = self.regions.load(record.image_id)
        if not isinstance(regions, RegionSet):
            raise CimError(
                "published grids have no masks to assign labels on",
                fix="import the .mat files (cim import --from mat) or use published label_assign",
            )
        if regions.size != record.size:
            raise CimError("proposals made for another size of the photo", expected=record.size, found=regions.size)
        if self.peaks is not None:
            told = told_of(record.known, regions, self.num_classes) if self.known else None
            return self.from_peaks(load_peaks(self.peaks, record.image_id), regions, record, told)
        path = points_file(self.points or Path(), record)
        return assign_from_points(regions, read_points(path, self.num_classes), **asdict(self.options))

    def from_peaks(self, peaks: Peaks, regions: RegionSet, record: Record, told: Told | None) -> Clusters:
        """The labels; with evidence also that, and a label for every tag.

        Raises:
            CimError: evidence is wanted, and the peaks were stored without maps, or with those of other tags.
        """
        options = asdict(self.options)
        if not self.evidence or not record.tags:
            if told is None:
                return assign_from_peaks(regions, peaks, **options)
            return assign_told(regions, peaks, told, record.tags, None, **options)
        assert self.peaks is not None
        arrays = self.peaks.load(record.image_id)
        path, again = self.peaks.path(record.image_id), "make them again: --overwrite"
        if "maps" not in arrays:
            raise CimError("peaks without maps", path=path, fix=again)
        if len(arrays["maps"]) != len(record.tags):
            expected, found = f"maps of {len(record.tags)} tags", len(arrays["maps"])
            raise CimError("peaks made for other tags", path=path, expected=expected, found=found, fix=again)
        evidence = class_evidence(regions, arrays["maps"], arrays["strength"])
        if told is None:
            labels = assign_from_peaks(regions, peaks, **options)
        else:
            labels = assign_told(regions, peaks, told, record.tags, evidence, **options)
            evidence = told_evidence(evidence, told, record.tags)
        if self.options.background == "negative":
            labels = with_background(labels, speaks_against(regions, arrays["maps"]))
        whole = np.ones((len(regions), self.num_classes + 1), np.float32)
        whole[:, [tag + 1 for tag in record.tags]] = evidence
        return replace(complete(labels, evidence, record.tags), evidence=whole)


def points_file(folder: Path, record: Record) -> Path:
    """``<folder>/<photo's name>.txt``, or one of the published names of its id."""
    names = (record.path.stem, *published_names(record.image_id))
    return next((p for p in (folder / f"{name}.txt" for name in names) if p.is_file()), folder / f"{names[0]}.txt")


def labelled_tags(dataset: Dataset, clusters: ClusterSource) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many photos have each tag, by class name, and the names of those where the tag has no first label."""
    tags: dict[str, int] = {}
    without: dict[str, list[str]] = {}
    there = clusters.seen()
    for record in dataset:
        found = set(clusters.load(record.image_id).class_ids.tolist()) if there(record.image_id) else set()
        for tag in record.tags:
            name = dataset.classes[tag]
            tags[name] = tags.get(name, 0) + 1
            if tag + 1 not in found:
                without.setdefault(name, []).append(record.path.name)
    return tags, without


def export_label_assign(clusters: Path, dataset: Dataset, path: Path) -> int:
    """First labels of a split as a published ``label_assign/*.pkl``; how many images it holds.

    The format is one object, so it is held in memory once: 4 bytes per proposal and class.
    """
    source = open_clusters(clusters)
    there = source.seen()
    records = [record for record in dataset if there(record.image_id)]
    mats = [mat_from_clusters(source.load(record.image_id), len(dataset.classes)) for record in records]
    write_pickle(path, {"indexes": [record.image_id for record in records], "mat": mats, "score": []})
    return len(records)
