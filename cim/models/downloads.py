"""All that is ever downloaded: weights of known networks, each checked against a hash, none with CIM_OFFLINE=1."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torchvision.models import WeightsEnum

from cim.core.errors import CimError


def offline() -> bool:
    """Whether CIM_OFFLINE forbids downloads."""
    return os.environ.get("CIM_OFFLINE", "") not in ("", "0")


def refuse_offline(what: str, fix: str) -> None:
    """Before a download.

    Raises:
        CimError: CIM_OFFLINE forbids it.
    """
    if offline():
        raise CimError(f"{what} would be downloaded, which CIM_OFFLINE forbids", fix=fix)


def torchvision_weights(weights: WeightsEnum) -> dict[str, Tensor]:
    """Tensors of a file of torchvision's, which stays in torch's cache. Its name ends in the beginning of its SHA-256,
    which is compared every time; tensors alone are read, no code.

    Raises:
        CimError: a damaged file, or one that is not in the cache while CIM_OFFLINE is set.
        Exception: of whatever kind when it cannot be downloaded.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if not path.is_file():
        refuse_offline(path.name, "put that file there, or give one: --set model.weights=FILE")
    state = load_state_dict_from_url(weights.url, check_hash=True, weights_only=True, map_location="cpu")
    promised = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if promised is None or not _sha256(path).startswith(promised[1]):
        raise CimError("a download with another hash than it should have", path=path, fix="delete it")
    tensors: dict[str, Tensor] = state
    return tensors


def check_hub(repository: str) -> None:
    """Compare what the Hugging Face cache holds of a repository with the SHA-256 under which the hub lists it.

    Raises:
        CimError: a file whose content is another.
    """
    from huggingface_hub import constants  # comes with timm and transformers

    blobs = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "blobs")
    for blob in sorted(blobs.glob("*")):
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:  # small files go by another hash
            raise CimError("a download with another hash than it should have", path=blob, fix="delete it")


def hub_repository(model: Any) -> str | None:
    """Where timm had the weights of a model from."""
    return getattr(model, "pretrained_cfg", {}).get("hf_hub_id")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
