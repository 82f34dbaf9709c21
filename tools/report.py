#!/usr/bin/env python
"""The published name of ``cim report``."""

import sys

from cim.cli.main import main

COMMAND = ["report"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
