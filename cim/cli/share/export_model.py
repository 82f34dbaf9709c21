"""A trained Mask R-CNN as an ONNX file, for programs without PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cim.core.errors import CimError
from cim.engine.checkpoints import load_checkpoint
from cim.mask_rcnn.detect import load_detector
from cim.mask_rcnn.onnx_file import export_onnx


def main(args: argparse.Namespace) -> None:
    """Writes the file and says where."""
    path = Path(args.checkpoint)
    path = next((p for p in (path / "final.pth", path / "mask_rcnn" / "final.pth") if p.is_file()), path)
    state = load_checkpoint(path)
    if state["meta"].get("kind") != "mask_rcnn":
        fix = "give the checkpoint of cim refine; CIM itself needs proposals, which are no network"
        raise CimError("not a Mask R-CNN", path=path, found=state["meta"].get("kind"), fix=fix)
    detector = load_detector(state, path, torch.device("cpu"))
    export_onnx(detector, args.output)
    print(f"{args.output}: {len(detector.classes)} classes, {args.output.stat().st_size / 1e6:.0f} MB")
