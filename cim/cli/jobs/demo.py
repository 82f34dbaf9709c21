"""The whole flow on pictures that the project draws itself: what complete instances are, seen in a few minutes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cim.cli.flow import Stage, done_otherwise, preparation, pseudo_labels, run_stages, stage
from cim.cli.jobs.changes import ask
from cim.cli.worker import warm_up
from cim.config.loading import config_text, load_config, override, save_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.evaluation.metrics_file import load_rows, markdown


def main(args: argparse.Namespace) -> int:
    """Prints the table of methods and where the report is; 2 when finished stages were made with other settings."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in another order would give every machine other numbers
    warm_up()
    run_dir = args.output.resolve()
    with hold(run_dir):
        code = _run(args, run_dir)
    if code:
        return code
    print(f"\n{markdown(load_rows(run_dir / 'metrics.json'))}\n")
    print("oracle: the best proposal of every instance, all with one score; no method can choose better ones")
    print(f"new pictures:  {run_dir / 'predictions' / 'overlays'}")
    print(f"report:        {run_dir / 'report.html'}")
    return 0


def _run(args: argparse.Namespace, run_dir: Path) -> int:
    settings = resolve(args, run_dir)
    config, mist = (Path(one.work_dir) / "config.yaml" for one in settings)
    pictures = stage(
        "pictures",
        "draw",
        data_dir(run_dir, args),
        "--train",
        args.train,
        "--val",
        args.val,
        "--seed",
        args.seed,
    )
    first = preparation(config, True, "pictures", prompted=settings[0].proposals.prompted, together=True)
    stages = [pictures, *first, *cim(config), *baselines(config, mist)]
    stages += pseudo_labels(config, "pictures")
    stages += [stage("Mask R-CNN", "refine", config)] if args.refine else []
    stages += presentation(config, data_dir(run_dir, args) / "new")
    inputs = config_text(settings[0])
    if done_otherwise(stages, run_dir, inputs):
        _refuse_other_pictures(args, run_dir)
        if code := ask(settings, True, args.refine):
            return code
    for one, path in zip(settings, (config, mist), strict=True):
        save_config(one, path)
    run_stages(stages, run_dir, inputs)
    return 0


def _refuse_other_pictures(args: argparse.Namespace, run_dir: Path) -> None:
    wanted, drawn = data_dir(run_dir, args).name, [path.name for path in run_dir.glob("pictures_*_*_*")]
    if wanted not in drawn:
        raise CimError(
            "a demo of other pictures (--train, --val, --seed)",
            path=run_dir,
            expected=wanted,
            found=", ".join(sorted(drawn)),
            fix="choose another --output",
        )


def data_dir(run_dir: Path, args: argparse.Namespace) -> Path:
    """Where this demo's pictures lie; other numbers of them, or another seed, are another data set."""
    return run_dir / f"pictures_{args.train}_{args.val}_{args.seed}"


def resolve(args: argparse.Namespace, run_dir: Path) -> tuple[Config, Config]:
    """The settings of the run, and those of RUN/mist, which shares its first labels and trains with MIST's mining."""
    data = data_dir(run_dir, args)
    settings = {
        "name": run_dir.name,
        "work_dir": run_dir,
        "data.images": data / "images" / "train",
        "data.tags": data / "train_tags.csv",
        "data.train_annotations": data / "train_instances.json",
        "data.val_images": data / "images" / "val",
        "data.val_tags": data / "val_tags.csv",
        "data.val_annotations": data / "val_instances.json",
        "prm.seed": args.seed,
        "train.seed": args.seed,
        "refine.seed": args.seed,
    }
    overrides = [override(key, value) for key, value in settings.items()] + args.set
    config = load_config(args.config, overrides)
    return config, mist_config(config, run_dir / "mist")


def mist_config(config: Config, run_dir: Path) -> Config:
    """The same experiment with MIST's mining: instances are the top-scoring regions themselves, not what holds them."""
    paths = RunPaths(config)
    shared = {  # but no kept features: both trainings, which run at once, would write them
        "proposals": str(paths.proposals("train")),
        "val_proposals": str(paths.proposals("val")),
        "first_labels": str(paths.first_labels),
    }
    changed = {
        "name": "mist",
        "work_dir": str(run_dir),
        "data": config.data.model_copy(update=shared),
        "prm": config.prm.model_copy(update={"checkpoint": str(paths.prm_checkpoint)}),
        "mining": config.mining.model_copy(update={"method": "mist"}),
    }
    return config.model_copy(update=changed)


def cim(config: Path) -> list[Stage]:
    """CIM training and its row; the oracle's besides."""
    return [
        stage("CIM training", "train", config),
        stage("CIM on the validation pictures", "score", config),
        stage("metrics of CIM", "evaluate", config, "--name", "CIM", "--oracle"),
    ]


def baselines(config: Path, mist: Path) -> list[Stage]:
    """What CIM is compared with, in the same table."""
    peaks = config.parent / "prm_instances" / "val" / "results.json"
    found = mist.parent / "detections" / "val" / "results.json"
    return [
        stage("metrics of WSDDN", "evaluate", config, "--branch", "mil", "--name", "WSDDN"),
        stage("PRM on the validation pictures", "retrieve", config, "--output", peaks),
        stage("metrics of PRM", "evaluate", config, "--results", peaks, "--name", "PRM"),
        stage("MIST training", "train", mist, beside="CIM training"),
        stage("MIST on the validation pictures", "score", mist),
        stage("metrics of MIST", "evaluate", config, "--results", found, "--name", "MIST"),
    ]


def presentation(config: Path, new: Path) -> list[Stage]:
    """Pictures that no stage saw, overlays, and the report."""
    run_dir = config.parent
    return [
        stage(
            "predictions on new pictures",
            "predict",
            new,
            "--checkpoint",
            run_dir / "train" / "final.pth",
            "--output",
            run_dir / "predictions",
        ),
        stage("overlays", "visualize", config, "--max-images", 20),
        stage("report", "report", run_dir),
    ]
