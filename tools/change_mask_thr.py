#!/usr/bin/env python
"""The published name of ``cim threshold``."""

import sys

from cim.cli.main import main

COMMAND = ["threshold"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
