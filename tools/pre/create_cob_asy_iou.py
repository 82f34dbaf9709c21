#!/usr/bin/env python
"""The published name of ``cim overlaps containment``."""

import sys

from cim.cli.main import main

COMMAND = ["overlaps", "containment"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
