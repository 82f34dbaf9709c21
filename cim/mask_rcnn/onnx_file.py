"""Mask R-CNN as an ONNX file: written with PyTorch, run by onnxruntime without it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cim import __version__
from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.types import Instances
from cim.mask_rcnn.pixels import for_network, found_instances

if TYPE_CHECKING:
    from cim.mask_rcnn.detect import MaskDetector

KIND = "cim mask_rcnn"
INSTALL = "pip install 'cim[onnx]'"
OUTPUTS = ("boxes", "class_ids", "scores", "masks")
_OPSET = 17  # RoIAlign with half-pixel offsets came with 16


def export_onnx(detector: MaskDetector, path: str | Path) -> None:
    """Write a trained network, for photos of any size.

    Input ``photo``: uint8 [H, W, 3], RGB; resizing and normalising are part of the graph. Outputs: ``boxes`` float32
    [n, 4] (xyxy, pixels of the photo), ``class_ids`` int64 [n] (0..C-1), ``scores`` float32 [n], falling, and ``masks``
    float32 [n, 28, 28], 0..1, each spread over its box. The metadata hold the class names, and say in words and numbers
    what happens to a photo before, inside and after the graph.

    Raises:
        CimError: the package onnx is missing, or the file cannot be written.
    """
    import torch

    from cim.models.mask_rcnn import MEAN, STD, DeployedMaskRCNN

    onnx = _package("onnx")
    resize = detector.model.transform
    meta = {
        "kind": KIND,
        "version": __version__,
        "classes": json.dumps(list(detector.classes)),
        "preprocessing": json.dumps(
            {
                "input": "uint8 [H, W, 3], RGB, upright; long sides beyond 1600 shrunk by area averages",
                "inside": "bilinear: short side min_side unless the long one passes max_side; (x / 255 - mean) / std",
                "min_side": resize.min_size[-1],
                "max_side": resize.max_size,
                "mean": MEAN,
                "std": STD,
            }
        ),
        "postprocessing": "masks: a rim of zeros, bilinear to the box, cut at 0.5",
    }
    example = torch.zeros(resize.min_size[-1], resize.max_size, 3, dtype=torch.uint8, device=detector.device)
    axes = {"photo": {0: "height", 1: "width"}, **{name: {0: "found"} for name in OUTPUTS}}
    with atomic(path) as temporary:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of tracing: what depends on the photo is torchvision's, and made for it
            torch.onnx.export(
                DeployedMaskRCNN(detector.model).eval(),
                (example,),
                str(temporary),
                input_names=["photo"],
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,  # the newer exporter does not take lists whose lengths the photo decides
            )
        graph = onnx.load(str(temporary))
        onnx.helper.set_model_props(graph, meta)
        onnx.checker.check_model(graph)
        onnx.save(graph, str(temporary))


@dataclass(frozen=True, eq=False)
class OnnxDetector:
    """An exported network, run by onnxruntime.

    Attributes:
        session: an ``onnxruntime.InferenceSession``.
        classes: C names.
    """

    session: Any
    classes: tuple[str, ...]

    def detect(
        self, photos: Sequence[np.ndarray], tags: Sequence[Sequence[int] | None], threshold: float
    ) -> list[Instances]:
        """Instances of photos uint8 [H, W, 3], one after the other; as ``MaskDetector.detect`` finds them."""
        return [self._one(photo, chosen, threshold) for photo, chosen in zip(photos, tags, strict=True)]

    def _one(self, photo: np.ndarray, tags: Sequence[int] | None, threshold: float) -> Instances:
        seen = for_network(photo)
        boxes, class_ids, scores, masks = self.session.run(OUTPUTS, {"photo": np.ascontiguousarray(seen)})
        sizes = seen.shape[:2], photo.shape[:2]
        return found_instances(boxes, class_ids, scores, masks, *sizes, tags, threshold)


def open_onnx(path: str | Path, device: str = "auto") -> OnnxDetector:
    """The network of a file that :func:`export_onnx` wrote.

    Args:
        device: "cpu", "cuda" (with onnxruntime-gpu), "auto".

    Raises:
        CimError: onnxruntime is missing or lacks the device, no such file, or not such a file.
    """
    runtime = _package("onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise CimError("no such file", path=path, fix="cim export-model CHECKPOINT --output FILE")
    there = runtime.get_available_providers()
    cuda = "CUDAExecutionProvider"
    if device not in ("auto", "cpu") and (not device.startswith("cuda") or cuda not in there):
        fix = "device auto takes what there is; onnxruntime-gpu brings CUDA"
        raise CimError("onnxruntime has no such device", expected=", ".join(there), found=device, fix=fix)
    providers = [name for name in (cuda, "CPUExecutionProvider") if name in there and (device != "cpu" or name != cuda)]
    try:
        session = runtime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).splitlines()[0][:160]
        raise CimError("not an ONNX file that onnxruntime runs", path=path, found=reason) from error
    meta = session.get_modelmeta().custom_metadata_map
    if meta.get("kind") != KIND:
        fix = "cim export-model CHECKPOINT"
        raise CimError("not an exported Mask R-CNN", path=path, expected=KIND, found=meta.get("kind"), fix=fix)
    return OnnxDetector(session, tuple(json.loads(meta["classes"])))


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise CimError(f"ONNX files need the package {name}", fix=INSTALL) from None
