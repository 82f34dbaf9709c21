"""docs/tutorial.ipynb runs from top to bottom, and is kept without what it prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
SMALL = "PICTURES = 6\nEPOCHS, UPDATES = 2, 4"


def test_it_is_kept_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """With fewer pictures and updates than it says, which are its first cell."""
    reason = "needs pip install 'cim[notebook]'"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (first,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert {line.split("=")[0] for line in first.source.splitlines()} == {
        line.split("=")[0] for line in SMALL.splitlines()
    }
    first.source = SMALL
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell does
    shown = [set(output.get("data", ())) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/jpeg" in kinds or "image/png" in kinds for kinds in shown) == 3  # photo, peaks, prediction
    assert (tmp_path / "runs" / "notebook" / "metrics.json").is_file()
