"""Train CIM as a config says, or continue a run that was stopped."""

from __future__ import annotations

import argparse
import logging
import os

from cim.cli.common import command_line
from cim.cli.main import call
from cim.config.loading import load_config
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.training.artefacts import missing_stages
from cim.training.train import train_cim

STAGES = {"proposals": "proposals", "prm": "prm", "first_labels": "labels"}  # and their commands


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

    if args.missing:
        for stage in missing_stages(config):
            print(stage)
        return
    with hold(config.work_dir):
        if args.prepare:
            for stage in missing_stages(config):
                _prepare(stage, args)
        if os.environ.get("RANK", "0") != "0":
            logging.disable(logging.INFO)  # one process speaks for all
        print(train_cim(config))


def _prepare(stage: str, args: argparse.Namespace) -> None:
    """Run a stage that was left out.

    Raises:
        CimError: it failed on some photos, or several processes would do it at once.
    """
    command = STAGES[stage]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CimError(
            f"a stage is missing: {stage}", fix=f"{command_line(command, args)}; then the same command again"
        )
    overrides = ["--set", *args.set] if args.set else []
    if call([command, args.config, *overrides]):
        raise CimError(f"stage {stage} is not complete", fix="see the lines above; the same command continues")
