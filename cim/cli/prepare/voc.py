"""Annotation files from a VOCdevkit: of 2012 and, if there is one, an SBD copy; or of 2007."""

from __future__ import annotations

import argparse

from cim.core.errors import CimError
from cim.datasets.voc_boxes import devkit_year, make_voc2007_annotations
from cim.datasets.voc_devkit import make_voc_annotations


def main(args: argparse.Namespace) -> None:
    """Prints the files."""
    year = 2007 if devkit_year(args.devkit) == 2007 else 2012
    root = args.data_root if args.data_root.name == f"VOC{year}" else args.data_root / f"VOC{year}"
    if year == 2007 and args.sbd is not None:
        raise CimError("--sbd belongs to VOC 2012", path=args.devkit, fix="leave out --sbd")
    if year == 2007:
        paths = make_voc2007_annotations(args.devkit, root, args.overwrite)
    else:
        paths = make_voc_annotations(args.devkit, root, args.sbd, args.overwrite)
    for path in paths:
        print(path)
