"""Train the response network of a config from its tags, or continue a run that was stopped."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from cim.cli import add_config_args, parser, run
from cim.config import load_config


def get_parser() -> argparse.ArgumentParser:
    result = parser(
        "Train the response network (PRM) of a config from its tags, or continue a run that was stopped. Writes "
        "<work_dir>/prm/final.pth and, where the evaluation split has tags, metrics.json with the average precision "
        "of every class.",
        "python tools/train_prm.py resnet50_voc --set prm.precision=bf16",
    )
    add_config_args(result)
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from cim.prm_training import train_prm  # torch is slow to import, --help need not wait for it

    if os.environ.get("RANK", "0") != "0":
        logging.disable(logging.INFO)  # one process speaks for all
    print(train_prm(config))


if __name__ == "__main__":
    sys.exit(run(main))
