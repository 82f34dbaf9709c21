#!/usr/bin/env python
"""The published name of ``cim average``."""

import sys

from cim.cli.main import main

COMMAND = ["average"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
