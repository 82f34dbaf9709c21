"""What can be known of a run without any mask: whether each stage works, in one line, with the first thing to try.

Nobody should take a collapsed run for a result. Three things are asked: does the response network tell the tags of
photos it has not seen; has every tag first labels; are CIM's best masks sure, and do those who found them agree?
The limits separate runs that work from runs that were broken on purpose (docs/RESULTS.md, "Verdicts").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cim.core.errors import CimError
from cim.core.files import read_json, write_json

Level = Literal["fine", "doubtful", "failed"]
LEVELS: tuple[Level, ...] = ("fine", "doubtful", "failed")

FEW_PHOTOS = 8  # of a class: too few to know
SKILL = (0.5, 0.2)  # of telling tags, 0 chance and 1 perfect: fine from, failed below
LABELLED = (0.98, 0.8)  # share of the tags with first labels
AGREEMENT = (0.45, 0.25)  # mean IoU of the best masks of CIM and of its anti-noise branch
WHOLE = (0.25, 0.5)  # share of the best masks that are nearly the whole photo: fine up to, failed above
HOLDS = (0.6, 0.35)  # share of the best masks that hold their class's highest peak: fine from, failed below
ALIKE = (0.35, 0.6)  # mean IoU of best masks of different photos: fine up to, failed above
WHOLE_PHOTO = 0.8  # of its area


@dataclass(frozen=True)
class Verdict:
    """How a stage did.

    Attributes:
        level: fine, doubtful or failed.
        reason: what was measured.
        advice: the first thing to try; empty when it is fine.
        classes: the same for single classes, where they differ.
    """

    level: Level
    reason: str
    advice: str = ""
    classes: dict[str, Verdict] = field(default_factory=dict)

    def line(self, stage: str) -> str:
        """One line for people."""
        return f"{stage}: {self.level} - {self.reason}" + (f"; try: {self.advice}" if self.advice else "")


def worst(levels: Sequence[Level]) -> Level:
    """The worst of several; fine when there is none."""
    return max(levels, key=LEVELS.index, default="fine")


def chance_precision(positives: int, count: int) -> float:
    """Expected average precision of a random order of ``count`` photos with ``positives`` true ones."""
    if positives <= 0 or count <= 0:
        return float("nan")
    if count == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, count + 1)).sum())
    return ((positives - 1) / (count - 1) * (count - harmonic) + harmonic) / count


def judge_response(precision: np.ndarray, photos: np.ndarray, count: int, classes: Sequence[str]) -> Verdict:
    """Does the response network tell the tags of photos it has not seen?

    Args:
        precision: float [C], average precision on such photos; NaN where it cannot be known.
        photos: int [C], photos with the class.
        count: photos in all.
        classes: C names.
    """
    chance = np.array([chance_precision(int(n), count) for n in photos])
    skill = (precision - chance) / np.maximum(1 - chance, 1e-9)
    single = {
        name: _judge_class(float(s), int(n), count) for name, s, n in zip(classes, skill, photos, strict=True) if n
    }
    known = skill[~np.isnan(skill)]
    if not len(known):
        return Verdict(
            "doubtful",
            "every photo has the same tags: whether they are told cannot be known",
            "add photos without any of the tags (rows with empty labels)",
            single,
        )
    mean = float(known.mean())
    few = [name for name, n in zip(classes, photos, strict=True) if 0 < n < FEW_PHOTOS]
    text = f"tags of photos not seen: {100 * mean:.0f} of 100 from chance to perfect"
    if mean < SKILL[1]:
        advice = "are the tags those of these photos? else a stronger trunk, or more photos"
        return Verdict("failed", text, advice, single)
    bad = [name for name, verdict in single.items() if verdict.level == "failed"]
    if bad:
        return Verdict("doubtful", f"{text}; not told at all: {_few(bad)}", f"more photos of {_few(bad)}", single)
    if few:
        return Verdict(
            "doubtful", f"{text}; too few photos to know: {_few(few)}", f"more photos of {_few(few)}", single
        )
    if mean < SKILL[0]:
        return Verdict("doubtful", text, "more photos, or a stronger trunk", single)
    return Verdict("fine", text, classes=single)


def _judge_class(skill: float, photos: int, count: int) -> Verdict:
    if photos == count:
        return Verdict("doubtful", "on every photo", "photos without it")
    if photos < FEW_PHOTOS:
        return Verdict("doubtful", f"{photos} photos", "more photos")
    level: Level = "fine" if skill >= SKILL[0] else "doubtful" if skill >= SKILL[1] else "failed"
    return Verdict(level, f"told {100 * skill:.0f} of 100", "" if level == "fine" else "more photos")


def judge_first_labels(tags: Mapping[str, int], without: Mapping[str, Sequence[str]]) -> Verdict:
    """Has every tag of every photo first labels?

    Args:
        tags: class name -> photos with it.
        without: class name -> names of the photos where it got none.
    """
    total, missing = sum(tags.values()), sum(map(len, without.values()))
    single = {
        name: Verdict(_up(1 - len(names) / max(tags[name], 1), LABELLED), f"none on {_few(list(names))}")
        for name, names in without.items()
        if names
    }
    share = 1 - missing / max(total, 1)
    level = _up(share, LABELLED)
    text = f"{total - missing} of {total} tags have first labels"
    if missing:
        named = [f"{name} on {photo}" for name, photos in without.items() for photo in photos]
        text += f"; none: {_few(named)}"
    return Verdict(level, text, "" if level == "fine" else "more proposals (proposals.max_proposals)", single)


@dataclass(frozen=True)
class BestMasks:
    """The best mask of every tag of every photo, n of them.

    Attributes:
        class_ids: int [n], 0..C-1.
        agreement: float [n], IoU with the best mask of CIM's anti-noise branch.
        area: float [n], share of the photo.
        small: bool [n, 16, 16], the mask squashed to a square.
        holds: float [n], 1 where the mask covers its class's highest peak, 0 where not, NaN where no peak is known.
    """

    class_ids: np.ndarray
    agreement: np.ndarray
    area: np.ndarray
    small: np.ndarray
    holds: np.ndarray


def judge_masks(found: BestMasks, classes: Sequence[str]) -> Verdict:
    """Are CIM's best masks something, and do its branches agree on them?"""
    if not len(found.class_ids):
        return Verdict("failed", "no masks", "look at the lines above")
    single = {}
    for class_id in np.unique(found.class_ids):
        mine = found.class_ids == class_id
        level, text, advice = _masks(found, mine)
        single[classes[class_id]] = Verdict(level, text, advice)
    level, text, advice = _masks(found, np.ones(len(found.class_ids), bool))
    bad = [name for name, verdict in single.items() if verdict.level == "failed"]
    if level == "fine" and len(bad) * 4 > len(single):
        return Verdict("doubtful", f"{text}; failed: {_few(bad)}", f"more photos of {_few(bad)}", single)
    return Verdict(level, text, advice, single)


