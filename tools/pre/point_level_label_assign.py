"""First labels from annotated points (CIM-p): one text file per photo, lines of ``x y class confidence``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cim.cli import run
from cim.errors import CimError
from cim.label_tool import config_of, label_from_points, label_parser


def get_parser() -> argparse.ArgumentParser:
    result = label_parser(
        __doc__,
        "python tools/pre/point_level_label_assign.py --dataset voc --points data/VOC2012/Center_points "
        "--export data/label_assign/voc_2012_point.pkl",
    )
    result.add_argument("--points", type=Path, help="folder of the files (default: the config's assign.points)")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    config = config_of(args)
    points = args.points or (Path(config.assign.points) if config.assign.points else None)
    if points is None:
        raise CimError("no points given", fix="pass --points or set assign.points")
    return label_from_points(args, config, points)


if __name__ == "__main__":
    sys.exit(run(main))
