"""metrics.json: merging, tables, comparison."""

from __future__ import annotations

import pytest
from doors import run_tool

from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.evaluation.metrics_file import load_rows, markdown, merge_entries

VOC = {"mAP@0.25": 64.94, "mAP@0.50": 51.1, "mAP@0.70": 32.4, "mAP@0.75": 26.1, "subset_multi": {"mAP@0.50": 40.0}}
COCO = {"AP": 11.9, "AP50": 22.8}


@pytest.fixture
def runs(tmp_path):
    merge_entries(tmp_path / "a" / "metrics.json", {"rows": {"CIM": VOC}, "settings": {"CIM": {"nms": "box"}}})
    merge_entries(tmp_path / "a" / "metrics.json", {"rows": {"WSDDN": {**VOC, "mAP@0.50": 1.0}}})
    merge_entries(tmp_path / "b" / "metrics.json", {"rows": {"CIM": COCO}})
    return tmp_path


def test_rows_are_merged_by_name(runs):
    path = runs / "a" / "metrics.json"
    merge_entries(path, {"rows": {"CIM": {"mAP@0.50": 2.0}}})
    assert load_rows(path) == load_rows(runs / "a") == {"CIM": {"mAP@0.50": 2.0}, "WSDDN": {**VOC, "mAP@0.50": 1.0}}
    assert read_json(path)["settings"] == {"CIM": {"nms": "box"}}


def test_table():
    lines = markdown({"CIM": VOC, "x": COCO}).splitlines()
    assert lines[0] == "| | mAP@0.25 | mAP@0.50 | mAP@0.70 | mAP@0.75 | AP | AP50 |"
    assert lines[2] == "| CIM | 64.9 | 51.1 | 32.4 | 26.1 |  |  |"
    assert markdown({"CIM": VOC}, subset=True).splitlines()[2] == "| CIM | 40.0 |"


def test_tool(runs, capsys):
    plot = runs / "plots" / "compare.png"
    assert run_tool("compare", str(runs / "a"), str(runs / "b" / "metrics.json"), "--plot", str(plot)) == 0
    printed = capsys.readouterr().out
    assert "| a: WSDDN | 64.9 | 1.0 |" in printed and "| b: CIM |" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert run_tool("compare", str(runs / "a"), "--multi") == 0
    assert "| CIM | 40.0 |" in capsys.readouterr().out


def test_errors(runs, capsys):
    assert run_tool("compare", str(runs / "nowhere")) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: missing file") and "cim evaluate" in error and "\n" not in error
    write_json(runs / "c" / "metrics.json", {"mAP@0.50": 3})
    with pytest.raises(CimError, match="not a metrics file"):
        load_rows(runs / "c")
