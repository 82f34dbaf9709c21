"""Trunks: from an image to one feature map (METHOD section 4).

``build_backbone`` knows the published trunks by name and takes any model of timm besides, as ``timm:NAME``
(:mod:`cim.models.timm_trunks`). Parameter names inside a trunk are those of the library it comes from, so that weight
files load as they are.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from cim.core.errors import CimError
from cim.core.files import fingerprint
from cim.models.downloads import check_hub, hub_repository, refuse_offline, torchvision_weights
from cim.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from cim.models.weights import load_trunk, read_weights, reason

RANDOM = "none"  # instead of a weights file: leave the trunk as initialised
FROM_PRM = "prm"  # the trunk that the response network of the same run trained (cim/config/build.py)
Freeze = Literal["published", "all", "none"]

TIMM = "timm:"
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
Colours = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of red, green, blue, 0..1
Run = Callable[[Any, Tensor], Tensor]  # (trunk's layers, image [B, 3, h, w]) -> feature map


class Backbone(nn.Module):
    """A trunk with declared geometry, frozen parts and batch norms that stay frozen through ``train()``.

    Attributes:
        stride: input pixels per step of the feature map.
        channels: D.
        parts: channels of the blocks that lie side by side in the map, from shallow to deep; their sum is D.
        pad_to: height and width are zero-padded (right, below) to a multiple of this.
        run: how ``body`` gives the feature map.
        colours: what the trunk's images are normalised by; those that come are normalised by ImageNet's.
    """

    def __init__(
        self,
        body: nn.Module,
        stride: int,
        channels: int,
        *,
        frozen: tuple[str, ...] = (),
        train_norms: bool = False,
        parts: tuple[int, ...] = (),
        pad_to: int = 1,
        run: Run | None = None,
        colours: Colours = IMAGENET,
    ) -> None:
        super().__init__()
        self.body, self.stride, self.channels = body, stride, channels
        self.parts = parts or (channels,)
        self.pad_to, self.run, self.colours = pad_to, run, colours
        named = dict(body.named_modules())
        self._frozen = [named[name] for name in frozen]  # a plain list: these are parts of body already
        self._norms = (
            [] if train_norms else [m for m in named.values() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        )
        for module in (*self._frozen, *self._norms):
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in (*self._frozen, *self._norms):
            module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """float [B, 3, h, w] -> [B, D, ceil(h / stride), ceil(w / stride)] (about; VGG rounds down)."""
        image = self.prepared(image)
        return self.body(image) if self.run is None else self.run(self.body, image)

    def prepared(self, image: Tensor) -> Tensor:
        """The same image in the trunk's own colours, padded to what it can take."""
        if self.colours != IMAGENET:
            (mean, std), (own_mean, own_std) = (
                (image.new_tensor(values).view(3, 1, 1) for values in colours) for colours in (IMAGENET, self.colours)
            )
            image = (image * std + mean - own_mean) / own_std
        below, right = -image.shape[-2] % self.pad_to, -image.shape[-1] % self.pad_to
        if below or right:
            image = functional.pad(image, (0, right, 0, below))
        return image


@dataclass(frozen=True)
class Trunk:
    """How to make one trunk.

    Attributes:
        make: the trunk's layers, random.
        stride, channels, pad_to, run, parts, colours: see :class:`Backbone`.
        frozen: parts that the published program does not train.
        download: the library's own weights.
        convert: makes weights of other programs fit the layers, where that can be done.
    """

    make: Callable[[], nn.Module]
    stride: int
    channels: int
    frozen: tuple[str, ...]
    download: Callable[[], dict[str, Tensor]]
    pad_to: int = 1
    run: Run | None = None
    parts: tuple[int, ...] = ()
    colours: Colours = IMAGENET
    convert: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] | None = None


def weights_named(weights: str | None) -> str | None:
    """A setting of weights as a name that changes with the content of their file, and not with its place.

    Raises:
        CimError: no such file.
    """
    if weights in (None, RANDOM, FROM_PRM):
        return weights
    if not Path(weights).is_file():
        raise CimError("no such weights file", path=weights, fix="check the setting that names it")
    return fingerprint(weights)


