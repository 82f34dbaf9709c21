"""Trunks of timm by name, small and random: maps, colours, weights, and the folder job on one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import yaml

from cim.cli.main import main
from cim.config.loading import load_config
from cim.core.errors import CimError
from cim.models.backbones import build_backbone
from cim.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from cim.models.timm_trunks import cue_depths
from cim.proposals.grouping.deep import TrunkFeatures

DINO2, DINO3 = "timm:vit_small_patch14_reg4_dinov2", "timm:vit_small_patch16_dinov3"


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("timm:test_vit", 16, 64),
        ("timm:test_resnet", 32, 96),
        ("timm:test_convnext", 32, 64),
        ("timm:test_efficientnet", 32, 64),
        (DINO2, 14, 384),
        (DINO3, 16, 384),
    ],
)
def test_maps_of_images_of_any_size(name, stride, channels):
    trunk = build_backbone(name, "none").eval()
    assert (trunk.stride, trunk.channels, trunk.parts) == (stride, channels, (channels,))
    for height, width in ((stride, 5 * stride), (70, 101)):
        with torch.no_grad():
            found = trunk(image(height, width))
        assert found.shape == (1, channels, -(-height // stride), -(-width // stride)) and found.std() > 0


def test_tokens_lie_where_their_patches_do():
    """A bright patch changes the map there most, the prefix tokens are left out, rows are not taken for columns."""
    trunk = build_backbone(DINO2, "none").eval()
    plain, bright = torch.zeros(1, 3, 6 * 14, 9 * 14), torch.zeros(1, 3, 6 * 14, 9 * 14)
    bright[..., 4 * 14 : 5 * 14, 7 * 14 : 8 * 14] = 5
    with torch.no_grad():
        change = (trunk(bright) - trunk(plain)).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 9) == (4, 7)


def test_the_last_norm_belongs_to_the_map():
    trunk = build_backbone("timm:test_vit", "none").eval()
    photo = image(64, 96)
    with torch.no_grad():
        own = (photo * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1) - 0.5) / 0.5
        tokens = trunk.body.forward_features(own)[:, trunk.body.num_prefix_tokens :]
        found = trunk(photo)
    assert torch.allclose(found.flatten(2).transpose(1, 2), tokens, atol=1e-4)


def test_colours_are_those_of_the_models_data_config():
    trunk = build_backbone("timm:test_resnet", "none").eval()
    config = timm.data.resolve_model_data_config(trunk.body)
    assert trunk.colours == (config["mean"], config["std"]) == ((0.5,) * 3, (0.5,) * 3)
    pixels = torch.rand(1, 3, 8, 8)
    imagenet = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    assert torch.allclose(trunk.prepared(imagenet)[..., :8, :8], (pixels - 0.5) / 0.5, atol=1e-5)
    same = build_backbone("timm:test_efficientnet", "none")
    assert torch.equal(same.prepared(imagenet)[..., :8, :8], imagenet)
    assert torch.equal(build_backbone("test_resnet", "none").prepared(imagenet)[..., :8, :8], imagenet)  # as in 0.1


def test_weights_of_a_file(tmp_path):
    torch.manual_seed(1)
    tensors = {**build_backbone("timm:test_vit", "none").body.state_dict(), "head.weight": torch.zeros(3, 64)}
    torch.save(tensors, tmp_path / "w.pth")
    loaded = build_backbone("timm:test_vit", tmp_path / "w.pth")
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.body.state_dict().items())
    with pytest.raises(CimError, match="weights do not fit this trunk"):
        build_backbone("timm:test_resnet", tmp_path / "w.pth")


def test_weights_as_the_authors_of_dinov2_publish_them(tmp_path):
    torch.manual_seed(1)
    wanted = build_backbone(DINO2, "none").body.state_dict()
    published = {name: value for name, value in wanted.items() if name not in ("reg_token", "cls_token", "pos_embed")}
    published["register_tokens"] = wanted["reg_token"]
    published["cls_token"] = wanted["cls_token"] - 0.5
    published["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.5), wanted["pos_embed"]], 1)
    published["mask_token"] = torch.zeros(1, 384)
    torch.save(published, tmp_path / "dinov2.pth")
    loaded = build_backbone(DINO2, tmp_path / "dinov2.pth").body.state_dict()
    for name, value in wanted.items():
        assert torch.allclose(loaded[name], value, atol=1e-6), name


def test_position_embeddings_of_another_size_are_resized(tmp_path):
    tensors = dict(build_backbone("timm:test_vit", "none").body.state_dict())
    prefix = tensors["pos_embed"].shape[1] - 100  # of 160 x 160 pixels
    ramp = torch.linspace(0, 1, 20)[None, :, None].expand(20, 20, 64).reshape(1, 400, 64)
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :prefix], ramp], 1)
    torch.save(tensors, tmp_path / "large.pth")
    found = build_backbone("timm:test_vit", tmp_path / "large.pth").body.pos_embed[0, prefix:].reshape(10, 10, 64)
    assert torch.allclose(found[:, 1:-1], torch.linspace(0, 1, 10)[None, 1:-1, None].expand(10, 8, 64), atol=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_smal_patch16_dinov3", "unknown backbone.*did you mean timm:vit_small_patch16_dinov3"),
        ("timm:nothing_like_it_at_all_0", "unknown backbone.*list_models"),
        ("timm:beit_base_patch16_224", "no feature map; expected .* any size; found timm:beit.*doesn't match"),
        ("test_vit", "no feature map.*name it timm:test_vit"),
    ],
)
def test_names_that_do_not_do(name, message):
    with pytest.raises(CimError, match=message):
        build_backbone(name, "none")


def test_cues_of_proposals():
    photo = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    for name, sides in (("timm:test_resnet", [(8, 12), (4, 6), (2, 3)]), ("timm:test_vit", [(4, 6)] * 3)):
        cue = TrunkFeatures(name, "none", side=96)
        maps = cue(photo)
        assert [one.shape[1:] for one in maps] == sides and all(one.dtype == np.float32 for one in maps)
        again = cue(photo)
        assert all(np.array_equal(one, other) for one, other in zip(maps, again, strict=True))
        assert not np.array_equal(maps[0], maps[1])
    assert cue_depths(timm.create_model("test_vit")) == [1, 3, 5]
    with pytest.raises(CimError, match="no grouping cue from this backbone"):
        TrunkFeatures("test_resnet", "none")


# ---------------------------------------------------------------------- one line of a config


def test_one_line_names_the_trunk_of_all_networks(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: folder_mobilenet.yaml\ntrunk: timm:test_vit\ntrunk_weights: none\nprm: {weights: a.pth}\n")
    config = load_config(path)
    for section in (config.proposals, config.prm, config.model):
        assert section.backbone == "timm:test_vit"
    assert (config.proposals.weights, config.prm.weights, config.model.weights) == ("none", "a.pth", "none")
    assert config.model.axes == (96,) and config.refine == load_config("folder_mobilenet").refine
    config = load_config("folder_mobilenet", ["model.axes=[7]", "trunk=timm:test_vit", "prm.backbone=vgg16"])
    assert config.model.axes == (7,) and config.prm.backbone == "vgg16" and config.model.backbone == "timm:test_vit"
    with pytest.raises(CimError, match="trunk is one for all networks; expected timm:NAME; found vgg16"):
        load_config("folder_mobilenet", ["trunk=vgg16"])


def test_weights_of_the_folder_job_are_the_trunks_own(tmp_path, monkeypatch):
    from cim.cli.jobs.run import resolve
    from cim.cli.main import parse

    for name in ("photos", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "w.pth").touch()
    given = ["run", "--images", tmp_path / "photos", "--output", tmp_path / "run", "--weights", tmp_path / "w.pth"]
    for trunk, refined in (("timm:test_vit", None), (None, str(tmp_path / "w.pth"))):
        own = ["--set", f"trunk={trunk}"] if trunk else []
        config = resolve(parse([*map(str, given), *own]))
        assert config.prm.weights == config.proposals.weights == str(tmp_path / "w.pth")
        assert config.refine.weights == refined


def test_the_folder_job_on_a_random_trunk(tmp_path, monkeypatch, capsys):
    """Proposals, response network, first labels, CIM, scores: every stage that looks through the trunk."""
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "drawn", "--train", "10", "--val", "2"]) == 0
    data = {"images": "drawn/images/train", "tags": "drawn/train_tags.csv", "val_images": "drawn/images/val"}
    settings = {
        "base": "folder_mobilenet.yaml",
        "trunk": "timm:test_vit",
        "trunk_weights": "none",
        "work_dir": "run",
        "device": "cpu",
        "data": data | {"val_tags": "drawn/val_tags.csv"},
        "prm": {"image_size": 96, "workers": 0},
        "train": {"updates": 2, "step": [1], "sides": [96], "workers": 0, "max_proposals": 30},
        "infer": {"sides": [96]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    for command in (
        ["proposals", "mine.yaml", "--split", "train"],
        ["proposals", "mine.yaml", "--split", "val"],
        ["prm", "mine.yaml"],
        ["labels", "mine.yaml"],
    ):
        assert main([*command, *([] if command[0] == "prm" else ["--workers", "1"])]) == 0, capsys.readouterr().err
    assert main(["train", "mine.yaml"]) == 0, capsys.readouterr().err
    assert main(["score", "mine.yaml", "--workers", "1"]) == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "proposals" / "train" / "manifest.json").read_text())
    assert "timm:test_vit" in str(manifest)
    assert main(["predict", "drawn/new", "--checkpoint", "run/train", "--score-threshold", "0"]) == 0
    assert "6 photos" in capsys.readouterr().out
