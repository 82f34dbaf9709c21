#!/usr/bin/env python
"""The published name of ``cim import``."""

import sys

from cim.cli.main import main

COMMAND = ["import"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
