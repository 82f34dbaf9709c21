"""The whole flow as a list of commands: each runs in a process of its own, is timed, and is skipped once it is done.

A stage may begin before its turn, beside an earlier one that it needs nothing of; what it prints is kept until then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cim.cli.worker import Start, cim_command, run_apart, start_apart, wait_for
from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.core.leftovers import SUFFIX, prefix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of a flow.

    Attributes:
        title: what happens, for people.
        command: of ``cim``, and its arguments.
        beside: title of an earlier stage that it may run beside; without one it begins when its turn comes.
    """

    title: str
    command: tuple[str, ...]
    beside: str | None = None


def stage(title: str, *command: object, beside: str | None = None) -> Stage:
    """A stage from loose arguments."""
    return Stage(title, tuple(str(part) for part in command), beside)


def preparation(
    config: Path, val: bool, what: str = "photos", prompted: bool = False, together: bool = False
) -> list[Stage]:
    """Proposals, response network, first labels.

    Args:
        val: proposals of the validation photos too.
        prompted: the response network says where proposals are looked for, and so comes first.
        together: unless it comes first, the response network is trained beside the proposals.
    """
    proposals = [stage("proposals", "proposals", config, "--split", "train")]
    if val:
        proposals.append(stage(f"proposals of the validation {what}", "proposals", config, "--split", "val"))
    beside = proposals[0].title if together and not prompted else None
    network = [stage("response network (PRM)", "prm", config, beside=beside)]
    first = [*network, *proposals] if prompted else [*proposals, *network]
    return [*first, stage("first labels", "labels", config)]


def pseudo_labels(config: Path, what: str = "photos") -> list[Stage]:
    """CIM's masks of the training photos as labels for Mask R-CNN."""
    return [
        stage(f"CIM on the training {what}", "score", config, "--split", "train"),
        stage("pseudo labels", "export", config),
        stage("pseudo labels above the threshold", "threshold", config),
    ]


def run_stages(stages: Sequence[Stage], run_dir: Path, settings: str, start: Start = cim_command) -> None:
    """Run the stages that are not done yet, in order; a killed flow continues with the same call.

    ``run_dir``/stages.json remembers what is done, ``timings.json`` for how many seconds each stage was waited for. A
    stage is done for its command and ``settings``; when one has to run, all later ones run too (the tools keep what is
    still valid).

    Args:
        stages: in order.
        run_dir: of this flow.
        settings: text of the configuration; other settings begin anew.
        start: what runs a stage's command.

    Raises:
        CimError: a stage failed; the same command continues.
    """
    done = _read(run_dir / "stages.json")
    timings = _read(run_dir / "timings.json")
    fresh = True
    with ExitStack() as stack:
        begun: dict[str, Callable[[], int]] = {}
        for number, step in enumerate(stages, 1):
            mark = _mark(step, settings)
            heading = f"[{number}/{len(stages)}] {step.title}"
            fresh = fresh and done.get(step.title) == mark
            if fresh:
                logger.info("%s: done", heading)
                continue
            logger.info("\n%s", heading)
            for later in stages[number:]:
                if later.beside == step.title:
                    begun[later.title] = stack.enter_context(_begun(later, run_dir, start))
            began = time.monotonic()
            code = begun.get(step.title, partial(run_apart, step.command, start))()
            seconds = time.monotonic() - began
            if code in (130, -signal.SIGINT, -signal.SIGTERM):
                raise KeyboardInterrupt
            if code:
                killed = f"killed by {signal.Signals(-code).name} (no memory, or a full disk?)" if code < 0 else None
                fix = "see the line above; the same command continues"
                raise CimError(f"stage {number} ({step.title}) failed", found=killed, fix=fix)
            timings[step.title] = round(timings.get(step.title, 0) + seconds, 1)
            write_json(run_dir / "timings.json", timings, indent=1)
            done[step.title] = mark
            write_json(run_dir / "stages.json", done, indent=1)
            logger.info("%s: %.0f s", heading, seconds)


@contextmanager
def _begun(step: Stage, run_dir: Path, start: Start) -> Iterator[Callable[[], int]]:
    """A stage that begins before its turn, and is stopped when the block ends before it. What is given waits for its
    end, shows what it prints, and returns its exit code."""
    handle, name = tempfile.mkstemp(SUFFIX, prefix(run_dir / f"{step.command[0]}.log"), run_dir)
    with ExitStack() as stack:
        stack.callback(Path(name).unlink)
        said = stack.enter_context(open(handle, "rb"))
        process = start_apart(step.command, start, Path(name))
        stack.callback(process.join)
        stack.callback(process.terminate)
        yield partial(wait_for, process, said)


def done_otherwise(stages: Sequence[Stage], run_dir: Path, settings: str) -> bool:
    """Whether any stage is done for another command or other ``settings``."""
    done = _read(run_dir / "stages.json")
    return any(done.get(step.title, mark) != mark for step in stages for mark in [_mark(step, settings)])


def _mark(step: Stage, settings: str) -> str:
    return hashlib.sha256(json.dumps([step.command, settings]).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
