"""The command ``cim``: which commands there are, their help, and the call of one of them.

A command is two functions of its name: its options in ``cim.cli.options.<group>`` and its work, ``main``, in
``cim.cli.<group>.<name>``. Options import nothing heavy, so that help and complaints come at once; the work is
imported when it is about to begin.
"""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cim import __version__
from cim.cli.common import run


@dataclass(frozen=True)
class Group:
    """Commands of one part of the flow: their sub-package, heading, and one line each."""

    package: str
    title: str
    commands: dict[str, str]


GROUPS = (
    Group(
        "jobs",
        "the whole job",
        {
            "run": "masks, pseudo labels and a trained model from a folder of tagged photos",
            "demo": "the same on pictures that the program draws itself",
        },
    ),
    Group(
        "prepare",
        "before training",
        {
            "check": "what a config needs on disk: there, missing or damaged",
            "draw": "write the demo's data set",
            "voc": "annotation files from a VOCdevkit and SBD",
            "proposals": "candidate masks for photos",
            "import": "candidate masks that exist already, and labels of other programs",
            "recall": "how good candidate masks are",
            "pack": "a store's many files as one, and back",
            "grids": "the published 7x7 files",
            "overlaps": "the published IoU and containment files",
        },
    ),
    Group(
        "learn",
        "training",
        {
            "prm": "train the response network from tags",
            "labels": "first labels from its peaks, or from points",
            "peaks": "pictures of peaks and first labels",
            "train": "train CIM",
            "scenes": "scenes of known truth, for a second training of CIM",
            "refine": "train Mask R-CNN on pseudo labels",
        },
    ),
    Group(
        "judge",
        "masks and numbers",
        {
            "score": "scores of all proposals, then detections",
            "evaluate": "metrics and diagnosis of detections",
            "average": "several networks' scores as one",
            "retrieve": "masks from peak responses alone (PRM)",
            "compare": "runs side by side",
            "visualize": "instances painted over photos",
            "report": "one page about a run",
            "review": "accept, delete and replace masks in the browser",
        },
    ),
    Group(
        "share",
        "masks for others",
        {
            "predict": "masks on any photos with a trained network",
            "export": "pseudo labels of the training photos, and labels for other programs",
            "threshold": "choose among pseudo labels",
            "export-model": "a trained Mask R-CNN as an ONNX file",
        },
    ),
)
PACKAGES = {name: group.package for group in GROUPS for name in group.commands}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command: 0, 2 after bad input (told in one line), 130 after Ctrl-C.

    Args:
        argv: command and arguments; None: those of the process.
    """
    words = sys.argv[1:] if argv is None else argv
    return run(lambda: call(words), words[0] if words else "")


def call(argv: Sequence[str]) -> int | None:
    """Run one command in this process.

    Raises:
        CimError: bad input.
        SystemExit: bad options (code 2), or help was asked for (code 0).
    """
    args = parse(argv)
    return work_of(args.command)(args)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command; ``command`` is its name."""
    if argv and argv[0] in PACKAGES:  # the usual case reads the options of that command alone
        args = parser_of(argv[0]).parse_args(argv[1:])
        args.command = argv[0]
        return args
    target = whole_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # shell completion asks in this way; nobody else needs it

        argcomplete.autocomplete(target)
    if argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], PACKAGES, n=1)
        target.error(f"no command {argv[0]}; " + (f"did you mean {near[0]}?" if near else "cim --help lists them"))
    args = target.parse_args(argv)
    if not args.command:
        target.print_help()
        raise SystemExit(2)
    return args


def parser_of(command: str) -> argparse.ArgumentParser:
    """The options of one command."""
    parser = argparse.ArgumentParser(prog=f"cim {command}", formatter_class=argparse.RawDescriptionHelpFormatter)
    _options_of(command)(parser)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """The options of all commands, for the list of commands and for shell completion."""
    lines = [
        "\n".join([f"{group.title}:", *(f"  {name:<14}{text}" for name, text in group.commands.items())])
        for group in GROUPS
    ]
    parser = argparse.ArgumentParser(
        prog="cim",
        usage="cim COMMAND [options]    (cim COMMAND --help: its options, and an example)",
        description="Photographs with plain tags in, instance masks out.\n\n" + "\n\n".join(lines),
        epilog="example:\n  cim run --images photos --tags tags.csv --output runs/mine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cim {__version__}")
    commands = parser.add_subparsers(dest="command", help=argparse.SUPPRESS)
    for command in PACKAGES:
        _options_of(command)(commands.add_parser(command, formatter_class=argparse.RawDescriptionHelpFormatter))
    return parser


def _options_of(command: str) -> Callable[[argparse.ArgumentParser], None]:
    return getattr(importlib.import_module(f"cim.cli.options.{PACKAGES[command]}"), _python_name(command))


def work_of(command: str) -> Callable[[argparse.Namespace], int | None]:
    """The function that does the command's work: parsed arguments in, exit code (or None) out."""
    return importlib.import_module(f"cim.cli.{PACKAGES[command]}.{_python_name(command)}").main


def _python_name(command: str) -> str:
    return "import_" if command == "import" else command.replace("-", "_")  # import: Python's own word
