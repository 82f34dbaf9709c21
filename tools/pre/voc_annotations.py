"""Make voc_2012_trainaug.json and voc_2012_val.json from a VOCdevkit and, if there is one, an SBD copy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cim.cli import parser, run
from cim.datasets.voc_devkit import make_voc_annotations


def get_parser() -> argparse.ArgumentParser:
    example = "python tools/pre/voc_annotations.py --devkit VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset"
    result = parser(__doc__, example)
    result.add_argument("--devkit", type=Path, required=True, help="VOCdevkit/VOC2012")
    result.add_argument(
        "--sbd", type=Path, help="folder with inst/*.mat, train.txt, val.txt; without it: VOC's own train"
    )
    result.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 (default: %(default)s)")
    result.add_argument("--overwrite", action="store_true", help="make files again that are there")
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    root = args.data_root if args.data_root.name == "VOC2012" else args.data_root / "VOC2012"
    for path in make_voc_annotations(args.devkit, root, args.sbd, args.overwrite):
        print(path)


if __name__ == "__main__":
    sys.exit(run(main))
