"""The published names in tools/, called in this process: each is a door to a command of ``cim``."""

from __future__ import annotations

import runpy
from pathlib import Path

from cim.cli.common import run
from cim.cli.main import call

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def command_of(name: str) -> list[str]:
    """The command behind tools/<name>.py."""
    return runpy.run_path(str(TOOLS / f"{name}.py"))["COMMAND"]


def call_tool(name: str, *argv: object) -> int | None:
    """What tools/<name>.py does with these arguments; errors are raised."""
    return call([*command_of(name), *map(str, argv)])


def run_tool(name: str, *argv: object) -> int:
    """Its exit code."""
    return run(lambda: call_tool(name, *argv))
