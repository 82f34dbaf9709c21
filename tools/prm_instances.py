"""Instance masks from peak responses alone (PRM), as a COCO result file beside CIM's."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from cim.build import build_dataset
from cim.cli import add_config_args, parser, run
from cim.coco_results import to_coco
from cim.config import load_config
from cim.errors import CimError
from cim.files import write_json
from cim.label_tool import open_net
from cim.layout import Layout
from cim.published import having_proposals, open_regions
from cim.regions import RegionSet
from cim.retrieval import Retrieval, instances_of_photo

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    result = parser(
        f"{__doc__} Classes are those whose image score is above 0, or with --use-tags the photo's tags.",
        "python tools/prm_instances.py resnet50_voc --use-tags --output runs/prm_instances.json",
    )
    add_config_args(result)
    result.add_argument("--split", help="default: data.eval_split")
    result.add_argument("--checkpoint", type=Path, help="response network (default: the config's)")
    result.add_argument("--proposals", type=Path, help="region store (default: where the config expects it)")
    result.add_argument("--use-tags", action="store_true", help="look for the tagged classes only")
    result.add_argument("--limit", type=int, help="the first photos only")
    result.add_argument("--output", type=Path, help="default: <work_dir>/prm_instances/<split>/results.json")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    split, layout = args.split or config.data.eval_split, Layout(config)
    dataset = build_dataset(config.data, split)
    net = open_net(config, dataset, args.checkpoint)
    source = open_regions(args.proposals or layout.proposals(split))
    dataset = having_proposals(dataset, source)
    results: list[dict] = []
    failed = 0
    for record in tqdm(dataset.records[: args.limit], unit="image"):
        try:
            regions = source.load(record.image_id)
            if not isinstance(regions, RegionSet):
                raise CimError("published grids have no masks", fix="import the .mat files")
            classes = record.tags if args.use_tags else None
            found = instances_of_photo(net, record, regions, config.assign.peak_threshold, classes, Retrieval())
        except CimError as error:
            logger.error("failed: %s: %s", record.path.name, error)
            failed += 1
            continue
        results += to_coco(found, dataset)
    output = args.output or layout.work_dir / "prm_instances" / split / "results.json"
    write_json(output, results)
    print(f"{len(results)} instances in {output}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(run(main))
