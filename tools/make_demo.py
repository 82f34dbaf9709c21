#!/usr/bin/env python
"""The published name of ``cim draw``."""

import sys

from cim.cli.main import main

COMMAND = ["draw"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
