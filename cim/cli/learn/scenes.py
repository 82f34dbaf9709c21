"""Scenes of known truth from what a trained CIM is sure of in its training photos, for a second training."""

from __future__ import annotations

import argparse
import sys

import numpy as np
from tqdm import tqdm

from cim.config.build import build_dataset, proposer_options
from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.locks import hold
from cim.core.photo import read_photo
from cim.inference.scores import evaluation_dir, find_checkpoint
from cim.prm.trained import peak_prompter, proposal_provenance
from cim.proposals.stage import open_proposer
from cim.storage.published import open_regions
from cim.storage.store import Store
from cim.training.scene_source import Scenes, certain_cutouts, draw_scene


def main(args: argparse.Namespace) -> int:
    """What is there already is kept; every scene depends on the seed and its number alone."""
    config = load_config(args.config, args.set)
    paths = RunPaths(config)
    with hold(paths.owner(paths.scenes)):
        return _make(args, config, paths)


def _make(args: argparse.Namespace, config: Config, paths: RunPaths) -> int:
    split = config.data.train_split
    dataset, regions = build_dataset(config.data, split), open_regions(paths.proposals(split))
    base = evaluation_dir(paths, find_checkpoint(args.checkpoint, paths))
    fix = "cim score CONFIG --split train"
    scores = Store.open(base / "detections" / split, "detections", fix=fix)
    made_from = {
        "classes": list(dataset.classes),
        "seed": args.seed,
        "proposals": proposal_provenance(config, dataset),
    }
    scenes = Scenes.create(paths.scenes, made_from | {"scores": scores.provenance}, args.overwrite, config.data.packed)
    there = scenes.store.seen()
    missing = [number for number in range(args.count) if not there(number)]
    if missing:
        cutouts = certain_cutouts(dataset, regions, scores, read_photo)
        found = ", ".join(f"{dataset.classes[c]} {len(group)}" for c, group in sorted(cutouts.items()))
        print(f"photos with one certain instance: {found or 'none'}", file=sys.stderr)
        device = str(resolve_device(config.device))
        propose, prompter = (
            open_proposer(proposer_options(config.proposals), device),
            peak_prompter(config, dataset, device),
        )
    for number in tqdm(missing, desc="scenes", unit="scene", disable=not missing):
        rng = np.random.default_rng([args.seed, number])
        photo, labels, class_id, tags = draw_scene(dataset, cutouts, read_photo, rng)
        proposed = propose(photo) if prompter is None else propose(photo, prompter(photo, tags))
        scenes.save(number, photo, labels, proposed, class_id, tags)
    print(f"{len(scenes)} scenes: {paths.scenes}")
    return 0
