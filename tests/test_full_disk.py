"""A disk that takes no more, at every stage: told in one line, nothing half-written, and the same command resumes.

Where mounting is allowed (as root, or in a user namespace), a disk in memory of 96 MB is filled to the last byte, to
all but some, and mounted read-only (tests/full_disk_stages.py). Elsewhere a limit on the size of files plays one, for
proposals alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import draw

from cim.cli.main import main
from cim.datasets.drawn import make_demo
from cim.storage.store import Store

HERE = Path(__file__).parent
APART = ["unshare", "--map-root-user", "--mount"]
STAGES = (
    *("proposals", "proposals of the validation photos", "response network (PRM)", "first labels", "CIM training"),
    *("CIM on the validation photos", "metrics of CIM", "metrics of WSDDN", "PRM on the validation photos"),
    *("metrics of PRM", "CIM on the training photos", "pseudo labels", "pseudo labels above the threshold"),
    *("Mask R-CNN", "overlays of the pseudo labels", "overlays of the validation photos", "report"),
    *("drawing", "labels for others", "predictions"),
)
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from cim.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What tests/full_disk_stages.py found."""
    if not shutil.which("unshare") or subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here (unshare --mount): full disks are tried at proposals alone")
    folder = tmp_path_factory.mktemp("full")
    make_demo(folder / "drawn", train=8, val=3)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    words = [*APART, sys.executable, str(HERE / "full_disk_stages.py"), str(folder)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def test_all_stages_are_tried(told):
    assert set(told["stages"]) == set(STAGES)


@pytest.mark.parametrize("title", STAGES)
def test_a_stage_without_room_says_so_and_resumes(told, title: str):
    outcomes = told["stages"][title]
    code, text = outcomes.pop("resumed")
    assert code == 0, text
    for state, outcome in outcomes.items():
        assert not outcome["half"] and not outcome["harmed"], state
        (line,) = [line for line in outcome["told"].splitlines() if line.startswith(("error:", "failed:"))]
        assert outcome["code"] == 2 and line.startswith("error: cannot write: ") and "Traceback" not in outcome["told"]
        why = "Read-only file system" if state == "read-only" else "No space left on device (0.0 MB free in "
        assert why in line and "then the same command continues" in line


def test_the_result_is_that_of_a_smooth_run(told):
    assert told["files"] > 40 and not told["other"]


def test_proposals_under_a_limit(tmp_path):
    """One line, not one for each photo."""
    draw(tmp_path, 2)
    output = tmp_path / "regions"
    command = ["proposals", "--images", str(tmp_path / "photos"), "--no-deep-features", "--output", str(output)]
    words = [sys.executable, "-c", LIMITED, "600", *command, "--workers", "1"]  # bytes: the manifest fits, regions not
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("cannot write: ") == done.stderr.count("to fix: free space") == 1
    assert [path.name for path in output.iterdir()] == ["manifest.json"]
    assert main([*command, "--workers", "1"]) == 0
    assert len(Store.open(output, "regions")) == 2
