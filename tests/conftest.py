"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference() -> Path:
    """What the published program computed for two photos; kept beside the repository, not in it."""
    path = ROOT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip("no ../shared/reference: the checks against the published program's outputs are not run")
    return path
