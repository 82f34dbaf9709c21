"""Feature maps of a frozen trunk, computed once and kept on disk: half of a light training run is saved.

A folder with a manifest (which trunk, which weights) and one float16 ``.npy`` per image and scale.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.datasets.base import Dataset, Record
from cim.storage.photos import PhotoFile, PhotoTable
from cim.storage.store import Store
from cim.training.samples import resized


@dataclass(frozen=True)
class FeatureCache:
    """Reads and fills the folder; picklable, so that loader workers can read."""

    store: Store

    @classmethod
    def create(cls, root: Path, trunk: str, weights: str, packed: bool = False) -> FeatureCache:
        """Open or begin the cache of one trunk; a new one may be ``packed``.

        Raises:
            CimError: the folder holds the features of another trunk.
        """
        return cls(Store.create(root, "features", {"trunk": trunk, "weights": weights}, packed=packed))

    def path(self, image_id: int | str, side: int) -> Path:
        return self.store.path(image_id, _ending(side))

    def load(self, image_id: int | str, side: int) -> Tensor:
        """float16 [D, h, w].

        Raises:
            CimError: missing or damaged.
        """
        path = self.path(image_id, side)
        try:
            content = self.store.read(image_id, _ending(side))
            if content is None:
                raise FileNotFoundError("nothing there")
            return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise CimError("cannot read features", path=path, found=error, fix=self.store.mend) from error

    @torch.inference_mode()
    def fill(
        self, features: Callable[[Tensor], Tensor], dataset: Dataset, sides: Sequence[int], device: torch.device
    ) -> None:
        """Compute what is missing. ``features``: float [3, h, w] -> [1, D, h', w'].

        Unreadable photos are left out; whoever needs their features reports them.
        """
        if replaced := PhotoTable(self.store.root).replaced(dataset, renew=True):
            kept = {name.rsplit(".", 2)[1] for name in self.store.entries.names()}
            for record, any_side in itertools.product(replaced, kept):
                self.store.remove(record.image_id, f".{any_side}.npy")
        there = {side: self.store.seen(_ending(side)) for side in sides}
        missing = [(r, side) for r in dataset for side in sides if not there[side](r.image_id)]
        for record, side in tqdm(missing, desc="features", unit="image", disable=not missing):
            self._compute(features, record, side, device)

    def _compute(self, features: Callable[[Tensor], Tensor], record: Record, side: int, device: torch.device) -> None:
        try:
            made_from, photo = PhotoFile.of(record.path), read_photo(record.path)
        except CimError:
            return
        values = features(resized(photo, side).to(device))[0].half().cpu().numpy()
        content = io.BytesIO()
        np.save(content, values)
        self.store.write(record.image_id, content.getvalue(), _ending(side))
        PhotoTable(self.store.root).note(record.image_id, made_from)


def _ending(side: int) -> str:
    return f".{side}.npy"
