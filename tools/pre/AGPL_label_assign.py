"""First labels: peaks of the response network for every tag, and the proposals that each peak stands for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cim.cli import run
from cim.label_tool import config_of, label_from_peaks, label_from_points, label_parser


def get_parser() -> argparse.ArgumentParser:
    result = label_parser(
        f"{__doc__} With assign.points set, annotated points take the place of peaks. The same command continues.",
        "python tools/pre/AGPL_label_assign.py resnet50_voc\n"
        "  python tools/pre/AGPL_label_assign.py --dataset voc --checkpoint data/prm_voc.pth "
        "--export data/label_assign/voc_2012_label_assign.pkl",
    )
    result.add_argument("--checkpoint", type=Path, help="response network, ours or published (default: the config's)")
    result.add_argument("--peaks", type=Path, help="peaks store (default: <work_dir>/peaks/<split>)")
    result.add_argument("--batch", type=int, default=8, help="photos per pass through the network")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    config = config_of(args)
    if config.assign.points is not None:
        return label_from_points(args, config, Path(config.assign.points))
    return label_from_peaks(args, config)


if __name__ == "__main__":
    sys.exit(run(main))
