#!/usr/bin/env python
"""The published name of ``cim grids --dataset coco``."""

import sys

from cim.cli.main import main

COMMAND = ["grids", "--dataset", "coco"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
