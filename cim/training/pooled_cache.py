"""What the light head reads of every proposal, computed once: of a frozen trunk nothing else changes while training.

A tenth of the disk that the trunk's maps take, and a training step without pooling. Which atoms a proposal has and how
large they are is kept beside it: all that mining needs, so that training reads neither photos nor label maps again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.types import Sample
from cim.datasets.base import Dataset
from cim.models.cim_net import CIMNet
from cim.models.region_pool import RegionPool
from cim.storage.photos import PhotoFile, PhotoTable, drop_replaced
from cim.storage.store import Store

_LARGEST = 60000.0  # float16 ends at 65504


class SampleSource(Protocol):
    """Samples of a data set, every proposal in them."""

    @property
    def dataset(self) -> Dataset: ...
    def sample_at(self, index: int, side: int, flip: bool) -> Sample | None: ...


@dataclass(frozen=True)
class Kept:
    """All that training needs of N proposals: nothing with pixels.

    Attributes:
        pooled: float16 [N, 2 d].
        members: bool [N, A].
        atom_areas: float32 [A], pixels of the photo.
    """

    pooled: Tensor
    members: Tensor
    atom_areas: Tensor


@dataclass(frozen=True)
class PooledCache:
    """Reads and fills the folder; picklable, for loader workers.

    Per image the arrays ``pooled`` float16 [N, 2 d], ``members`` uint8 [N, A / 8] (bits) and ``atom_areas`` float32
    [A]; older ones have the first alone.
    """

    store: Store

    @classmethod
    def create(cls, root: Any, made_from: dict[str, Any], packed: bool = False, overwrite: bool = False) -> PooledCache:
        """Open or begin the cache of one trunk, one set of proposals and one calibration; a new one may be ``packed``.

        Raises:
            CimError: the folder holds something else.
        """
        return cls(Store.create(root, "pooled", made_from, overwrite, packed))

    def load(self, image_id: int | str, count: int) -> Tensor:
        """float16 [N, 2 d].

        Args:
            count: N, proposals of the image.

        Raises:
            CimError: missing, damaged, or of other proposals.
        """
        pooled = self.store.load(image_id).get("pooled", np.zeros((0, 0), np.float16))
        if len(pooled) != count:
            path, fix = self.store.path(image_id), self.store.mend
            raise CimError("pooled features of other proposals", path=path, expected=count, found=len(pooled), fix=fix)
        return torch.from_numpy(pooled)

    def kept(self, image_id: int | str) -> Kept | None:
        """All that is kept of an image; None where there is nothing, or the pooled features alone."""
        if not self.store.has(image_id):
            return None
        arrays = self.store.load(image_id)
        if not {"pooled", "members", "atom_areas"} <= arrays.keys():
            return None
        pooled, bits, areas = arrays["pooled"], arrays["members"], arrays["atom_areas"]
        whole = bits.dtype == np.uint8 and bits.shape == (len(pooled), -(-areas.size // 8))
        if pooled.ndim != 2 or areas.ndim != 1 or not whole:
            raise CimError("damaged pooled features", path=self.store.path(image_id), fix=self.store.mend)
        members = np.unpackbits(bits, axis=1, count=len(areas)).astype(bool)
        return Kept(torch.from_numpy(pooled), torch.from_numpy(members), torch.from_numpy(areas))

    @torch.inference_mode()
    def fill(self, model: CIMNet, source: SampleSource, side: int, device: torch.device) -> None:
        """Compute what is missing.

        Photos that cannot be used are left out; an unreadable one is reported when training meets it.

        Args:
            model: with a calibrated head, in eval mode on ``device``.
            side: long side of the photos, pixels.
        """
        assert isinstance(model.roi_head, RegionPool)  # no other head pools
        dataset = source.dataset
        drop_replaced(self.store, dataset)
        there = self.store.seen()
        missing = [n for n, record in enumerate(dataset) if record.tags and not there(record.image_id)]
        for index in tqdm(missing, desc="features", unit="image", disable=not missing):
            photo = PhotoFile.of(dataset[index].path)  # None of a scene, which is no file
            try:
                sample = source.sample_at(index, side, False)
            except CimError:
                continue
            if sample is None:
                continue
            sample = sample.to(device)
            pooled = model.roi_head.pooled(model.features_of(sample), sample)
            self.store.save(
                sample.image_id,
                pooled=pooled.clamp(-_LARGEST, _LARGEST).half().cpu().numpy(),
                members=np.packbits(sample.members.cpu().numpy(), axis=1),
                atom_areas=sample.atom_areas.cpu().numpy(),
            )
            PhotoTable(self.store.root).note(sample.image_id, photo)
