"""Time between stages: the demo by one warm command against version 0.1, where every stage loaded the libraries anew.

    git worktree add ../cim-0.1 74ebedd
    python benchmarks/startup.py --old ../cim-0.1 --pairs 3            # a small demo: start-up is most of it
    python benchmarks/startup.py --old ../cim-0.1 --pairs 1 --full     # the demo as people run it
    python benchmarks/startup.py --stages --full                       # what of every stage is start-up still

Both run with this interpreter, in turn, on the same pictures; the ratio is taken pair by pair, because machines drift.
Then the time to answer ``--help``. ``--stages`` runs today's demo alone and prints a row for every stage: seconds, of
them those until its process began; processor seconds of that process and of its workers, of them those of imports.
(Of a loader's workers the processor seconds are not counted: the loader ends them without waiting.)
"""

from __future__ import annotations

import argparse
import builtins
import importlib
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

from cim.cli import flow
from cim.cli.main import main as cim
from cim.cli.worker import cim_command, start_apart, wait_for

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--train", "24", "--val", "8", "--set", "prm.epochs=2", "train.updates=10", "train.step=[]"),
    *("train.warmup_updates=0", "proposals.max_proposals=60"),
]


def get_parser() -> argparse.ArgumentParser:
    target = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target.add_argument("--old", type=Path, help="a checkout of version 0.1")
    target.add_argument("--pairs", type=int, default=3, help="runs of each (default: 3)")
    target.add_argument("--full", action="store_true", help="the whole demo instead of a small one")
    target.add_argument("--stages", action="store_true", help="today's demo alone, stage by stage")
    return target


def main() -> None:
    args = get_parser().parse_args()
    options = [] if args.full else SMALL
    if args.stages:
        print_stages(options)
    elif args.old is None:
        raise SystemExit("either --old FOLDER or --stages")
    else:
        compare(args, options)


def compare(args: argparse.Namespace, options: list[str]) -> None:
    """Both versions, in turn."""
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


# ---------------------------------------------------------------------- stage by stage


def print_stages(options: list[str]) -> None:
    """Run the demo; a row for every stage."""
    begun: list[str] = []

    def started(words, start, said=None):
        """What the flow calls for every stage."""
        os.environ["CIM_NOTE"] = str(folder / f"{len(begun)}.json")
        os.environ["CIM_ASKED"] = str(time.monotonic())
        begun.append(f"cim {words[0]}")
        return start_apart(words, measured, said)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flow.start_apart, flow.run_apart = started, lambda words, start: wait_for(started(words, start))
        began = time.monotonic()
        cim(["demo", "--output", str(folder / "demo"), *options])
        seconds = time.monotonic() - began
        rows = [
            {"stage": stage, **json.loads((folder / f"{number}.json").read_text())}
            for number, stage in enumerate(begun)
        ]
    columns = ("s", "to_begin", "cpu", "workers", "imports")
    print("\n| stage | s | of it until it begins | processor s | workers' | of its own for imports |")
    print("|---|" + "--:|" * len(columns))
    for row in rows:
        print(f"| `{row['stage']}` | " + " | ".join(f"{row[column]:.1f}" for column in columns) + " |")
    print("| sum | " + " | ".join(f"{sum(row[column] for row in rows):.1f}" for column in columns) + " |")
    print(f"\n{seconds:.1f} s in all; what runs beside another stage is in both rows")


def measured(words: list[str]) -> None:
    """A command of ``cim`` that leaves a note of what it took, in the file that CIM_NOTE names."""
    note = {"to_begin": time.monotonic() - float(os.environ["CIM_ASKED"]), "imports": 0.0}
    depth = 0

    def timing(function):
        def timed(*args, **options):
            nonlocal depth
            depth, began = depth + 1, time.process_time()
            try:
                return function(*args, **options)
            finally:
                depth -= 1
                note["imports"] += 0 if depth else time.process_time() - began

        return timed

    plain = builtins.__import__, importlib.import_module
    builtins.__import__, importlib.import_module = timing(plain[0]), timing(plain[1])
    try:
        cim_command(words)
    finally:
        builtins.__import__, importlib.import_module = plain
        spent = os.times()
        note["s"] = time.monotonic() - float(os.environ["CIM_ASKED"])
        note |= {"cpu": spent.user + spent.system, "workers": spent.children_user + spent.children_system}
        Path(os.environ["CIM_NOTE"]).write_text(json.dumps(note))


def answer() -> float:
    """Seconds until ``cim --help`` has answered."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cim", "--help"], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
