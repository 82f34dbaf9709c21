"""Write the demo data set: drawn objects of five classes with exact masks."""

from __future__ import annotations

import argparse

from cim.datasets.drawn import make_demo


def main(args: argparse.Namespace) -> None:
    make_demo(args.root, args.train, args.val, args.seed)
    print(f"demo data set in {args.root}: {args.train} training and {args.val} validation pictures")
