"""Pictures of the first stages: response map, peaks, peak responses and first labels of every tag, a PNG per photo."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from cim.album import file_stems
from cim.build import build_dataset
from cim.cli import add_config_args, parser, run
from cim.config import load_config
from cim.errors import CimError
from cim.first_labels import AssignOptions
from cim.label_tool import open_net
from cim.layout import Layout
from cim.photo import read_photo
from cim.prm_pictures import explain_photo
from cim.published import open_regions
from cim.regions import RegionSet
from cim.visualize import save_picture

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "python tools/prm_pictures.py resnet50_voc --photos 2007_000032.jpg 2007_000039.jpg")
    add_config_args(result)
    result.add_argument("--split", help="default: the training split")
    result.add_argument("--photos", nargs="+", metavar="NAME", help="file names in the split (default: the first ones)")
    result.add_argument("--limit", type=int, default=20, help="how many without --photos (default: %(default)s)")
    result.add_argument("--checkpoint", type=Path, help="response network (default: the config's)")
    result.add_argument("--proposals", type=Path, help="region store (default: where the config expects it, if there)")
    result.add_argument("--output", type=Path, help="folder (default: <work_dir>/pictures/prm)")
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    layout, split = Layout(config), args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    net = open_net(config, dataset, args.checkpoint)
    proposals = args.proposals or layout.proposals(split)
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
    output = args.output or layout.pictures / "prm"
    options = AssignOptions(config.assign.mean_mask_threshold, config.assign.iou)
    stems = file_stems({record.image_id: record.path for record in dataset})
    for record in tqdm(records, unit="image"):
        regions = source.load(record.image_id) if source is not None and source.has(record.image_id) else None
        picture = explain_photo(
            net,
            read_photo(record.path),
            record.tags,
            regions if isinstance(regions, RegionSet) else None,
            dataset.classes,
            peak_threshold=config.assign.peak_threshold,
            options=options,
        )
        save_picture(output / f"{stems[record.image_id]}.png", picture)
    print(f"{len(records)} pictures in {output}")


if __name__ == "__main__":
    sys.exit(run(main))
