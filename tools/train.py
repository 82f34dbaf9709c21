#!/usr/bin/env python
"""The published name of ``cim train``."""

import sys

from cim.cli.main import main

COMMAND = ["train"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
