"""What all commands share: one-line errors, exit codes, common options. Imports nothing heavy."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable

from cim.core.errors import CimError, disk_error, memory_error

_LESS_MEMORY = {  # what to lower, by command; it counts as another setting, so that networks begin anew
    "proposals": "a lower proposals.max_proposals",
    "prm": "a lower prm.batch_size, prm.image_size or prm.workers",
    "train": "a lower train.workers; or, begun anew, lower train.sides and train.max_proposals",
    "score": "lower infer.sides or infer.max_proposals",
    "retrieve": "a lower prm.image_size",
    "refine": "a lower refine.workers; or, begun anew, a lower refine.micro_batch and refine.max_side",
    "predict": "smaller photos, --batch 1",
}


def run(main: Callable[[], int | None], command: str = "") -> int:
    """Exit code of ``main``: its own, 130 after Ctrl-C, 2 after what is told in one line: a :class:`CimError`, a full
    or read-only disk, too little memory.

    Args:
        command: what ``main`` is called, without ``cim``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8 can be told, too
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except CimError as error:
        return _tell(error)
    except BrokenPipeError:  # whoever reads what we print (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        told = disk_error(error) if isinstance(error, OSError) else None
        told = told or memory_error(error, f"cim {command}".strip(), _less_memory(command))
        if told is None:
            raise
        return _tell(told)


def _tell(error: CimError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _less_memory(command: str) -> str:
    lower = _LESS_MEMORY.get(command, "fewer --workers")
    return f"end other programs, then the same command continues; or {lower}"


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` closes with an example."""
    target = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    describe(target, description, example)
    return target


def describe(target: argparse.ArgumentParser, description: str, example: str) -> None:
    """What ``--help`` opens and closes with."""
    target.description = description
    target.epilog = f"example:\n  {example}"


def add_config_args(target: argparse.ArgumentParser, optional: bool = False) -> None:
    """CONFIG and ``--set key=value``; read them with ``cim.config.schema.load_config(args.config, args.set)``."""
    target.add_argument("config", help="a yaml file, or the name of one in configs/", nargs="?" if optional else None)
    add_set(target)


def add_set(target: argparse.ArgumentParser) -> None:
    """``--set key=value``."""
    target.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override settings, e.g. train.lr=0.001",
    )


def command_line(command: str, args: argparse.Namespace, *options: object) -> str:
    """A command for the config and settings of ``args``, as people type it: what to run next, or before."""
    settings = ["--set", *args.set] if args.set else []
    return shlex.join(map(str, ["cim", command, args.config, *options, *settings]))


def positive(text: str) -> int:
    """A whole number from 1, as a type of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, found {text!r}")
    return int(text)


def add_stage_args(target: argparse.ArgumentParser) -> None:
    """Options of every per-image stage; hand them to ``cim.core.parallel.run_stage``."""
    add_workers(target, "processes (default: all cores)")
    target.add_argument("--overwrite", action="store_true", help="make again what is already there")
    target.add_argument(
        "--scheduler", metavar="ADDRESS", help="Dask scheduler, e.g. tcp://host:8786 (needs cim[cluster])"
    )


def add_workers(target: argparse.ArgumentParser, text: str = "processes of the selection (default: all cores)") -> None:
    """``--workers``."""
    target.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help=text)
