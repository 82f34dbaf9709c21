"""Trunks: geometry, frozen parts, weight files."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import pytest
import torch

from cim.core.errors import CimError
from cim.models.backbones import TRUNKS, Backbone, build_backbone
from cim.models.weights import load_trunk, read_weights


@cache
def trunk(name: str) -> Backbone:
    """Big ones are built once; tests that change a trunk build their own."""
    torch.manual_seed(0)
    return build_backbone(name, "none")


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("vgg16", 8, 512),
        ("resnet50", 16, 1024),
        ("resnet50_c5", 32, 2048),
        ("hrnet_w48", 32, 2048),
        ("mobilenet_v2", 32, 1280),
        ("mobilenet_v2_s16", 16, 96),
        ("resnet18", 32, 512),  # any timm model
    ],
)
def test_geometry_and_norms(name, stride, channels):
    model = trunk(name).train()
    assert (model.stride, model.channels) == (stride, channels)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)
        assert model(torch.zeros(2, 3, 70, 64)).shape[2:] == (
            70 // stride if stride == 8 else -(-70 // stride),
            64 // stride,
        )
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "first_trained"),
    [
        ("vgg16", "body.features.10.weight"),
        ("resnet50", "body.layer2.0.conv1.weight"),
        ("hrnet_w48", "body.transition2.2.0.0.weight"),
        ("mobilenet_v2", "body.features.4.conv.0.0.weight"),
    ],
)
def test_frozen_up_to(name, first_trained):
    trained = [key for key, value in trunk(name).named_parameters() if value.requires_grad]
    assert trained[0] == first_trained


def test_vgg_keeps_the_published_receptive_field():
    layers = trunk("vgg16").body.features
    assert isinstance(layers[23], torch.nn.Identity)
    assert all(layers[i].dilation == (2, 2) for i in (24, 26, 28))
    assert all(layers[i].dilation == (1, 1) for i in (17, 19, 21))


def test_freeze_all_none_and_training_norms():
    assert not any(p.requires_grad for p in build_backbone("mobilenet_v2_s16", "none", freeze="all").parameters())
    free = build_backbone("mobilenet_v2_s16", "none", freeze="none", train_norms=True).train()
    assert all(p.requires_grad for p in free.parameters())
    assert all(m.training for m in free.modules())


def test_frozen_parts_do_not_move_in_a_step():
    model = build_backbone("mobilenet_v2_s16", "none").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not any(key.startswith(tuple(f"body.features.{i}." for i in range(4))) for key in changed)
    assert not any("running" in key for key in changed)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "hrnet_w48", "mobilenet_v2_s16"])
def test_weight_files_match_by_name(tmp_path, caplog, name):
    """Files as the libraries write them: the trunk's names plus a classifier that is left over."""
    body = trunk(name).body
    tensors = {key: value + 0.5 if value.is_floating_point() else value for key, value in body.state_dict().items()}
    tensors["classifier.weight"] = torch.zeros(3, 3)
    with caplog.at_level(logging.INFO):
        target = TRUNKS[name]().make()
        load_trunk(target, tensors, "file")
    assert all(torch.equal(value, tensors[key]) for key, value in target.state_dict().items())
    assert "left over: classifier" in caplog.text


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}}])
def test_torch_and_safetensors_files(tmp_path, wrap):
    from safetensors.torch import save_file

    tensors = {k: v.contiguous() for k, v in trunk("mobilenet_v2").body.state_dict().items()}
    torch.save(wrap(tensors), tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        loaded = build_backbone("mobilenet_v2_s16", tmp_path / file)  # a part of what the file holds
        assert all(torch.equal(v, tensors[k]) for k, v in loaded.body.state_dict().items())


def test_shipped_mobilenet_weights(reference):
    path = reference.parent / "data" / "weights" / "mobilenet_v2_imagenet_features.pth"
    if not path.is_file():
        pytest.skip("no ../shared/data/weights/mobilenet_v2_imagenet_features.pth: loading it is not tested")
    model = build_backbone("mobilenet_v2", path)
    with torch.no_grad():
        features = model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert features.isfinite().all() and features.max() > 0


def test_missing_or_misshapen_weights_are_refused(tmp_path):
    tensors = trunk("mobilenet_v2").body.state_dict()
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in tensors.items() if not k.startswith("features.7.")}, path)
    with pytest.raises(CimError, match=r"tensors missing.*features\.7\."):
        build_backbone("mobilenet_v2", path)
    torch.save({**tensors, "features.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CimError, match=r"features\.0\.0\.weight has another shape"):
        build_backbone("mobilenet_v2", path)


def test_bad_files_are_one_line(tmp_path):
    with pytest.raises(CimError, match="no such weights file"):
        read_weights(tmp_path / "absent.pth")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(CimError, match="cannot read weights") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CimError, match="no named tensors"):
        read_weights(tmp_path / "list.pth")


def test_failed_download_names_the_way_out(monkeypatch):
    def fail() -> dict:
        raise OSError("no route to host")

    made = TRUNKS["mobilenet_v2"]()
    monkeypatch.setitem(TRUNKS, "mobilenet_v2", lambda: replace(made, download=fail))
    with pytest.raises(CimError, match=r"cannot download.*no route to host.*model\.weights=FILE"):
        build_backbone("mobilenet_v2")


def test_unknown_and_unfit_names():
    with pytest.raises(CimError, match="did you mean vgg16"):
        build_backbone("vgg_16", "none")
    with pytest.raises(CimError, match="no feature map"):
        build_backbone("vit_tiny_patch16_224", "none")
