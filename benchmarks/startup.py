"""Time between stages: the demo by one warm command against version 0.1, where every stage loaded the libraries anew.

    git worktree add ../cim-0.1 74ebedd
    python benchmarks/startup.py --old ../cim-0.1 --pairs 3            # a small demo: start-up is most of it
    python benchmarks/startup.py --old ../cim-0.1 --pairs 1 --full     # the demo as people run it

Both run with this interpreter, in turn, on the same pictures; the ratio is taken pair by pair, because machines drift.
Then the time to answer ``--help``, and what is left of start-up: the seconds that a stage's process takes to begin.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--train", "24", "--val", "8", "--set", "prm.epochs=2", "train.updates=10", "train.step=[]"),
    *("train.warmup_updates=0", "proposals.max_proposals=60"),
]


def get_parser() -> argparse.ArgumentParser:
    target = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target.add_argument("--old", type=Path, required=True, help="a checkout of version 0.1")
    target.add_argument("--pairs", type=int, default=3, help="runs of each (default: 3)")
    target.add_argument("--full", action="store_true", help="the whole demo instead of a small one")
    return target


def main() -> None:
    args = get_parser().parse_args()
    options = [] if args.full else SMALL
    commands = {
        "0.1": (args.old, [sys.executable, str(args.old / "tools" / "demo.py")]),
        "now": (ROOT, [sys.executable, "-m", "cim", "demo"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    stages: dict[str, float] = {}
    for _ in tqdm(range(args.pairs), desc="pairs"):
        for name, (home, command) in commands.items():
            wall, timings = timed(command, options, home)
            seconds[name].append(wall)
            if name == "now":
                stages = timings
    print("| demo | " + " | ".join(f"run {k + 1}" for k in range(args.pairs)) + " | median |")
    print("|---|" + "--:|" * (args.pairs + 1))
    for name, values in seconds.items():
        print(f"| {name}, s | " + " | ".join(f"{v:.0f}" for v in values) + f" | {statistics.median(values):.0f} |")
    ratios = [new / old for old, new in zip(seconds["0.1"], seconds["now"])]
    print("| ratio | " + " | ".join(f"{r:.2f}" for r in ratios) + f" | {statistics.median(ratios):.2f} |")
    print(f"\n{len(stages)} stages, {sum(stages.values()):.0f} s in them, in the last run of now")
    helps = [answer() for _ in range(7)]
    print(f"cim --help answers in {statistics.median(helps):.3f} s (median of 7)")


def timed(command: list[str], options: list[str], home: Path) -> tuple[float, dict[str, float]]:
    """Wall seconds of a whole demo in an empty folder, and its own timings by stage."""
    folder = Path(tempfile.mkdtemp())
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    try:
        subprocess.run(
            [*command, "--output", str(folder / "demo"), *options],
            check=True,
            env=environment,
            cwd=folder,
            capture_output=True,
        )
        return time.perf_counter() - began, json.loads((folder / "demo" / "timings.json").read_text())
    finally:
        shutil.rmtree(folder)


def answer() -> float:
    """Seconds until ``cim --help`` has answered."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cim", "--help"], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
