#!/usr/bin/env python
"""Train CIM as a config says, or continue a run that was stopped."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from cim.cli import add_config_args, parser, run
from cim.config import load_config


def get_parser() -> argparse.ArgumentParser:
    result = parser(
        "Train CIM as a config says, or continue a run that was stopped: the same command does both. On several GPUs: "
        "torchrun --nproc_per_node 4 tools/train.py CONFIG gives the same updates.",
        "python tools/train.py configs/resnet50_voc.yaml --set train.workers=8 train.precision=bf16",
    )
    add_config_args(result)
    result.add_argument("--missing", action="store_true", help="only list the stages to run before, one per line")
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from cim.training import missing_stages, train_cim  # torch is slow to import, --help need not wait for it

    if args.missing:
        for stage in missing_stages(config):
            print(stage)
        return
    if os.environ.get("RANK", "0") != "0":
        logging.disable(logging.INFO)  # one process speaks for all
    print(train_cim(config))


if __name__ == "__main__":
    sys.exit(run(main))
