"""``python -m cim`` is the command ``cim``."""

import sys

from cim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
