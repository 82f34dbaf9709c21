#!/usr/bin/env python
"""The published name of ``cim labels --from points``."""

import sys

from cim.cli.main import main

COMMAND = ["labels", "--from", "points"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
