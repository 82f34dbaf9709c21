"""Scenes (:mod:`cim.training.scenes`) on disk, and as samples among the photos of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Sample, SceneTruth
from cim.datasets.base import Dataset, Record
from cim.engine.loader import Source
from cim.mining.scene_labels import scene_clusters
from cim.storage.store import Store
from cim.training.pooled_cache import PooledCache
from cim.training.samples import make_sample
from cim.training.scenes import Cutout, certain_instance, compose, cut_out, scene_truth

_DRAWS = 100  # of a scene, until too few classes can give one
FIX = "cim scenes CONFIG"


class Regions(Protocol):
    """Proposals by image id."""

    def seen(self) -> Callable[[int | str], bool]: ...
    def load(self, image_id: int | str) -> Any: ...


def certain_cutouts(
    dataset: Dataset, regions: Regions, scores: Store, photo_of: Callable[[Path], np.ndarray]
) -> dict[int, list[Cutout]]:
    """Instances that are surely one, by class 0..C-1, from the photos with a single tag.

    Args:
        scores: what a trained network gave the training photos (kind "detections").
        photo_of: reads a photo, uint8 [H, W, 3].
    """
    found: dict[int, list[Cutout]] = {}
    proposed, scored = regions.seen(), scores.seen()
    for record in dataset:
        if len(record.tags) != 1 or not proposed(record.image_id) or not scored(record.image_id):
            continue
        proposals, (class_id,) = regions.load(record.image_id), record.tags
        best = certain_instance(proposals, scores.load(record.image_id)["scores"][:, class_id])
        if best is not None:
            mask = proposals.masks([best])[0]
            found.setdefault(class_id, []).append(cut_out(photo_of(record.path), mask))
    return found


def draw_scene(
    dataset: Dataset,
    cutouts: dict[int, list[Cutout]],
    photo_of: Callable[[Path], np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int, tuple[int, ...]]:
    """One scene: picture, label map (:func:`cim.training.scenes.compose`), class, and all its tags.

    A class comes in proportion to the square root of how many instances it has; the background is any photo without it.

    Raises:
        CimError: no class has two instances and a photo without it, or no draw succeeds.
    """
    classes = sorted(c for c, found in cutouts.items() if len(found) > 1)
    chance = np.array([len(cutouts[c]) for c in classes]) ** 0.5
    for _ in range(_DRAWS if classes else 0):
        class_id = int(rng.choice(classes, p=chance / chance.sum()))
        record = dataset[int(rng.integers(len(dataset)))]
        if class_id in record.tags or not record.tags:
            continue
        drawn = compose(photo_of(record.path), cutouts[class_id], rng)
        if drawn is not None:
            return *drawn, class_id, tuple(sorted({class_id, *record.tags}))
    raise CimError("no scenes can be made", expected="a class with two certain instances, and photos without it")


@dataclass(frozen=True)
class Scenes:
    """Stored scenes, one file each: ``photo`` uint8 [h, w, 3], ``iou`` and ``covered`` float32 [M, N], ``class_id``
    and ``tags``; their proposals in the folder "regions" beside. Picklable, for loader workers.
    """

    store: Store
    regions: Store

    @classmethod
    def create(cls, root: Path, provenance: dict[str, Any], overwrite: bool = False, packed: bool = False) -> Scenes:
        """Begin or continue a folder; ``provenance`` names the ``classes``, new stores may be ``packed``.

        Raises:
            CimError: the folder holds something else.
        """
        store = Store.create(root / "scenes", "scenes", provenance, overwrite, packed)
        return cls(store, Store.create(root / "regions", "regions", provenance, overwrite, packed))

    @classmethod
    def open(cls, root: Path) -> Scenes:
        """Raises:
        CimError: there are none.
        """
        scenes = cls(Store.open(root / "scenes", "scenes", FIX), Store.open(root / "regions", "regions", FIX))
        if not len(scenes):
            raise CimError("no scenes here", path=root, fix=FIX)
        return scenes

    def __len__(self) -> int:
        return len(self.store)

    def save(
        self, number: int, photo: np.ndarray, labels: np.ndarray, regions: RegionSet, class_id: int, tags: Sequence[int]
    ) -> None:
        """Scene ``number``, from 0 without gaps."""
        truth = scene_truth(regions, labels)
        self.regions.save_regions(number, regions)  # first: a scene that is there has its proposals
        self.store.save(number, photo=photo, **truth._asdict(), class_id=np.array(class_id), tags=np.array(tags))


@dataclass(frozen=True)
class SceneSource:
    """Scenes as training samples; exact first labels and truth in them.

    Attributes:
        scenes: where they are.
        classes: C.
        side: long side, pixels.
        max_proposals: see :func:`cim.samples.keep_best`.
        pooled: what the light head makes of them.
    """

    scenes: Scenes
    classes: int
    side: int
    max_proposals: int | None = None
    pooled: PooledCache | None = None

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def dataset(self) -> Dataset:
        """Stand-ins for the scenes, numbered as they are; every one tagged."""
        names = tuple(map(str, range(self.classes)))
        records = tuple(Record(_name(number), Path(_name(number)), (0, 0), (0,)) for number in range(len(self)))
        return Dataset("scenes", names, tuple(range(self.classes)), records)

    def sample_at(self, index: int, side: int, flip: bool = False) -> Sample | None:
        """Scene ``index`` at a given scale; None without proposals.

        Raises:
            CimError: damaged scene.
        """
        stored, regions = self.scenes.store.load(index), self.scenes.regions.load_regions(index)
        if not len(regions):
            return None
        photo, class_id, tags = stored["photo"], int(stored["class_id"]), tuple(map(int, stored["tags"]))
        truth = SceneTruth(stored["iou"], stored["covered"])
        record = Record(_name(index), Path(_name(index)), photo.shape[:2], tags)
        clusters = scene_clusters(truth, class_id)
        sample = make_sample(record, regions, clusters, side, flip, self.classes, self.max_proposals, photo=photo)
        known = torch.from_numpy(np.stack(truth)[:, :, sample.proposal.numpy()])
        pooled = None if self.pooled is None else self.pooled.load(record.image_id, len(regions))[sample.proposal]
        return replace(sample, truth=known, truth_class=torch.tensor(class_id + 1), pooled=pooled)

    def sample(self, index: int, rng: np.random.Generator) -> Sample | None:
        """As :meth:`sample_at`, at the source's side."""
        return self.sample_at(index, self.side)


@dataclass(frozen=True)
class Mixed:
    """Photos, and so many scenes among each round of them.

    Attributes:
        photos, scenes: the sources; which scene comes is drawn.
        count: scenes in a round.
    """

    photos: Source
    scenes: Source
    count: int

    def __len__(self) -> int:
        return len(self.photos) + self.count

    def sample(self, index: int, rng: np.random.Generator) -> Any | None:
        if index < len(self.photos):
            return self.photos.sample(index, rng)
        return self.scenes.sample(int(rng.integers(len(self.scenes))), rng)


def among_scenes(photos: Source, trained_on: Source) -> Source:
    """These photos in place of those of ``trained_on``, with its scenes where it has any."""
    return replace(trained_on, photos=photos) if isinstance(trained_on, Mixed) else photos


def _name(number: int) -> str:
    return f"scene {number}"
