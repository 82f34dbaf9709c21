"""Rounds of one run: when what is known of its photos has changed, what was learnt from less is set aside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cim.config.run_paths import WORTH_A_LOOK
from cim.core.files import read_json, write_json

logger = logging.getLogger(__name__)

NOTE = "known.json"  # in the run folder: of which knowledge its networks and labels are, and how many rounds there were
LEARNT = (
    *("first_labels", "train", "detections", "pseudo_labels", "mask_rcnn"),
    *("metrics.json", "diagnosis.json", "report.html", WORTH_A_LOOK),
)
"""What depends on knowledge beyond tags. Proposals, response network, peaks and features do not, and stay."""
OF_TAGS = ("prm", "peaks", "prm_instances", "features")
"""What else depends on tags, and goes when tags are taken back."""


def is_new_round(run_dir: Path, digest: str | None) -> bool:
    """Whether other things are known than when the run folder was last worked on."""
    return _note(run_dir)["digest"] != digest


def has_other_tags(run_dir: Path, absent: str | None) -> bool:
    """Whether other classes are said to be absent than when the run folder was last worked on."""
    return _note(run_dir)["absent"] != absent


def begin_round(run_dir: Path, digest: str | None, absent: str | None = None, prompted: bool = False) -> None:
    """Make room for what will be learnt from other knowledge; ``round_1``, ... in the run folder hold what was there.

    A call that was killed is finished by the next one.

    Args:
        digest: of what is known now (:attr:`cim.datasets.base.Dataset.known_digest`).
        absent: of the classes said to be absent, which are part of that; where these are others, the networks and
            features that depend on tags make room, too.
        prompted: proposals are among these, since the response network says where they are looked for.

    Raises:
        CimError: a damaged note, or one that cannot be written.
    """
    before = _note(run_dir)
    if before["digest"] == digest:
        return
    of_tags = (*OF_TAGS, "proposals") if prompted else OF_TAGS
    names = LEARNT if before["absent"] == absent else (*LEARNT, *of_tags)
    number, there = int(before["round"]), [run_dir / name for name in names if (run_dir / name).exists()]
    aside = run_dir / f"round_{number + 1}"
    if there or aside.exists():
        aside.mkdir(exist_ok=True)
        for path in there:
            path.rename(aside / path.name)
        logger.info("other things are known now: what was learnt before lies in %s", aside)
        number += 1
    write_json(run_dir / NOTE, {"digest": digest, "round": number, "absent": absent})


def _note(run_dir: Path) -> dict[str, Any]:
    note = run_dir / NOTE
    return {"digest": None, "round": 0, "absent": None} | (read_json(note) if note.is_file() else {})
