"""One self-contained report.html about a run: numbers, curves, diagnosis, pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import WORTH_A_LOOK
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.labels.worth import Ranking, as_json, labels_of, rank
from cim.pictures.photo_set import PhotoSet
from cim.report.numbers import Absent, Source
from cim.report.page import make_report


def main(args: argparse.Namespace) -> int:
    """Writes the page; 2 when a file it needs is damaged (the rest is there all the same)."""
    if not args.run.is_dir():
        raise CimError("no such run folder", path=args.run, fix="cim train CONFIG --prepare")
    if (args.annotations is None) != (args.images is None):
        raise CimError("--annotations and --images go together")
    output = args.output or args.run / "report.html"
    problems = make_report(_source(args, output.with_name(WORTH_A_LOOK)), output, each=args.each, seed=args.seed)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 2 if problems else 0


def _source(args: argparse.Namespace, worth: Path) -> Source:
    files = [Path(args.config)] if args.config else [args.run / "config.yaml", args.run / "train" / "config.yaml"]
    named = args.config or next((str(path) for path in files if path.is_file()), None)
    config = load_config(named) if named else None
    split = args.split or (config.data.eval_split if config else "val")
    missing = "pass --annotations FILE --images DIR"
    photo_set: PhotoSet | None = None
    if args.annotations is not None:
        photo_set = PhotoSet.read(args.annotations, args.images)
    elif config is not None:
        try:
            photo_set = PhotoSet.of(build_dataset(config.data, split))
        except CimError as error:  # the rest of the report does not need the photos
            missing = f"{error} ({missing})"
    return Source(
        run=args.run,
        photo_set=photo_set,
        results=args.results or args.run / "detections" / split / "results.json",
        train_photo_set=_train_photo_set(config) if config else None,
        config=_yaml(config) if config else None,
        title=config.name if config else args.run.resolve().name,
        missing=missing,
        ranking=_ranking(config, worth) if config else None,
    )


def _train_photo_set(config: Config) -> Callable[[], PhotoSet]:
    return lambda: PhotoSet.of(build_dataset(config.data, config.data.train_split))


def _ranking(config: Config, path: Path) -> Callable[[], Ranking]:
    """Ranks the training photos, and writes the file that says so."""

    def ranked() -> Ranking:
        if not labels_of(config).is_file():
            raise Absent("no pseudo labels yet", "cim threshold CONFIG")
        ranking = rank(config, build_dataset(config.data, config.data.train_split))
        write_json(path, as_json(config, ranking), indent=1)
        return ranking

    return ranked


def _yaml(config: Config) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
