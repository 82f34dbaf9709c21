"""Pictures of the first stages: response map, peaks, peak responses and first labels of every tag, a PNG per photo."""

from __future__ import annotations

import argparse
import logging

from tqdm import tqdm

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.pictures.photo_set import file_stems
from cim.pictures.visualize import save_picture
from cim.prm.evidence import PeakOptions
from cim.prm.first_labels import AssignOptions
from cim.prm.pictures import explain_photo
from cim.prm.trained import open_net
from cim.storage.published import open_regions

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)
    paths, split = RunPaths(config), args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    net = open_net(config, dataset, args.checkpoint)
    proposals = args.proposals or paths.proposals(split)
    source = open_regions(proposals) if args.proposals or proposals.exists() else None
    if source is None:
        logger.info("no proposals at %s: first labels are left out", proposals)
    records = dataset.records[: args.limit]
    if args.photos:
        names = {record.path.name: record for record in dataset}
        unknown = [name for name in args.photos if name not in names]
        if unknown:
            raise CimError(f"no such photo in {dataset.name}", expected="file names", found=", ".join(unknown[:3]))
        records = tuple(names[name] for name in args.photos)
    output = args.output or paths.pictures / "prm"
    options = AssignOptions(config.assign.mean_mask_threshold, config.assign.iou, config.assign.background)
    stems = file_stems({record.image_id: record.path for record in dataset})
    for record in tqdm(records, unit="image"):
        regions = source.load(record.image_id) if source is not None and source.has(record.image_id) else None
        picture = explain_photo(
            net,
            read_photo(record.path),
            record.tags,
            regions if isinstance(regions, RegionSet) else None,
            dataset.classes,
            peaks_of=PeakOptions.of(config.assign),
            options=options,
        )
        save_picture(output / f"{stems[record.image_id]}.png", picture)
    print(f"{len(records)} pictures in {output}")
