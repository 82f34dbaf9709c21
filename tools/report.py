"""One self-contained report.html about a run: numbers, curves, diagnosis, pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cim.album import Album
from cim.build import build_dataset
from cim.cli import parser, run
from cim.config import Config, load_config
from cim.errors import CimError
from cim.report import make_report
from cim.report_numbers import Source


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python tools/report.py runs/resnet50_voc")
    target.add_argument("run", type=Path, help="the run folder (work_dir of its config)")
    target.add_argument("--config", help="yaml file or name (default: RUN/config.yaml or RUN/train/config.yaml)")
    target.add_argument("--split", help="evaluated split (default: data.eval_split)")
    target.add_argument("--results", type=Path, help="COCO result file (default: RUN/detections/SPLIT/results.json)")
    target.add_argument("--annotations", type=Path, help="COCO json with masks, with --images (default: the config's)")
    target.add_argument("--images", type=Path, help="folder of the photos that --annotations names")
    target.add_argument("--output", type=Path, help="default: RUN/report.html")
    target.add_argument("--each", type=int, default=6, help="best, worst and random photos each (6)")
    target.add_argument("--seed", type=int, default=0, help="of the random photos")
    return target


def main(argv: list[str] | None = None) -> int:
    """Writes the page; 2 when a file it needs is damaged (the rest is there all the same)."""
    args = get_parser().parse_args(argv)
    if not args.run.is_dir():
        raise CimError("no such run folder", path=args.run, fix="bash scripts/train_CIM.sh CONFIG")
    if (args.annotations is None) != (args.images is None):
        raise CimError("--annotations and --images go together")
    output = args.output or args.run / "report.html"
    problems = make_report(_source(args), output, each=args.each, seed=args.seed)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 2 if problems else 0


def _source(args: argparse.Namespace) -> Source:
    files = [Path(args.config)] if args.config else [args.run / "config.yaml", args.run / "train" / "config.yaml"]
    named = args.config or next((str(path) for path in files if path.is_file()), None)
    config = load_config(named) if named else None
    split = args.split or (config.data.eval_split if config else "val")
    missing = "pass --annotations FILE --images DIR"
    album: Album | None = None
    if args.annotations is not None:
        album = Album.read(args.annotations, args.images)
    elif config is not None:
        try:
            album = Album.of(build_dataset(config.data, split))
        except CimError as error:  # the rest of the report does not need the photos
            missing = f"{error} ({missing})"
    return Source(
        run=args.run,
        album=album,
        results=args.results or args.run / "detections" / split / "results.json",
        train_album=_train_album(config) if config else None,
        config=_yaml(config) if config else None,
        title=config.name if config else args.run.resolve().name,
        missing=missing,
    )


def _train_album(config: Config) -> Callable[[], Album]:
    return lambda: Album.of(build_dataset(config.data, config.data.train_split))


def _yaml(config: Config) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


if __name__ == "__main__":
    sys.exit(run(main))
