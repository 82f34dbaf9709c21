#!/usr/bin/env python
"""The published name of ``cim prm``."""

import sys

from cim.cli.main import main

COMMAND = ["prm"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