def _masks(found: BestMasks, mine: np.ndarray) -> tuple[Level, str, str]:
    agreement = float(found.agreement[mine].mean())
    whole = float((found.area[mine] > WHOLE_PHOTO).mean())
    alike = mean_overlap(found.small[mine])
    known = found.holds[mine][~np.isnan(found.holds[mine])]
    peaks = float(known.mean()) if len(known) else 1.0
    text = f"branches agree to {100 * agreement:.0f} %, {100 * whole:.0f} % whole photos, alike to {100 * alike:.0f} %"
    text += f", {100 * peaks:.0f} % hold their peak" if len(known) else ""
    judged: dict[str, Level] = {
        "--budget long, or more photos": worst([_up(agreement, AGREEMENT), _up(peaks, HOLDS)]),
        "photos where the things are smaller, or without any of the tags": _down(whole, WHOLE),
        "photos that differ more": _down(alike, ALIKE),
    }
    level = worst(list(judged.values()))
    advice = "" if level == "fine" else next(text for text, found_level in judged.items() if found_level == level)
    return level, text, advice


def mean_overlap(small: np.ndarray, most: int = 500) -> float:
    """Mean IoU of all pairs of different masks, bool [n, h, w]; of ``most`` of them, evenly spread; 0 for one."""
    if len(small) < 2:
        return 0.0
    spread = np.linspace(0, len(small) - 1, min(len(small), most)).astype(int)
    flat = small[spread].reshape(len(spread), -1).astype(np.float32)
    inside, areas = flat @ flat.T, flat.sum(1)
    iou = inside / np.maximum(areas[:, None] + areas - inside, 1)
    return float((iou.sum() - np.trace(iou)) / (len(flat) * (len(flat) - 1)))


def _up(value: float, limits: tuple[float, float]) -> Level:
    return "fine" if value >= limits[0] else "doubtful" if value >= limits[1] else "failed"


def _down(value: float, limits: tuple[float, float]) -> Level:
    return "fine" if value <= limits[0] else "doubtful" if value <= limits[1] else "failed"


def _few(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# ---------------------------------------------------------------------- on disk


def save_verdict(path: Path, stage: str, verdict: Verdict, of: str = "") -> None:
    """Into a run's verdicts.json, beside those of other stages; ``of`` tells what was judged from anything else."""
    content = read_json(path) if path.is_file() else {}
    write_json(path, {**content, stage: {**asdict(verdict), **({"of": of} if of else {})}}, indent=1)


def keep_verdict(path: Path, stage: str, of: str, judge: Callable[[], Verdict]) -> Verdict:
    """The verdict on ``of``: the saved one, or else judged now, which may mean to read every artefact, and saved."""
    saved = read_json(path).get(stage, {}) if path.is_file() else {}
    if saved.get("of") == of:
        return _verdict(saved)
    verdict = judge()
    save_verdict(path, stage, verdict, of)
    return verdict


def load_verdicts(path: Path) -> dict[str, Verdict]:
    """By stage, in the order in which they were first judged; none when the file is not there.

    Raises:
        CimError: damaged file.
    """
    content: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    try:
        return {stage: _verdict(entry) for stage, entry in content.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        fix = "delete it; the next stage writes it anew"
        raise CimError("not the verdicts of a run", path=path, found=repr(error), fix=fix) from None


def _verdict(entry: dict[str, Any]) -> Verdict:
    if entry["level"] not in LEVELS:
        raise ValueError(f"level {entry['level']!r}")
    classes = {name: _verdict(one) for name, one in entry.get("classes", {}).items()}
    return Verdict(entry["level"], entry["reason"], entry.get("advice", ""), classes)
