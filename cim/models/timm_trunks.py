"""Any model of timm as a trunk: convolutional ones, and transformers, whose patch tokens become a map.

Position embeddings are resized to the image where timm can do that; colours are normalised as timm's own data config of
the model says. Stride and channels are measured on a small image.
"""

from __future__ import annotations

import difflib
import sys
from functools import partial
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from cim.core.errors import CimError
from cim.models.backbones import TIMM, TRUNKS, Trunk
from cim.models.weights import reason

_NO_MAP, _MAP = "backbone gives no feature map", "[1, D, h, w] for images of any size"
_PROBE = (224, 448)  # a multiple of all usual patches, and not square
_ANY_SIZE: tuple[dict[str, Any], ...] = (  # what models call it that images may have any size
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


def timm_trunk(name: str) -> Trunk:
    """How to make a trunk of the model; nothing of it is frozen.

    Raises:
        CimError: unknown name, or a model that gives no map for images of any size.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        fix = f"did you mean {TIMM}{near[0]}?" if near else "python -c 'import timm; print(timm.list_models())'"
        raise CimError("unknown backbone", expected=f"{', '.join(TRUNKS)} or {TIMM}NAME", found=TIMM + name, fix=fix)
    body = make(name)
    try:
        with torch.no_grad():
            shape = list(last_map(body, torch.zeros(1, 3, *_PROBE)).shape)
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # one image size only, or no maps at all
        raise CimError(_NO_MAP, expected=_MAP, found=f"{TIMM}{name}: {reason(error)}") from None
    stride = _PROBE[0] // shape[2] if len(shape) == 4 else 0
    if not stride or shape[2:] != [side // stride for side in _PROBE]:
        raise CimError(_NO_MAP, expected=_MAP, found=f"{shape} from {TIMM}{name}")
    data = resolve_model_data_config(body)
    return Trunk(
        partial(make, name),
        stride,
        shape[1],
        (),
        partial(_download, name),
        pad_to=stride,
        run=last_map,
        colours=(tuple(data["mean"]), tuple(data["std"])),
        convert=converted,
    )


def make(name: str, pretrained: bool = False) -> nn.Module:
    """The model without its classifier, for images of any size where it can be had so; in eval mode."""
    for number, options in enumerate(_ANY_SIZE):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options).eval()
        except TypeError:  # an option that this model does not know
            if number + 1 == len(_ANY_SIZE):
                raise
    raise AssertionError("the last try returns or raises")


def last_map(body: Any, image: Tensor) -> Tensor:
    """float [B, 3, h, w] -> the last feature map [B, D, h / stride, w / stride]; of tokens, with the last norm."""
    if not hasattr(body, "forward_intermediates"):
        return body.forward_features(image)
    return depths(body, image, 1)[-1]


def depths(body: Any, image: Tensor, indices: int | list[int]) -> list[Tensor]:
    """Feature maps [B, D, ., .] of the last n stages or blocks, or of those with these numbers."""
    return body.forward_intermediates(image, indices=indices, norm=True, output_fmt="NCHW", intermediates_only=True)


def cue_depths(body: Any) -> list[int]:
    """Numbers of up to three stages that end at strides 8, 16, 32; of a transformer, blocks at each third of it."""
    strides = [int(stage["reduction"]) for stage in body.feature_info]
    last = {stride: number for number, stride in enumerate(strides) if stride >= 8}
    if len(last) > 1:
        return sorted(last.values())[:3]
    return sorted({max(0, len(strides) * third // 3 - 1) for third in (1, 2, 3)})


def converted(body: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that fit as they are, or as timm converts those of the models' authors (names, position embeddings)."""
    wanted = body.state_dict()
    if all(name in tensors and tensors[name].shape == value.shape for name, value in wanted.items()):
        return tensors
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return convert(dict(tensors), body)
    except (
        KeyError,
        RuntimeError,
        ValueError,
        AttributeError,
    ):  # weights of something else: load_trunk says what lacks
        return tensors


def _download(name: str) -> dict[str, Tensor]:
    return make(name, pretrained=True).state_dict()
