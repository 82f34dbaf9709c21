"""Differences between methods with their intervals, from the result files that the rows of metrics.json name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cim.core.errors import CimError
from cim.evaluation.bootstrap import Difference, Judged, differences, judge_boxes, judge_masks
from cim.evaluation.box_files import Given, boxes_of_masks, guesses_of, has_masks
from cim.evaluation.boxes import BoxRules
from cim.evaluation.coco_results import load_ground_truth, read_results


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of a metrics.json: the folder of the file, the row, and how it was made."""

    place: Path
    row: dict[str, Any]
    settings: dict[str, Any]

    def files(self, annotations: Path | None) -> tuple[Path, Path]:
        """Its result file and its annotations (``annotations``: these instead).

        Raises:
            CimError: the row does not say, or they are not there any more.
        """
        files = self.settings.get("files") or {}
        results = files.get("results") or self.settings.get("results")
        truth = annotations or files.get("annotations")
        if results is None or truth is None:
            lacking = "annotations" if results else "result file"
            fix = "pass --annotations, or evaluate again" if results else "cim evaluate again"
            raise CimError(f"the row does not say its {lacking}", path=self.place / "metrics.json", fix=fix)
        found = self.place / results if files.get("results") else Path(results)
        for path in (found, Path(truth)):
            if not path.is_file():
                raise CimError("the file is not there any more", path=path, fix="cim evaluate again")
        return found, Path(truth)

    def judged(self, annotations: Path | None) -> Judged:
        """Its detections matched with the annotations.

        Raises:
            CimError: files that are missing, damaged, or not those that the row was made from.
        """
        results, truth_path = self.files(annotations)
        files = self.settings.get("files") or {}
        classes = {int(k): str(v) for k, v in files["classes"].items()} if files.get("classes") else None
        given = Given.read(truth_path, results, classes)
        rules, threshold = BoxRules(**self.settings.get("boxes", {})), self.settings.get("score_threshold")
        if not has_masks(given.truth):
            objects, guesses, _ = given.boxes()
            return self._checked(judge_boxes(objects, guesses, rules, True, threshold), results)
        truth = load_ground_truth(truth_path)
        listed, _ = given.results_for_masks(bool(files.get("listed_only")))
        found = read_results(listed, truth)
        judged = judge_masks(truth, found, "coco" if "AP" in self.row else "voc", threshold)
        objects = boxes_of_masks(truth)
        boxes = judge_boxes(objects, guesses_of(found, objects, truth.categories, results), rules, False)
        return self._checked(Judged(judged.image_ids, judged.metrics | boxes.metrics), results)

    def _checked(self, judged: Judged, results: Path) -> Judged:
        """The same, if it gives the numbers of the row."""
        for name, value in judged.itself().items():
            told = self.row.get(name)
            if isinstance(told, int | float) and name in _OF_THE_ROW and abs(told - value) > 0.05:
                message = f"{name} of the result file is not that of the row: it was written anew"
                raise CimError(message, path=results, expected=f"{told:.1f}", found=f"{value:.1f}", fix="cim evaluate")
        return judged


_OF_THE_ROW = ("mAP@0.25", "mAP@0.50", "mAP@0.70", "mAP@0.75", "AP", "AP50", "AP75", "box_mAP", "box_CorLoc")


@dataclass(frozen=True, eq=False)
class Method:
    """A name, and its rows: one per seed."""

    name: str
    entries: list[Entry]


def tables(groups: list[list[Method]], annotations: Path | None, resamples: int, seed: int) -> Iterator[str]:
    """For every group a Markdown table per method against the first one, or why there is none."""
    known: dict[int, list[Judged]] = {}
    for first, *others in groups:
        for other in others:
            try:
                pair = []
                for method in (first, other):
                    if id(method) not in known:
                        known[id(method)] = [entry.judged(annotations) for entry in method.entries]
                    pair.append(known[id(method)])
                if any(run.image_ids != pair[0][0].image_ids for runs in pair for run in runs):
                    raise CimError("judged on different photos", fix="evaluate both on the same annotations")
            except CimError as error:
                yield f"no intervals for {other.name} against {first.name}: {error}"
                continue
            yield _table(
                first, other, differences(pair[0], pair[1], resamples, seed), len(pair[0][0].image_ids), resamples
            )


def _table(first: Method, other: Method, found: dict[str, Difference], photos: int, resamples: int) -> str:
    seeds = " and ".join(str(len(method.entries)) for method in (first, other))
    drawn = f"{photos} photos" + ("" if seeds == "1 and 1" else f", {seeds} seeds")
    lines = [
        f"{other.name} less {first.name}: points, and the 95 % interval of {resamples} paired draws ({drawn}); "
        "bold where it leaves out 0",
        "",
        f"| | {first.name} | {other.name} | difference | 95 % |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        change = f"{one.second - one.first:+.1f}"
        change = f"**{change}**" if one.certain else change
        lines.append(f"| {name} | {one.first:.1f} | {one.second:.1f} | {change} | {one.low:+.1f} to {one.high:+.1f} |")
    return "\n".join(lines)
