#!/usr/bin/env python
"""The published name of ``cim labels``."""

import sys

from cim.cli.main import main

COMMAND = ["labels"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
