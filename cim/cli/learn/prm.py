"""Train the response network of a config from its tags, or continue a run that was stopped."""

from __future__ import annotations

import argparse
import logging
import os

from cim.config.loading import load_config
from cim.core.locks import hold
from cim.prm.train import train_prm


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

    if os.environ.get("RANK", "0") != "0":
        logging.disable(logging.INFO)  # one process speaks for all
    with hold(config.work_dir):
        print(train_prm(config))
