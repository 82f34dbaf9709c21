"""What a run tells while it trains: progress bar, log.jsonl, TensorBoard, environment.json, config.yaml."""

from __future__ import annotations

import json
import logging
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from cim.core.errors import CimError, cannot_write
from cim.core.files import append, write_json, write_text
from cim.engine import distributed
from cim.engine.event_file import EventFile
from cim.engine.update_stats import UpdateStats

logger = logging.getLogger(__name__)

_SHOWN = (
    "loss",
    "held_out",
    "lr",
    "grad_norm",
    "images_per_second",
    "data_wait",
    "memory_mb",
)  # by TensorBoard, as run/...
_REPOSITORY = Path(__file__).resolve().parent.parent


class RunLogger:
    """Averages over windows of updates and writes them; a failing disk silences it, never the training.

    Args:
        run_dir: holds log.jsonl and tensorboard/; created.
        start: updates already done; what an interrupted run logged after that is cut off.
        updates: updates in all.
        every: updates per logged line.
        device: whose memory is reported.
        title: text before the progress bar.
    """

    def __init__(self, run_dir: Path, start: int, updates: int, every: int, device: torch.device, title: str) -> None:
        self.every, self.device = max(every, 1), device
        self.path = run_dir / "log.jsonl"
        self._broken = False
        _cut_log(self.path, start)
        self._events = EventFile(run_dir / "tensorboard", start + 1)
        self._bar = tqdm(
            total=updates,
            initial=start,
            desc=title,
            unit="update",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )
        self._clear()

    def _clear(self) -> None:
        self._losses: dict[str, list[Tensor]] = defaultdict(list)
        self._diagnostics: dict[str, list[Any]] = defaultdict(list)
        self._images, self._skipped, self._wait, self._since = 0, 0, 0.0, time.perf_counter()

    def add(self, losses: dict[str, Tensor], stats: UpdateStats) -> None:
        """One update: mean losses per image, and the rest (of this process)."""
        for name, value in losses.items():
            self._losses[name].append(value)
        for entry in stats.diagnostics:
            for name, value in entry.items():
                if isinstance(value, (bool, int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
                    self._diagnostics[name].append(value)  # read in flush, so that nothing waits for the device
        self._images += stats.used * distributed.world()
        self._skipped += stats.skipped
        self._wait += stats.wait
        self._bar.update(1)

    def flush(self, update: int, **values: float) -> None:
        """Write the window that ends after ``update`` updates; ``values`` (learning rate, ...) as they are."""
        seconds = time.perf_counter() - self._since
        losses = {name: float(torch.stack(v).mean()) for name, v in self._losses.items()}
        line = {
            "update": update,
            "loss": sum(losses.values()),
            "losses": losses,
            "diagnostics": {name: sum(map(float, v)) / len(v) for name, v in self._diagnostics.items()},
            **values,
            "skipped": self._skipped,
            "images_per_second": self._images / max(seconds, 1e-9),
            "data_wait": self._wait / max(seconds, 1e-9),  # share of the time
            "memory_mb": memory_mb(self.device),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        shown = {"loss": f"{line['loss']:.3g}", **{k: f"{v:.3g}" for k, v in losses.items()}}
        rates = {"lr": f"{values.get('lr', 0):.2e}", "img/s": f"{line['images_per_second']:.2f}"}
        self._bar.set_postfix({**shown, **rates, "MB": f"{line['memory_mb']:.0f}"}, refresh=False)
        self._write(update, line)
        self._clear()

    def _write(self, update: int, line: dict[str, Any]) -> None:
        groups = ("losses", "diagnostics")
        scalars = {f"{group}/{name}": value for group in groups for name, value in line[group].items()}
        scalars |= {f"run/{name}": line[name] for name in _SHOWN if name in line}
        try:
            append(self.path, f"{json.dumps(line)}\n".encode())
            self._events.add(update, scalars)
        except OSError as error:
            if not self._broken:
                logger.warning("%s; training goes on, and logs again once it can", cannot_write(self.path, error))
            self._broken = True
        else:
            self._broken = False

    def expect(self, updates: int) -> None:
        """So many updates in all from now on."""
        self._bar.total = updates
        self._bar.refresh()

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()


def describe_run(run_dir: Path, meta: dict[str, Any], device: torch.device) -> None:
    """Write environment.json (versions, git state, command) and config.yaml (``meta["config"]``) beside the run.

    Raises:
        CimError: ``run_dir`` cannot be written.
    """
    write_json(run_dir / "environment.json", environment(device), indent=1)
    if "config" in meta:
        write_text(run_dir / "config.yaml", yaml.safe_dump(meta["config"], sort_keys=False))


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, git state and command line of this process."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for name in ("cim", "torch", "torchvision", "timm", "numpy", "opencv-python-headless"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain")),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def memory_mb(device: torch.device) -> float:
    """Peak memory so far in MiB: the card's on CUDA, this process's otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl up to the first damaged one: the last may be cut short by a kill.

    Raises:
        CimError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise CimError("no training log here", path=path)
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def _cut_log(path: Path, start: int) -> None:
    if path.is_file():
        kept = [json.dumps(line) + "\n" for line in read_log(path) if line["update"] <= start]
        write_text(path, "".join(kept))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_REPOSITORY), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
