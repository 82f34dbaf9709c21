"""Metrics and diagnosis of detections: those of a config's run, or any COCO result file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from cim.cli.common import command_line
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.locks import hold
from cim.datasets.base import Dataset
from cim.evaluation.box_files import Given, has_masks
from cim.evaluation.boxes import BoxRules, box_row
from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.diagnosis import DETECTION_KINDS, TRUTH_KINDS, diagnose, plot_diagnosis
from cim.evaluation.metrics_file import (
    Metric,
    add_boxes,
    fates_markdown,
    load_rows,
    markdown,
    merge_entries,
    metric_row,
    path_from,
)
from cim.inference.detections import (
    PublishedScores,
    Selection,
    detect,
    select_dataset,
    with_masks,
    write_results,
)
from cim.inference.oracle import oracle_results
from cim.inference.scores import evaluation_dir, find_checkpoint
from cim.storage.published import open_regions
from cim.storage.store import Store

BRANCH_HELP = "scores: CIM; mil: the anti-noise branch alone; both: their geometric mean"
BASELINES = {"cim": "CIM", "mist": "MIST", "oicr": "OICR", "pcl": "PCL"}


def main(args: argparse.Namespace) -> int:
    """Prints the table of all rows so far."""
    if args.config is None and (args.results is None or args.annotations is None):
        raise CimError("nothing to evaluate", expected="CONFIG, or --results with --annotations")
    config = load_config(args.config, args.set) if args.config else None
    split = args.split or (config.data.eval_split if config else "")
    dataset = build_dataset(config.data, split) if config and not (args.results and args.annotations) else None
    truth_path = args.annotations or (dataset.annotations if dataset else None)
    if truth_path is None and args.if_annotated:
        print(f"split {split} has no annotations with masks: no metrics")
        return 0
    if truth_path is None:
        raise CimError(f"split {split} has no annotations with masks", fix="pass --annotations, or upload the results")
    folder = _folder(args, config)
    with hold(folder):
        return _judge(args, config, dataset, split, Path(truth_path), folder)


def _judge(
    args: argparse.Namespace,
    config: Config | None,
    dataset: Dataset | None,
    split: str,
    truth_path: Path,
    folder: Path,
) -> int:
    path, settings = _results(args, config, dataset, split, folder)
    rules = BoxRules(plus_one=args.box_plus_one, strict=args.box_strict)
    files: dict[str, Any] = {"results": path_from(path, folder), "annotations": str(Path(truth_path).resolve())}
    if dataset is not None:
        files["classes"] = _classes_by_id(dataset)
    settings |= {
        "files": files | {"listed_only": args.listed_only},
        "boxes": vars(rules),
        "score_threshold": args.score_threshold,
    }
    given = Given.read(truth_path, path, _classes_by_id(dataset) if dataset else None)
    other = f" ({split})" if config and split != config.data.eval_split else ""  # beside the rows of the usual split
    name = _name(args, config, other)
    if not has_masks(given.truth):
        _judge_boxes(args, given, name, folder, settings, rules)
        return 0
    truth = load_ground_truth(truth_path)
    metric: Metric = args.metric or ("coco" if config and config.data.dataset == "coco" else "voc")
    results, strangers = given.results_for_masks(args.listed_only)
    _tell_strangers(strangers)
    rows = {name: read_results(results, truth)}
    if args.oracle:
        if config is None:
            raise CimError("--oracle needs the proposals", fix="pass CONFIG")
        source = open_regions(RunPaths(config).proposals(split))
        for label, kind in (("oracle", "equal"), ("oracle, ranked by IoU", "iou")):
            rows[f"{label}{other}"] = oracle_results(
                truth, lambda i: with_masks(source.load(i), i) if source.has(i) else None, kind
            )
    localise = args.corloc or bool(config and split == config.data.train_split)
    scored = {
        label: metric_row(
            truth,
            found,
            metric,
            with_corloc=localise,
            backend=args.backend,
            score_threshold=args.score_threshold,
            rules=rules,
        )
        for label, found in rows.items()
    }
    made = {label: settings if label == name else {**settings, "files": None} for label in rows}
    merge_entries(folder / "metrics.json", {"rows": scored, "settings": made})
    diagnoses = {name: diagnose(truth, found, score_threshold=args.score_threshold) for name, found in rows.items()}
    merge_entries(folder / "diagnosis.json", {"rows": diagnoses})
    plot_diagnosis(read_json(folder / "diagnosis.json")["rows"], folder / "diagnosis.png")
    _tell(folder, scored, diagnoses)
    return 0


def _judge_boxes(
    args: argparse.Namespace, given: Given, name: str, folder: Path, settings: dict[str, Any], rules: BoxRules
) -> None:
    """A row of annotations that have boxes alone."""
    if args.oracle:
        print("no oracle rows: they need annotated masks")
    objects, guesses, strangers = given.boxes()
    _tell_strangers(strangers)
    row: dict[str, Any] = {}
    add_boxes(row, box_row(objects, guesses, rules, args.score_threshold))
    merge_entries(folder / "metrics.json", {"rows": {name: row}, "settings": {name: settings}})
    rows = load_rows(folder)
    print(f"{markdown(rows)}\n\n{fates_markdown(rows)}")
    counts = f"{row['box_detections']} detections, {row['box_objects']} objects in {row['box_photos']} photos"
    print(f"\n{name}: {counts}, {row['box_difficult']} difficult objects left out")
    print("judged on boxes: the annotations have no masks")
    print(f"written: {folder / 'metrics.json'}")


def _classes_by_id(dataset: Dataset) -> dict[int, str]:
    return dict(zip(dataset.category_ids, dataset.classes, strict=True))


def _tell_strangers(strangers: list[int | str]) -> None:
    if strangers:
        print(f"left out: results of {len(strangers)} photos that the annotations do not list, e.g. {strangers[0]}")


def _folder(args: argparse.Namespace, config: Config | None) -> Path:
    """Where metrics.json goes."""
    if args.output is not None:
        return args.output
    if args.results is not None:
        return Path(config.work_dir) if config else args.results.parent
    if args.detections is not None:
        return args.detections.parent
    assert config is not None  # asked for when the command began
    return _base(args, config)


def _base(args: argparse.Namespace, config: Config) -> Path:
    """The folder of detections/<split>."""
    return evaluation_dir(RunPaths(config), find_checkpoint(args.checkpoint, RunPaths(config)))


def _results(
    args: argparse.Namespace, config: Config | None, dataset: Dataset | None, split: str, folder: Path
) -> tuple[Path, dict[str, Any]]:
    """Result file, and how the row was made."""
    if args.results is not None:
        return args.results, {"results": str(args.results), "split": split}
    assert config is not None and dataset is not None
    paths = RunPaths(config)
    selection = Selection.of(config.infer)
    given = {"nms": args.nms, "nms_iou": args.nms_iou}
    selection = replace(selection, **{key: value for key, value in given.items() if value is not None})
    settings = {"split": split, "selection": vars(selection), "branch": args.branch}
    source = open_regions(paths.proposals(split))
    if args.detections is not None:
        scores = PublishedScores(args.detections, len(dataset.classes))
        path = folder / f"{args.detections.stem}_results.json"
        write_results(path, select_dataset(dataset, source, scores, selection, workers=args.workers), len(dataset))
        return path, settings | {"detections": str(args.detections)}
    of = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    fix = command_line("score", args, "--split", split, *of)
    store = Store.open(_base(args, config) / "detections" / split, "detections", fix=fix)
    plain = args.branch == "scores" and selection == Selection.of(config.infer)
    name = "results" if plain else f"results_{args.branch}_{selection.nms}_{selection.nms_iou:g}"
    known = config.known.evaluation and dataset.known_digest is not None
    settings |= {"known": dataset.known_digest} if known else {}
    path = store.root / f"{name}.json"
    presence = config.infer.presence
    detect(
        dataset,
        source,
        store,
        path,
        selection,
        branch=args.branch,
        presence=presence,
        known=known,
        workers=args.workers,
    )
    return path, settings | {"scores": store.provenance}


def _name(args: argparse.Namespace, config: Config | None, other: str) -> str:
    if args.name:
        return args.name
    if args.results is not None:
        return args.results.stem
    name = BASELINES[config.mining.method] if config else "CIM"
    name = {"scores": name, "mil": "WSDDN", "both": f"{name} x WSDDN"}[args.branch]
    return (name if args.nms is None else f"{name}, {args.nms} NMS") + other


def _tell(folder: Path, scored: dict[str, dict[str, Any]], diagnoses: dict[str, dict[str, Any]]) -> None:
    rows = load_rows(folder)
    print(f"{markdown(rows)}\n\n{fates_markdown(rows)}")
    empty = next(iter(scored.values()))["classes_without_ground_truth"]
    if empty:
        print(f"\nclasses without ground truth: {', '.join(empty)}")
        print("they count as 0 in mAP (the published mean) and are left out of mAP_present:")
        for name, row in scored.items():
            print(name, *(f"{k} {v:.1f}" for k, v in row.items() if k.startswith("mAP_present")))
    for name, summary in diagnoses.items():
        for part, kinds in (("detections", DETECTION_KINDS), ("ground_truth", TRUTH_KINDS)):
            shares = ", ".join(f"{kind} {summary[part]['shares'][kind]:.0f} %" for kind in kinds)
            print(f"{name}, {part.replace('_', ' ')} ({summary[part]['count']}): {shares}")
    print(f"written: {folder / 'metrics.json'}, {folder / 'diagnosis.json'}, {folder / 'diagnosis.png'}")
