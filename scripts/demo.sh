#!/usr/bin/env bash
# The whole flow on pictures that the project draws itself; installs what is missing first. About 2 minutes on 2 cores.
#   bash scripts/demo.sh [--output runs/demo]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/scripts/setup.sh"
cim_setup
exec python "$root/tools/demo.py" "$@"
