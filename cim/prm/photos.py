"""What the response network eats: photos squashed to a square, or features of a frozen trunk kept on disk."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from cim.config.schema import PRMConfig
from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.leftovers import sweep
from cim.core.photo import read_photo
from cim.datasets.base import Dataset, Record
from cim.engine.read_ahead import read_ahead
from cim.prm.network import ResponseNet, prepare_photo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoSource:
    """Tagged photos, squashed to a square, half of them mirrored."""

    dataset: Dataset
    side: int
    flip: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """``image`` [3, side, side] and ``tags`` [C]; None for a photo without tags.

        Raises:
            CimError: unreadable photo.
        """
        record = self.dataset[index]
        mirrored = self.flip and rng.random() < 0.5
        if not record.tags:
            return None
        image = prepare_photo(read_photo(record.path), self.side)
        tags = one_hot(record, len(self.dataset.classes))
        return {"image_id": record.image_id, "image": image.flip(2) if mirrored else image, "tags": tags}


@dataclass(frozen=True)
class FeatureSource:
    """The same for a frozen trunk: features computed once, as they are and mirrored.

    Attributes:
        features: float16 [n, 1 or 2, D, h, w], mapped from disk.
    """

    dataset: Dataset
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """``features`` [D, h, w] and ``tags`` [C]; None for a photo without tags."""
        record = self.dataset[index]
        view = int(rng.integers(self.features.shape[1]))
        if not record.tags:
            return None
        features = torch.from_numpy(np.array(self.features[index, view]))
        return {"image_id": record.image_id, "features": features, "tags": one_hot(record, len(self.dataset.classes))}


def one_hot(record: Record, num_classes: int) -> Tensor:
    """float32 [C], 1 for the record's tags."""
    tags = torch.zeros(num_classes)
    tags[list(record.tags)] = 1
    return tags


# ---------------------------------------------------------------------- photos in batches


def photo_batches(
    records: Sequence[Record],
    side: int,
    batch: int,
    workers: int,
    description: str,
    failed: dict[str, str] | None = None,
) -> Iterator[tuple[list[Record], Tensor]]:
    """(records, normalised photos [b, 3, side, side]) in order, read ahead by ``workers`` processes.

    Args:
        failed: gets the message of every unreadable photo by its name, and the others go on; None: the first raises.

    Raises:
        CimError: unreadable photo, or a killed worker.
    """
    chunks = [list(records[start : start + batch]) for start in range(0, len(records), batch)]
    loader = read_ahead(_Photos(chunks, side), workers, 2)
    with tqdm(total=len(records), desc=description, unit="image") as bar:
        for chunk, photos in zip(chunks, loader):
            bad = {record.path.name: photo for record, photo in zip(chunk, photos) if isinstance(photo, CimError)}
            if failed is not None:
                failed.update({name: str(error) for name, error in bad.items()})
            elif bad:
                raise next(iter(bad.values()))
            pairs = [(record, photo) for record, photo in zip(chunk, photos) if isinstance(photo, Tensor)]
            if pairs:
                good, images = zip(*pairs)
                # Channels last: a third faster on CPUs.
                yield list(good), torch.stack(images).contiguous(memory_format=torch.channels_last)
            bar.update(len(chunk))


@dataclass(frozen=True)
class _Photos(TorchDataset[list[Tensor | CimError]]):
    chunks: list[list[Record]]
    side: int

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> list[Tensor | CimError]:
        return [self._photo(record) for record in self.chunks[index]]

    def _photo(self, record: Record) -> Tensor | CimError:
        try:
            return prepare_photo(read_photo(record.path), self.side)
        except CimError as error:  # told by the parent, as one readable line
            return error


def feature_cache(net: ResponseNet, dataset: Dataset, prm: PRMConfig, path: Path, device: torch.device) -> Path | None:
    """Features of all photos in a file, float16 [n, 1 or 2 (mirrored), D, h, w]; None when they would be too large.

    Raises:
        CimError: unreadable photo, full disk.
    """
    net.to(device).eval()
    with torch.inference_mode():
        shape = net.trunk(torch.zeros(1, 3, prm.image_size, prm.image_size, device=device)).shape[1:]
    views = 2 if prm.flip else 1
    size = 2 * len(dataset) * views * math.prod(shape) / 1e9
    if size > prm.feature_cache_gb:
        logger.info("features would take %.1f GB, prm.feature_cache_gb allows %.1f", size, prm.feature_cache_gb)
        return None
    sweep(path.parent)  # they are large
    with atomic(path) as temporary:
        table = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(dataset), views, *shape))
        _reserve(temporary)
        done = 0
        for records, images in photo_batches(dataset.records, prm.image_size, 4, prm.workers, "features"):
            for view in range(views):
                table[done : done + len(records), view] = _features(net, images.to(device), mirrored=view == 1)
            done += len(records)
        table.flush()
    return path


def _reserve(path: Path) -> None:
    """Take the disk space of a mapped file: where there is none, writing to the map would end the process unheard.

    Raises:
        OSError: full disk.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@torch.inference_mode()
def _features(net: ResponseNet, images: Tensor, mirrored: bool) -> np.ndarray:
    features = net.trunk(images.flip(3) if mirrored else images)
    return features.half().cpu().numpy()
