#!/usr/bin/env python
"""The published name of ``cim overlaps iou``."""

import sys

from cim.cli.main import main

COMMAND = ["overlaps", "iou"]

if __name__ == "__main__":
    sys.exit(main([*COMMAND, *sys.argv[1:]]))
