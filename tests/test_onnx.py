"""Mask R-CNN as an ONNX file: the same detections, by onnxruntime, and without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lively import assert_same_instances, lively_mask_rcnn

import cim
from cim.cli.main import call, main
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.datasets.drawn import draw_picture
from cim.engine.checkpoints import save_checkpoint
from cim.mask_rcnn import onnx_file
from cim.mask_rcnn.detect import MaskDetector
from cim.models.mask_rcnn import Resize
from cim.prediction.predict import Predictor

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["disc", "box", "ring"]
REASON = "needs pip install 'cim[onnx]'"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """The same network as a checkpoint and as an ONNX file, made by the command."""
    pytest.importorskip("onnx", reason=REASON)
    pytest.importorskip("onnxruntime", reason=REASON)
    folder = tmp_path_factory.mktemp("onnx") / "mask_rcnn"
    refine = {"backbone": "mobilenet_fpn", "min_side": 64, "max_side": 96}
    config = Config(name="n", work_dir="w", refine=refine).model_dump(mode="json")
    meta = {"kind": "mask_rcnn", "classes": CLASSES, "config": config}
    save_checkpoint(folder / "final.pth", {"meta": meta, "model": lively_mask_rcnn(64, 96, 3).state_dict()})
    call(["export-model", str(folder.parent / "mask_rcnn"), "--output", str(folder / "model.onnx")])
    return folder / "final.pth", folder / "model.onnx"


@pytest.fixture(scope="module")
def both(files) -> tuple[Predictor, Predictor]:
    return cim.load_model(files[0], "cpu"), cim.load_model(files[1], "cpu")


def drawn(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    image = draw_picture(seed, np.random.default_rng(seed)).image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "size", [(64, 96), (64, 64), (120, 90), (375, 500), (500, 333), (21, 30), (40, 200), (1700, 900), (2, 300)]
)
def test_same_detections_on_photos_of_any_size(both, size):
    photo = drawn(size)
    ours, theirs = (model.predict(photo, score_threshold=0.1) for model in both)
    assert theirs.classes == ours.classes == tuple(CLASSES)
    assert_same_instances(theirs.instances, ours.instances, least=3)


def test_photos_are_resized_in_the_graph_as_pytorch_does(files, tmp_path):
    """Sizes for which float32, or division in another order, ends one pixel short."""
    import onnxruntime

    resize = Resize(400, 640, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()

    class Alone(torch.nn.Module):
        def forward(self, image):
            return resize([image])[0].tensors

    axes = {"image": {1: "height", 2: "width"}}
    example, path = (torch.zeros(3, 400, 640),), tmp_path / "resize.onnx"
    torch.onnx.export(Alone(), example, path, input_names=["image"], dynamic_axes=axes, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in ((375, 500), (480, 640), (1600, 900), (49, 49), (97, 120), (193, 900), (333, 500), (400, 640)):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, Alone()(image).numpy(), atol=1e-2)


def test_several_photos_tags_and_threshold(both):
    photos = [drawn((90, 120), 1), drawn((100, 70), 2)]
    for arguments in ({"tags": ["box"]}, {"tags": [["ring", "disc"], []]}, {"score_threshold": 0.6}):
        ours, theirs = (model.predict(photos, **arguments) for model in both)
        for one, other in zip(theirs, ours, strict=True):
            assert_same_instances(one.instances, other.instances, least=0)
        assert sum(map(len, ours)) > 0


def test_photos_on_which_nothing_is_found(files, tmp_path):
    """Tensors without rows go through the last layers."""
    model = lively_mask_rcnn(64, 96)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 1000  # background
    onnx_file.export_onnx(MaskDetector(model, ("a", "b"), torch.device("cpu")), tmp_path / "blind.onnx")
    assert len(cim.load_model(tmp_path / "blind.onnx").predict(drawn((90, 120)), score_threshold=0)) == 0


def test_says_what_it_is(files):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(files[1]), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == CLASSES and meta["version"] == cim.__version__
    before = json.loads(meta["preprocessing"])
    assert (before["min_side"], before["max_side"]) == (64, 96) and before["mean"] == [0.485, 0.456, 0.406]
    (photo,) = session.get_inputs()
    assert (photo.name, photo.type, photo.shape) == ("photo", "tensor(uint8)", ["height", "width", 3])
    assert [out.name for out in session.get_outputs()] == ["boxes", "class_ids", "scores", "masks"]


def test_runs_where_pytorch_cannot_be_imported(files, both, tmp_path):
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), drawn((90, 120)))
    program = """
import sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
import cim
(found,) = cim.load_model(sys.argv[1]).predict([sys.argv[2]], score_threshold=0.1)
found.save(sys.argv[3])
found.overlay(), found.crops(), found.masks, found.rows(), found.to_yolo()
print(len(found), *found.labels)
from cim.cli.main import main
raise SystemExit(main(["predict", sys.argv[2], "--checkpoint", sys.argv[1], "--output", sys.argv[4], "--jsonl"]))
"""
    arguments = [
        sys.executable,
        "-c",
        program,
        str(files[1]),
        str(photo),
        str(tmp_path / "found.json"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = both[1].predict(photo, score_threshold=0.1)
    api, command = done.stdout.splitlines()
    assert api.split() == [str(len(wanted)), *wanted.labels]
    assert json.loads(command)["photo"] == str(photo) and (tmp_path / "out" / "overlays" / "00001_photo.jpg").is_file()
    assert len(json.loads((tmp_path / "found.json").read_text())["annotations"]) == len(wanted) > 0


def test_what_is_no_such_file(files, tmp_path, capsys):
    import onnx

    with pytest.raises(CimError, match=r"no such file: .*none\.onnx; to fix: cim export-model"):
        cim.load_model(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(CimError, match=r"not an ONNX file that onnxruntime runs: .*text\.onnx"):
        cim.load_model(tmp_path / "text.onnx")
    foreign = onnx.load(files[1])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(CimError, match=r"not an exported Mask R-CNN: .*foreign\.onnx"):
        cim.load_model(tmp_path / "foreign.onnx")
    with pytest.raises(CimError, match=r"onnxruntime has no such device; expected .*; found tpu"):
        cim.load_model(files[1], "tpu")
    save_checkpoint(tmp_path / "cim.pth", {"meta": {"kind": "cim"}, "model": {}})
    assert main(["export-model", str(tmp_path / "cim.pth")]) == 2
    assert "not a Mask R-CNN" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "work"), [("onnxruntime", "load"), ("onnx", "export")])
def test_a_package_that_is_not_there(monkeypatch, tmp_path, package, work):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CimError, match=rf"need the package {package}; to fix: pip install 'cim\[onnx\]'"):
        if work == "load":
            cim.load_model(tmp_path / "model.onnx")
        else:
            onnx_file.export_onnx(None, tmp_path / "model.onnx")
