"""Weight files: reading them safely and putting them into a trunk, or saying exactly why not."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from cim.core.errors import CimError

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training programs put the tensors
_PREFIXES = ("module.", "backbone.", "model.")  # what DataParallel and detectors put before the names


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` / ``.pt`` (weights only, no code is run) or ``.safetensors`` file, by name, on the CPU.

    Raises:
        CimError: missing, damaged, or not a file of named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CimError("no such weights file", path=path, fix="check model.weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle, struct, EOF, header errors: all mean the same here
        kind = "a .pth or .safetensors file"
        raise CimError("cannot read weights", path=path, expected=kind, found=reason(error)) from error
    tensors = _tensors(content)
    if not tensors:
        raise CimError("no named tensors in weights file", path=path, expected="a state dict")
    return tensors


def load_trunk(trunk: nn.Module, tensors: dict[str, Tensor], origin: str | Path) -> None:
    """Copy ``tensors`` into ``trunk`` by name; tensors of other parts (classifier, ...) are left over.

    Logs how many matched and what was left.

    Raises:
        CimError: a tensor of the trunk is missing or has another shape.
    """
    wanted = trunk.state_dict()
    # Counters of training steps; files of older PyTorch versions and other programs lack them.
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - tensors.keys())
    if missing:
        raise CimError(
            f"weights do not fit this trunk: {len(missing)} of {len(needed)} tensors missing",
            path=origin,
            expected=", ".join(missing[:3]) + (", ..." if len(missing) > 3 else ""),
            found=", ".join(sorted(tensors)[:3]) + (", ..." if len(tensors) > 3 else ""),
            fix="choose the file for this model.backbone",
        )
    for name in sorted(needed):
        if wanted[name].shape != tensors[name].shape:
            raise CimError(
                f"weights do not fit this trunk: {name} has another shape",
                path=origin,
                expected=list(wanted[name].shape),
                found=list(tensors[name].shape),
                fix="choose the file for this model.backbone",
            )
    trunk.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)
    left = sorted({name.split(".")[0] for name in tensors.keys() - wanted.keys()})
    text = ", ".join(left) or "nothing"
    log.info("%s: all %d tensors of the trunk loaded; left over: %s", origin, len(needed), text)


def reason(error: Exception) -> str:
    """The gist of a foreign error, in one line."""
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _tensors(content: object) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        return {}
    named = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if named and all(key.startswith(prefix) for key in named):
            named = {key[len(prefix) :]: value for key, value in named.items()}
    return named
