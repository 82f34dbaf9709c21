"""A disk that takes no more, played by a limit on the size of files: told in lines, nothing half-written, resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from small_run import draw

from cim.cli.main import main
from cim.storage.store import Store

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from cim.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def test_proposals(tmp_path):
    draw(tmp_path, 2)
    output = tmp_path / "regions"
    command = ["proposals", "--images", str(tmp_path / "photos"), "--no-deep-features", "--output", str(output)]
    words = [sys.executable, "-c", LIMITED, "600", *command, "--workers", "1"]  # bytes: the manifest fits, regions not
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("cannot write: ") == done.stderr.count("to fix: free space") == 2  # a line for each photo
    assert [path.name for path in output.iterdir()] == ["manifest.json"]
    assert main([*command, "--workers", "1"]) == 0
    assert len(Store.open(output, "regions")) == 2
