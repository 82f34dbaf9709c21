"""Head, predictor and the whole network."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from cim.config.build import build_model
from cim.config.device import resolve_device
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.types import Sample
from cim.models.cim_net import param_groups
from cim.models.mask_fuse import MaskFuse
from cim.models.predictor import Predictor
from cim.models.roi_align import roi_align

TINY = {"backbone": "mobilenet_v2_s16", "weights": "none", "hidden": 32, "refinements": 2}


def boxes_of(n: int, side: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=g) * side / 2
    return torch.cat([low, low + 1 + torch.rand(n, 2, generator=g) * side / 2], 1)


def sample_of(n: int, h: int = 64, w: int = 96) -> Sample:
    fields = dict.fromkeys(Sample.__dataclass_fields__)
    g = torch.Generator().manual_seed(0)
    image = torch.randn(3, h, w, generator=g)
    grids = (torch.rand(n, 7, 7, generator=g) < 0.5).float()
    return Sample(**{**fields, "image": image, "boxes": boxes_of(n, 60), "grids": grids})


def test_roi_align_is_half_pixel_aligned():
    """On a plane f(x, y) = x the bin averages are the bin centres, in feature steps, minus half a pixel."""
    stride, (h, w) = 4, (40, 50)
    plane = torch.arange(w, dtype=torch.float32).expand(1, 1, h, w).contiguous()
    box = torch.tensor([[20.0, 12.0, 90.0, 60.0]])
    centres = (20 + (torch.arange(7) + 0.5) * 70 / 7) / stride - 0.5
    torch.testing.assert_close(roi_align(plane, box, stride), centres.expand(1, 1, 7, 7))


def test_mmcv_roi_align_is_equal():
    pytest.importorskip("mmcv.ops", reason="mmcv is not installed: its RoIAlign is not compared")
    features = torch.randn(1, 8, 20, 30)
    boxes = boxes_of(20, 80)
    torch.testing.assert_close(roi_align(features, boxes, 4, "mmcv"), roi_align(features, boxes, 4))


def test_mmcv_absent_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(CimError, match=r"model\.roi_align=torchvision"):
        MaskFuse(4, 8, 16, "mmcv")


def test_boxes_keep_their_place_in_mixed_precision():
    """bfloat16 counts in steps of 4 beyond 512: boxes rounded to it would stand pixels away."""
    torch.manual_seed(0)
    features = torch.randn(1, 8, 64, 128)
    boxes = torch.tensor([[1001.0, 300.0, 1013.0, 318.0], [517.0, 201.0, 543.0, 229.0]])
    exact = roi_align(features.bfloat16().float(), boxes, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = roi_align(features.bfloat16(), boxes, 8)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0.01, atol=0.01)
    assert (roi_align(features, boxes.bfloat16().float(), 8) - exact).abs().max() > 0.1  # what rounding would do


def test_mask_fuse_sees_box_and_mask():
    head = MaskFuse(6, 8, 16)
    features, boxes = torch.randn(1, 6, 12, 12), boxes_of(5, 90)
    grids = (torch.rand(5, 7, 7) < 0.5).float()
    out = head(features, SimpleNamespace(boxes=boxes, grids=grids))
    box = roi_align(features, boxes, 8)
    joined = torch.cat([box, box * grids[:, None]], 1)
    hidden = functional.relu(functional.conv2d(joined, head.fuse.weight, head.fuse.bias, padding=1)).flatten(1)
    expected = functional.relu(head.fc2(functional.relu(head.fc1(hidden))))
    torch.testing.assert_close(out, expected)
    assert not torch.equal(out, head(features, SimpleNamespace(boxes=boxes, grids=1 - grids)))
    assert head(features, SimpleNamespace(boxes=boxes[:0], grids=grids[:0])).shape == (0, 16)


def test_predictor_scores_and_initialisation():
    torch.manual_seed(0)
    predictor = Predictor(200, 20, 3)
    scores = predictor(torch.randn(40, 200))
    assert scores.cls.shape == scores.det.shape == (40, 21)
    assert scores.refine_cls.shape == scores.refine_iou.shape == (3, 40, 21)
    torch.testing.assert_close(scores.cls.sum(1), torch.ones(40))
    torch.testing.assert_close(scores.det.sum(0), torch.ones(21))
    torch.testing.assert_close(scores.refine_cls.sum(2), torch.ones(3, 40))
    assert ((scores.refine_iou > 0) & (scores.refine_iou < 1)).all()
    for name, value in predictor.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert value.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_network_end_to_end(n):
    torch.manual_seed(0)
    model = build_model(Config(model=TINY), 5)
    sample = sample_of(n)
    scores = model(sample)
    assert scores.cls.shape == (n, 6) and scores.refine_iou.shape == (2, n, 6)
    again = model.predict(model.head(model.features(sample.image), sample))
    assert all(torch.equal(getattr(scores, key), getattr(again, key)) for key in vars(scores))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(sample)
    assert all(value.dtype == torch.float32 for value in vars(mixed).values())
    torch.testing.assert_close(mixed.refine_cls, scores.refine_cls, atol=0.02, rtol=0)


def test_state_dict_survives_a_round_trip(tmp_path):
    model, other = (build_model(Config(model=TINY), 5).eval() for _ in range(2))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    other.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    sample = sample_of(3)
    assert torch.equal(model(sample).cls, other(sample).cls)


def test_param_groups():
    model = build_model(Config(model=TINY), 5)
    weights, biases = param_groups(model, lr=0.1, bias_lr_factor=2, momentum=0.9, weight_decay=5e-4)
    assert (weights["lr"], weights["weight_decay"], weights["momentum"]) == (0.1, 5e-4, 0.9)
    assert (biases["lr"], biases["weight_decay"], biases["momentum"]) == (0.2, 0.0, 0.9)
    assert all(value.ndim == 1 for value in biases["params"])
    trained = [value for value in model.parameters() if value.requires_grad]
    assert len(weights["params"]) + len(biases["params"]) == len(trained) < len(list(model.parameters()))
    whole = build_model(Config(model={**TINY, "freeze": "all"}), 5)
    assert not any(value.requires_grad for value in whole.backbone.parameters())


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(CimError, match="not a device"):
        resolve_device("gpu0")
    with pytest.raises(CimError, match="device auto"):
        resolve_device("cuda:99")
