"""Make voc_2012_trainaug.json and voc_2012_val.json from a VOCdevkit and, if there is one, an SBD copy."""

from __future__ import annotations

import argparse

from cim.datasets.voc_devkit import make_voc_annotations


def main(args: argparse.Namespace) -> None:
    root = args.data_root if args.data_root.name == "VOC2012" else args.data_root / "VOC2012"
    for path in make_voc_annotations(args.devkit, root, args.sbd, args.overwrite):
        print(path)
