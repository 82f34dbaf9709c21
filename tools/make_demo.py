"""Write the demo data set: drawn objects of five classes with exact masks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cim.cli import parser, run
from cim.datasets.demo import make_demo


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "python tools/make_demo.py data/demo")
    result.add_argument("root", type=Path, help="new folder")
    result.add_argument("--train", type=int, default=200, help="training pictures (default: 200)")
    result.add_argument("--val", type=int, default=60, help="validation pictures (default: 60)")
    result.add_argument("--seed", type=int, default=0)
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    make_demo(args.root, args.train, args.val, args.seed)
    print(f"demo data set in {args.root}: {args.train} training and {args.val} validation pictures")


if __name__ == "__main__":
    sys.exit(run(main))
