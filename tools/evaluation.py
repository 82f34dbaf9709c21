#!/usr/bin/env python
"""The published name of ``cim evaluate``."""

import sys

from cim.cli.main import main

COMMAND = ["evaluate"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
