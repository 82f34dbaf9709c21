"""The trained response network that a config means."""

from __future__ import annotations

from pathlib import Path

from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.datasets.base import Dataset
from cim.prm.network import ResponseNet, load_response_net


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