def build_backbone(
    name: str, weights: str | Path | None = None, *, freeze: Freeze = "published", train_norms: bool = False
) -> Backbone:
    """A trunk by name.

    Args:
        name: "vgg16", "resnet50", "resnet50_c5", "hrnet_w48", "mobilenet_v2", "mobilenet_v2_s16",
            "tiny", or "timm:NAME", any model of timm (a convolutional one also without "timm:", as in version 0.1:
            then normalised by ImageNet's colours, whatever it was trained with).
        weights: a file; None: the library's own weights, downloaded; "none": random.
        freeze: the published parts, the whole trunk, or nothing.
        train_norms: train batch norms; False keeps them in eval mode and their parameters fixed (batches
            here are single images).

    Raises:
        CimError: unknown name, weights that do not fit, or a failed download.
    """
    trunk = open_trunk(name)
    body = trunk.make()
    if weights is None:
        load_trunk(body, _downloaded(name, trunk), f"ImageNet weights of {name}")
    elif str(weights) != RANDOM:
        tensors = read_weights(weights)
        load_trunk(body, tensors if trunk.convert is None else trunk.convert(body, tensors), weights)
    frozen = {"published": trunk.frozen, "all": ("",), "none": ()}[freeze]  # "" is the body itself
    return Backbone(
        body,
        trunk.stride,
        trunk.channels,
        frozen=frozen,
        train_norms=train_norms,
        parts=trunk.parts,
        pad_to=trunk.pad_to,
        run=trunk.run,
        colours=trunk.colours,
    )


def open_trunk(name: str) -> Trunk:
    """How to make a trunk by name (:func:`build_backbone`).

    Raises:
        CimError: unknown name, or a model that gives no feature map.
    """
    if name in TRUNKS:
        return TRUNKS[name]()
    if name.startswith(TIMM):
        from cim.models.timm_trunks import timm_trunk  # opens timm, 30 MB that other trunks do without

        return timm_trunk(name.removeprefix(TIMM))
    return _timm_trunk(name)


def _vgg16() -> Trunk:
    def make() -> nn.Module:
        layers = list(torchvision.models.vgg16(weights=None).features)[:-1]  # without pool5
        layers[23] = nn.Identity()  # pool4; its place stays, so that the names of conv5 do
        for conv in (layers[24], layers[26], layers[28]):
            conv.dilation, conv.padding = (2, 2), (2, 2)
        return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))

    frozen = tuple(f"features.{i}" for i in range(10))  # conv1 and conv2
    return Trunk(make, 8, 512, frozen, partial(torchvision_weights, torchvision.models.VGG16_Weights.IMAGENET1K_V1))


def _resnet50(last: int) -> Trunk:
    parts = ("conv1", "bn1", "relu", "maxpool", *(f"layer{i}" for i in range(1, last + 1)))

    def make() -> nn.Module:
        whole = torchvision.models.resnet50(weights=None)
        return nn.Sequential(OrderedDict((part, getattr(whole, part)) for part in parts))

    get = partial(torchvision_weights, torchvision.models.ResNet50_Weights.IMAGENET1K_V1)
    return Trunk(make, 2 ** (last + 1), 256 * 2 ** (last - 1), ("conv1", "bn1", "layer1"), get)


def _mobilenet_v2(last: int, stride: int, channels: int) -> Trunk:
    def make() -> nn.Module:
        layers = torchvision.models.mobilenet_v2(weights=None).features[: last + 1]
        return nn.Sequential(OrderedDict(features=layers))

    frozen = tuple(f"features.{i}" for i in range(4))  # to stride 4, like the stem and layer1 of a ResNet
    return Trunk(
        make,
        stride,
        channels,
        frozen,
        partial(torchvision_weights, torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1),
    )


def _mobilenet_v2_d16() -> Trunk:
    """MobileNet-V2 at stride 16 to its end (the last stride becomes a dilation), three of its depths side by side.

    For the region-pooling head: positions twice as fine as usual, and mid-level features next to the last ones.
    """
    depths = {13: 96, 16: 160, 18: 1280}

    def make() -> nn.Module:
        layers = torchvision.models.mobilenet_v2(weights=None).features
        layers[14].conv[1][0].stride = (1, 1)
        for block in layers[15:18]:
            block.conv[1][0].dilation = block.conv[1][0].padding = (2, 2)
        return _Beside(layers, tuple(depths))

    get = partial(torchvision_weights, torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1)
    parts = tuple(depths.values())
    return Trunk(make, 16, sum(parts), ("",), get, parts=parts)


