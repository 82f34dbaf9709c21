"""The trained response network that a config means, and its peaks as points that prompt Segment Anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cim.config.build import proposer_options
from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import fingerprint
from cim.datasets.base import Dataset
from cim.prm.evidence import relative_peaks
from cim.prm.network import ResponseNet, load_response_net, prepare_photo
from cim.proposals.options import provenance


def open_net(config: Config, dataset: Dataset, checkpoint: Path | None = None) -> ResponseNet:
    """The trained response network of a config, in eval mode on its device.

    Raises:
        CimError: missing, damaged, or trained for other classes.
    """
    path = checkpoint or RunPaths(config).prm_checkpoint
    net = load_response_net(path, len(dataset.classes), image_size=config.prm.image_size)
    if net.classes and net.classes != dataset.classes:
        raise CimError(
            "response network for other classes",
            path=path,
            expected=", ".join(dataset.classes[:5]),
            found=", ".join(net.classes[:5]),
        )
    return net.to(resolve_device(config.device))


@dataclass(frozen=True)
class PeakPrompter:
    """Points where the response network sees the classes of a photo. Picklable, for worker processes.

    Attributes:
        checkpoint: of the response network.
        image_size: side of the square that it sees, pixels.
        fraction: peaks that reach this share of the highest of their class count.
        device: torch device.
    """

    checkpoint: Path
    image_size: int
    fraction: float
    device: str = "cpu"

    def provenance(self) -> dict[str, Any]:
        """What the points depend on; the weights by their content, since a file of one name may be trained again."""
        return {"weights": fingerprint(self.checkpoint), "image_size": self.image_size, "fraction": self.fraction}

    @torch.inference_mode()
    def __call__(self, photo: np.ndarray, tags: Sequence[int]) -> np.ndarray:
        """Peaks of the tags of a photo uint8 [H, W, 3]; without tags, of the classes that the network finds in it, or
        else of the likeliest one.

        Returns:
            float64 [P, 2], x and y as fractions of the photo, every place once.

        Raises:
            CimError: the network cannot be read.
        """
        net = _kept_net(self.checkpoint, self.image_size, self.device)
        maps = net(prepare_photo(photo, net.image_size)[None].to(self.device))
        if not tags:
            scores = net.image_scores(maps)[0]
            tags = (scores > 0).nonzero().flatten().tolist() or [int(scores.argmax())]
        peaks = relative_peaks(maps[0], tags, self.fraction)
        places = np.unique(peaks.index[:, :0:-1], axis=0)  # column, row
        return (places + 0.5) / np.array(peaks.grid[::-1])


@lru_cache(maxsize=1)
def _kept_net(checkpoint: Path, image_size: int, device: str) -> ResponseNet:
    return load_response_net(checkpoint, image_size=image_size).to(device)


def peak_prompter(config: Config, dataset: Dataset, device: str = "cpu") -> PeakPrompter | None:
    """What prompts the proposals of a config, if peaks do.

    Raises:
        CimError: there is no such response network, or it was trained for other classes.
    """
    if not config.proposals.prompted:
        return None
    net = open_net(config, dataset)
    return PeakPrompter(RunPaths(config).prm_checkpoint, net.image_size, config.proposals.peak_fraction, device)


def proposal_provenance(config: Config, dataset: Dataset, root: Path | None = None) -> dict[str, Any]:
    """What the manifest of a config's proposals says: :func:`cim.proposals.options.provenance`, and its peaks'.

    Raises:
        CimError: as :func:`peak_prompter`; no such weights file; damaged manifest.
    """
    prompter = peak_prompter(config, dataset)
    peaks = None if prompter is None else prompter.provenance()
    return provenance(proposer_options(config.proposals), root, peaks)
