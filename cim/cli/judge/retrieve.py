"""Instance masks from peak responses alone (PRM), as a COCO result file beside CIM's."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from tqdm import tqdm

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.core.regions import RegionSet
from cim.evaluation.coco_results import to_coco
from cim.inference.retrieval import Retrieval, instances_of_photo
from cim.prm.evidence import PeakOptions
from cim.prm.trained import open_net
from cim.storage.published import having_proposals, open_regions

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.set)
    split, paths = args.split or config.data.eval_split, RunPaths(config)
    dataset = build_dataset(config.data, split)
    net = open_net(config, dataset, args.checkpoint)
    source = open_regions(args.proposals or paths.proposals(split))
    dataset = having_proposals(dataset, source)
    results: list[dict[str, Any]] = []
    failed = 0
    for record in tqdm(dataset.records[: args.limit], unit="image"):
        try:
            regions = source.load(record.image_id)
            if not isinstance(regions, RegionSet):
                raise CimError("published grids have no masks", fix="import the .mat files")
            classes = record.tags if args.use_tags else None
            found = instances_of_photo(net, record, regions, PeakOptions.of(config.assign), classes, Retrieval())
        except CimError as error:
            logger.error("failed: %s: %s", record.path.name, error)
            failed += 1
            continue
        results += to_coco(found, dataset)
    output = args.output or paths.work_dir / "prm_instances" / split / "results.json"
    write_json(output, results)
    print(f"{len(results)} instances in {output}")
    return 2 if failed else 0
