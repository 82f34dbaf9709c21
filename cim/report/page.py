"""One self-contained page about a run: what came out, how it was reached, and what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cim.core.errors import CimError
from cim.core.files import read_json, write_text
from cim.engine.run_logger import read_log
from cim.labels.export import NAME  # every score; its thresholded copies come first
from cim.labels.worth import rle_of
from cim.pictures.charts import Line, line_chart, smooth
from cim.pictures.gallery import LETTERING, Budget, cards, choose, inline_file, rank_photos
from cim.pictures.photo_set import draw_entries, read_annotated
from cim.pictures.visualize import draw_instances
from cim.report.numbers import Absent, Source, classes, curves, diagnosis, summary
from cim.report.verdicts import verdicts

_STAGES = (("train", "CIM"), ("prm", "Peak response network"), ("mask_rcnn", "Mask R-CNN"))
_MAX_PARTS = 8  # lines in a chart
_PICTURES = 8  # of what is mined over time
_PICTURE_SIDE = 1200
_LOOKS = 12  # photos most worth a look


@dataclass
class _Page:
    sections: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def make_report(source: Source, output: Path, *, each: int = 6, seed: int = 0, budget: int = Budget.left) -> list[str]:
    """Write the page.

    A section whose files are absent is replaced by a note with the command that makes them; one whose files are
    damaged by the message.

    Args:
        each: best, worst and random photos each.
        seed: of the random ones.
        budget: bytes that pictures may take together.

    Returns:
        one message per problem (damaged files, unreadable photos); empty when all is well.

    Raises:
        CimError: the run folder does not exist, or the page cannot be written.
    """
    if not source.run.is_dir():
        raise CimError("no such run folder", path=source.run, fix="cim train CONFIG --prepare")
    page, room = _Page(), Budget(budget)
    builders: dict[str, Callable[[], Any]] = {
        "verdicts": lambda: verdicts(source),
        "summary": lambda: summary(source),
        "gallery": lambda: _gallery(source, room, each, seed, page),
        "diagnosis": lambda: diagnosis(source),
        "curves": lambda: curves(source),
        "classes": lambda: classes(source),
        "mined": lambda: _mined(source, room),
        "worth": lambda: _worth(source, room, page),
        "pseudo": lambda: _pseudo(source, room, each, seed),
        "training": lambda: _training(source),
        "setup": lambda: _setup(source),
    }
    for name, build in builders.items():
        page.sections[name] = None
        try:
            page.sections[name] = build()
        except Absent as absent:
            page.absent[name] = (absent.why, absent.command)
        except CimError as error:
            page.absent[name] = (str(error), "")
            page.problems.append(str(error))
    environment = Environment(
        loader=PackageLoader("cim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        title=source.title, run=source.run.resolve().name, s=page.sections, absent=page.absent
    )
    write_text(output, html)
    return page.problems


# ---------------------------------------------------------------------- training


def _training(source: Source) -> list[dict[str, Any]]:
    logs = [(title, source.run / folder / "log.jsonl") for folder, title in _STAGES]
    stages = [(title, _charts(read_log(path))) for title, path in logs if path.is_file()]
    stages = [(title, charts) for title, charts in stages if charts]
    if not stages:
        raise Absent("no training log yet", "cim train CONFIG --prepare")
    return [{"title": title, "charts": charts} for title, charts in stages]


def _charts(log: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    lines = [line for line in log if isinstance(line, dict) and "update" in line]
    x = np.array([line["update"] for line in lines], float)
    parts = _columns(lines, "losses")
    total = np.array([line.get("loss", sum(line.get("losses", {}).values())) for line in lines], float)
    charts = [("Total loss", _curve_chart(x, {"": total}, "loss", faint=True))]
    largest = sorted(parts, key=lambda name: -float(np.nanmean(parts[name])))[:_MAX_PARTS]
    if len(parts) > 1:
        shown = {name: parts[name] for name in parts if name in largest}
        charts.append(("Parts of the loss", _curve_chart(x, shown, "loss", log=True)))
    for key, title in (("lr", "Learning rate"), ("images_per_second", "Images per second")):
        if any(key in line for line in lines):
            values = np.array([line.get(key, np.nan) for line in lines], float)
            charts.append((title, _curve_chart(x, {"": values}, key.replace("_", " "), raw=True)))
    diagnostics = _columns(lines, "diagnostics")
    if diagnostics:
        names = list(diagnostics)[:_MAX_PARTS]
        charts.append(("Diagnostics", _curve_chart(x, {n: diagnostics[n] for n in names}, "mean per image")))
    return [(title, chart) for title, chart in charts if chart]


def _columns(lines: list[dict[str, Any]], group: str) -> dict[str, np.ndarray]:
    """Values of every key of a group over the lines, NaN where absent."""
    names = dict.fromkeys(name for line in lines for name in line.get(group, {}))
    return {name: np.array([line.get(group, {}).get(name, np.nan) for line in lines], float) for name in names}


def _curve_chart(
    x: np.ndarray,
    series: dict[str, np.ndarray],
    label: str,
    *,
    faint: bool = False,
    raw: bool = False,
    log: bool = False,
) -> Markup:
    """Smoothed lines; ``faint`` keeps the raw ones behind them, ``raw`` draws those alone."""
    lines = []
    for colour, (name, values) in enumerate(series.items()):
        good = np.isfinite(values)
        at, values = x[good], values[good]
        if faint:
            lines.append(Line("", at, values, colour, faint=True))
        lines.append(Line(name, at, values if raw else smooth(values), colour))
    return line_chart(lines, "update", label, log=log)


# ---------------------------------------------------------------------- pictures


def _gallery(source: Source, room: Budget, each: int, seed: int, page: _Page) -> dict[str, Any]:
    found, photo_set = source.found, source.photo_set
    assert photo_set is not None  # found raises otherwise
    made, problems = cards(photo_set, choose(rank_photos(photo_set, found), each, seed), room)
    page.problems += problems
    if not any(made.values()):
        raise Absent("no photo could be shown", "cim check CONFIG")
    return {"groups": made, "problems": problems}


def _mined(source: Source, room: Budget) -> list[tuple[str, str]]:
    files = sorted((source.run / "train" / "pictures").glob("*.png"))
    if not files:
        raise Absent("no pictures of what was mined", "cim train CONFIG --prepare --set train.picture_every=1000")
    steps = np.unique(np.linspace(0, len(files) - 1, min(len(files), _PICTURES)).round().astype(int))
    shown = [(_update_of(files[i]), inline_file(files[i], room, _PICTURE_SIDE)) for i in steps]
    return [(name, uri) for name, uri in shown if uri]


def _update_of(path: Path) -> str:
    digits = path.stem.rpartition("_")[2]
    return f"update {int(digits):,}" if digits.isdigit() else path.stem


def _worth(source: Source, room: Budget, page: _Page) -> dict[str, Any]:
    if source.ranking is None:
        raise Absent("the training photos are unknown", "run the tool with the run's config.yaml")
    ranking = source.ranking()
    cards_made = []
    for look in ranking.looks[:_LOOKS]:
        record, masks = look.record, ranking.found.get(look.record.image_id, ())
        class_ids = [mask.class_id for mask in masks]
        try:
            drawn = draw_instances(
                read_annotated(record.path, record.size),
                [rle_of(mask, record.size) for mask in masks],
                labels=[ranking.dataset.classes[class_id] for class_id in class_ids],
                scores=[mask.score for mask in masks],
                class_ids=class_ids,
                lettering=LETTERING,
            )
        except CimError as error:
            page.problems.append(str(error))
            continue
        cards_made.append((record.path.name, look.reasons, room.inline(drawn)))
    if not cards_made:
        raise Absent("no tagged photo could be shown", "cim check CONFIG")
    return {"count": len(ranking.looks), "cards": cards_made}


def _pseudo(source: Source, room: Budget, each: int, seed: int) -> dict[str, Any]:
    files = sorted((source.run / "pseudo_labels").glob("*.json"), key=lambda path: (path.stem == NAME, path.stem))
    if not files:
        raise Absent("no pseudo labels yet", "cim export CONFIG")
    if source.train_photo_set is None:
        raise Absent("the training photos are unknown", "run the tool with the run's config.yaml")
    photo_set = source.train_photo_set()
    marks = photo_set.results(files[0])
    ids = [image_id for image_id in photo_set.photos if marks.get(image_id)]
    chosen = np.random.default_rng(seed).permutation(len(ids))[:each]
    shown = []
    for index in chosen:
        drawn = draw_entries(photo_set.photo(ids[index]), marks[ids[index]], photo_set.names, LETTERING)
        shown.append((photo_set.photos[ids[index]].name, room.inline(drawn)))
    count = sum(map(len, marks.values()))
    cards_made = [(name, uri) for name, uri in shown if uri]
    return {"file": files[0].name, "count": count, "images": len(ids), "cards": cards_made}


# ---------------------------------------------------------------------- setup


def _setup(source: Source) -> dict[str, Any]:
    environments = [source.run / "environment.json", source.run / "train" / "environment.json"]
    environment = next((read_json(path) for path in environments if path.is_file()), None)
    timings_path = source.run / "timings.json"
    timings = read_json(timings_path) if timings_path.is_file() else None
    if not any((environment, timings, source.config)):
        raise Absent("no config, versions or timings here", "cim train CONFIG --prepare")
    return {
        "config": source.config,
        "environment": list(_flat(environment)) if isinstance(environment, dict) else [],
        "timings": [
            (k, float(v), _duration(float(v))) for k, v in (timings or {}).items() if isinstance(v, int | float)
        ],
    }


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, list) else value


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