class _Beside(nn.Module):
    """Layers in a row; the outputs of some of them, at one stride, side by side."""

    def __init__(self, layers: nn.Sequential, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.taps = layers, taps

    def forward(self, image: Tensor) -> Tensor:
        outputs = []
        for index, layer in enumerate(self.features):
            image = layer(image)
            if index in self.taps:
                outputs.append(image)
        return torch.cat(outputs, 1)


def _tiny() -> Trunk:
    """Seven 3x3 convolutions with batch norm, for drawn pictures: learned from nothing by the response network."""

    def make() -> nn.Module:
        widths = ((3, 24, 2), (24, 32, 1), (32, 48, 2), (48, 64, 1), (64, 96, 2), (96, 96, 1), (96, 96, 1))
        layers: list[nn.Module] = []
        for below, above, stride in widths:
            layers += [nn.Conv2d(below, above, 3, stride, 1, bias=False), nn.BatchNorm2d(above), nn.ReLU(inplace=True)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))

    def download() -> dict[str, Tensor]:
        raise CimError("there are no ImageNet weights of the tiny trunk")

    return Trunk(make, 8, 96, (), download)


def _hrnet_w48() -> Trunk:
    """timm's forward_features runs through ``final_layer``: the published trunk, name for name."""
    stem = ("conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2")
    return Trunk(lambda: _timm_model("hrnet_w48"), 32, 2048, stem, lambda: _timm_download("hrnet_w48"), 32, _features)


def _features(body: Any, image: Tensor) -> Tensor:
    """Timm's models up to their last feature map."""
    return body.forward_features(image)


def _timm_trunk(name: str) -> Trunk:
    """Any convolutional model of timm; nothing of it is frozen. Stride and channels are measured."""
    import timm  # 30 MB that other trunks do without

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*TRUNKS, *timm.list_models()], n=1)
        fix = f"did you mean {near[0]}?" if near else None
        raise CimError("unknown backbone", expected=f"{', '.join(TRUNKS)} or a model of timm", found=name, fix=fix)
    side = 128
    try:
        with torch.no_grad():
            features = _timm_model(name).eval().forward_features(torch.zeros(1, 3, side, side))
        found = f"{list(features.shape)} from {name}"
        fits = features.ndim == 4 and features.shape[2] == features.shape[3]
    except (AssertionError, RuntimeError) as error:  # transformers that take one image size only
        found, fits = f"{name}: {reason(error)}", False
    if not fits:
        raise CimError(
            "backbone gives no feature map",
            expected="[1, D, h, w] for images of any size",
            found=found,
            fix=f"name it {TIMM}{name}",
        )
    stride = side // features.shape[2]
    download = partial(_timm_download, name)
    return Trunk(partial(_timm_model, name), stride, features.shape[1], (), download, stride, _features)


def _timm_model(name: str) -> Any:
    """A module that also has timm's ``forward_features``."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0)


def _timm_download(name: str) -> dict[str, Tensor]:
    import timm

    refuse_offline(f"weights of {name}", "give a file: --set model.weights=FILE")
    model = timm.create_model(name, pretrained=True, num_classes=0)
    repository = hub_repository(model)
    if repository:
        check_hub(repository)
    return model.state_dict()


def _downloaded(name: str, trunk: Trunk) -> dict[str, Tensor]:
    try:
        return trunk.download()
    except CimError:
        raise
    except Exception as error:  # urllib, requests, httpx, hub and checksum errors have no common base
        raise CimError(
            f"cannot download the ImageNet weights of {name}",
            found=reason(error),
            fix="connect to the internet, or give a file: --set model.weights=FILE",
        ) from error


TRUNKS: dict[str, Callable[[], Trunk]] = {
    "vgg16": _vgg16,
    "resnet50": partial(_resnet50, 3),
    "resnet50_c5": partial(_resnet50, 4),
    "hrnet_w48": _hrnet_w48,
    "mobilenet_v2": partial(_mobilenet_v2, 18, 32, 1280),
    "mobilenet_v2_d16": _mobilenet_v2_d16,
    "mobilenet_v2_s16": partial(_mobilenet_v2, 13, 16, 96),
    "tiny": _tiny,
}
