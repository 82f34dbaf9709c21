#!/usr/bin/env python
"""The published name of ``cim compare``."""

import sys

from cim.cli.main import main

COMMAND = ["compare"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
