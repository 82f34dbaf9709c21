#!/usr/bin/env bash
# The whole flow on a folder of tagged photos; installs what is missing first.
#   bash scripts/run_folder.sh --images photos --tags tags.csv --output runs/mine
#   bash scripts/run_folder.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/scripts/setup.sh"
cim_setup
exec python "$root/tools/run_folder.py" "$@"
