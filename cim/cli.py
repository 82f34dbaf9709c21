"""What all command line tools share: one-line errors, exit codes, common options."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

from cim.errors import CimError


def run(main: Callable[[], int | None]) -> int:
    """Exit code of ``main``: its own, 2 after a :class:`CimError` (told in one line), 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return main() or 0
    except CimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` closes with an example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_args(target: argparse.ArgumentParser) -> None:
    """CONFIG and ``--set key=value``; read them with ``cim.config.load_config(args.config, args.set)``."""
    target.add_argument("config", help="a yaml file, or the name of one in configs/")
    target.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override settings, e.g. train.lr=0.001",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, found {text!r}")
    return int(text)


def add_stage_args(target: argparse.ArgumentParser) -> None:
    """Options of every per-image stage; hand them to ``cim.parallel.run_stage``."""
    target.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    target.add_argument("--overwrite", action="store_true", help="make again what is already there")
    target.add_argument(
        "--scheduler", metavar="ADDRESS", help="Dask scheduler, e.g. tcp://host:8786 (needs cim[cluster])"
    )
