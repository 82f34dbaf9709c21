#!/usr/bin/env bash
# Makes .venv and installs cim into it; does nothing when that has been done. Sourced by the other scripts.
# An active virtual environment (or conda environment) is used instead of .venv. PYTHON names another interpreter.
CIM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

cim_setup() {
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    local python=${PYTHON:-python3}
    if [ ! -x "$CIM_ROOT/.venv/bin/python" ]; then
      command -v "$python" >/dev/null || { echo "error: $python not found; install Python 3.10 or newer" >&2; return 2; }
      "$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 10))' ||
        { echo "error: Python 3.10 or newer wanted, found $("$python" --version)" >&2; return 2; }
      "$python" -c 'import sys; sys.exit(sys.version_info[:2] > (3, 14))' ||
        echo "warning: $("$python" --version) is newer than those that cim was tried with (3.10 to 3.14)" >&2
      echo "making $CIM_ROOT/.venv" >&2
      "$python" -m venv "$CIM_ROOT/.venv" || { echo "error: $python -m venv failed; on Debian: apt-get install python3-venv" >&2; return 2; }
    fi
    # shellcheck disable=SC1091
    . "$CIM_ROOT/.venv/bin/activate"
  fi
  # The stamp holds what was installed, so that a second run skips pip altogether.
  local stamp want
  stamp=$(python -c 'import sys; print(sys.prefix)')/.cim-installed
  want=$(cat "$CIM_ROOT/requirements.txt" "$CIM_ROOT/pyproject.toml" "$CIM_ROOT/setup.py" | cksum)" $CIM_ROOT"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    echo "installing the requirements (about 2 minutes the first time)" >&2
    python -m pip install --quiet --disable-pip-version-check -r "$CIM_ROOT/requirements.txt" || return 2
    python -m pip install --quiet --disable-pip-version-check --no-deps --editable "$CIM_ROOT" || return 2
    echo "$want" > "$stamp"
  fi
}
