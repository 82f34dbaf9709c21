#!/usr/bin/env python
"""The published name of ``cim score``."""

import sys

from cim.cli.main import main

COMMAND = ["score"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
