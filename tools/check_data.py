#!/usr/bin/env python
"""The published name of ``cim check``."""

import sys

from cim.cli.main import main

COMMAND = ["check"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
