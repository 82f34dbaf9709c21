"""Every stage of a small job on a disk that is full, then read-only, then as it should be.

A program of its own, since it mounts a disk in memory: full_disk_stages.py FOLDER, with photos in FOLDER/drawn. The
disk is FOLDER/disk; FOLDER/report.json says what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import small_job

from cim.cli.flow import preparation, pseudo_labels, stage
from cim.cli.jobs.run import presentation, resolve, training
from cim.cli.main import main, parse
from cim.config.loading import save_config

ROOMY = {"proposals": 20480, "first labels": 65536, "CIM training": 65536, "CIM on the training photos": 65536}
"""Stages that are also run on a disk with room for a part of what they make, in bytes."""
BITS = ("**/final.pth", "**/*.npz", "**/results.json", "pseudo_labels/*.json", "exports/**/*.json")


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """What `cim run` runs, by title, and three commands besides."""
    args = parse(small_job.words(folder / "disk", "data.packed=false"))
    settings, config = resolve(args), args.output / "config.yaml"
    save_config(settings, config)
    steps = [*preparation(config, True), *training(config, True), *pseudo_labels(config)]
    steps += [stage("Mask R-CNN", "refine", config), *presentation(config, settings, True)]
    steps += [
        stage("drawing", "draw", folder / "disk" / "other", "--train", 2, "--val", 1),
        stage("labels for others", "export", config, "--format", "coco", "--photos", "copy"),
        stage(
            "predictions",
            *("predict", folder / "drawn" / "new", "--checkpoint", args.output / "train" / "final.pth"),
            *("--device", "cpu", "--output", folder / "disk" / "predictions"),
        ),
    ]
    return {step.title: step.command for step in steps}


def run(words: tuple[str, ...], told: Path) -> tuple[int, str]:
    """Exit code of a command, and all that this process wrote to standard error."""
    kept = os.dup(2)
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            code = main(words)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
    return code, told.read_text(errors="replace")


def content(disk: Path) -> dict[str, bytes]:
    """All files, but the logs, which grow, and what fills the disk."""
    files = small_job.everything(disk)
    return {name: data for name, data in files.items() if not name.endswith((".jsonl", "filler"))}


@contextmanager
def full(disk: Path, room: int) -> Iterator[None]:
    """A disk with so many bytes left."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        state = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
    yield
    filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def tried(words: tuple[str, ...], disk: Path, state: Any) -> dict[str, Any]:
    """A command on a disk in that state: exit code, what it told, files that it harmed or left half-written."""
    before = content(disk)
    with state:
        code, told = run(words, disk.parent / "told.txt")
        after = content(disk)
    harmed = [name for name, data in before.items() if after.get(name) != data and "events.out" not in name]
    half = [name for name in after if ".tmp" in name]
    return {"code": code, "told": told, "harmed": harmed if code else [], "half": half}


def bits(disk: Path) -> dict[str, bytes]:
    """What must not depend on what the disk did in between."""
    run_dir = disk / "run"
    return {str(path): path.read_bytes() for pattern in BITS for path in run_dir.glob(pattern)}


@contextmanager
def mounted(disk: Path) -> Iterator[None]:
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)
    (disk / "drawn").symlink_to(disk.parent / "drawn")
    yield
    subprocess.run(["umount", disk], check=True)


def report(folder: Path) -> dict[str, Any]:
    """By title: what came of each state of the disk. ``other``: files of other content than without any trouble."""
    disk, found = folder / "disk", {}
    with mounted(disk):
        for title, words in commands(folder).items():
            rooms = (0, ROOMY[title]) if title in ROOMY else (0,)
            found[title] = {f"full, {room}": tried(words, disk, full(disk, room)) for room in rooms}
            found[title]["read-only"] = tried(words, disk, read_only(disk))
            found[title]["resumed"] = run(words, folder / "told.txt")
        troubled = bits(disk)
    with mounted(disk):
        for words in commands(folder).values():
            run(words, folder / "told.txt")
        smooth = bits(disk)
    other = sorted(name for name in troubled.keys() | smooth.keys() if troubled.get(name) != smooth.get(name))
    return {"stages": found, "files": len(smooth), "other": other}


if __name__ == "__main__":
    os.cpu_count = lambda: 1  # no worker processes, whose start would take most of the time
    told = report(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "report.json").write_text(json.dumps(told))
