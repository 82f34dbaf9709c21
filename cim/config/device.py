"""The device that a config means."""

from __future__ import annotations

import torch

from cim.core.errors import CimError


def resolve_device(name: str) -> torch.device:
    """The device of a config: "auto" (CUDA when present), "cpu", "cuda", "cuda:1", ...

    Raises:
        CimError: not a device, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CimError(
            "not a device", expected="auto, cpu, cuda, cuda:0, ...", found=name, fix="device auto takes what there is"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CimError("no such CUDA device on this machine", found=name, fix="device auto takes what there is")
    return device
