#!/usr/bin/env bash
# Installs what is missing, then runs the style check, the type check and the tests.
# usage: bash scripts/test.sh [pytest arguments]      e.g. bash scripts/test.sh -k regions
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
cim_setup
ruff check .
ruff format --check --quiet . || { echo "error: formatting; to fix: ruff format ." >&2; exit 1; }
mypy
python -m pytest "$@"
