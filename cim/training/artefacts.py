"""What has to be there before CIM trains: which stages are missing, and whether what they left fits together."""

from __future__ import annotations

import logging
from collections import Counter

from cim.config.build import build_dataset
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import as_json
from cim.datasets.base import Dataset
from cim.engine.fit import distributed
from cim.prm.trained import proposal_provenance
from cim.storage.photos import fresh, refuse_replaced, tags_of
from cim.storage.published import (
    ClusterSource,
    RegionSource,
    StoredClusters,
    lineage,
    open_clusters,
    open_regions,
    refuse_replaced_photos,
)

logger = logging.getLogger(__name__)

PREPARE = "cim train CONFIG --prepare prepares and trains"


def open_artefacts(config: Config) -> tuple[RegionSource, ClusterSource | None]:
    """Proposals and first labels (None when the loss goes without) of the training split.

    Raises:
        CimError: not there, or labels of other proposals; the command that makes them is named.
    """
    paths = RunPaths(config)
    proposals = paths.proposals(config.data.train_split)
    if not proposals.exists():
        raise CimError("no proposals for training", path=proposals, fix=_proposals_fix(config))
    regions = open_regions(proposals)
    if not config.loss.first_labels:
        return regions, None
    if not paths.first_labels.exists():
        fix = f"{PREPARE}; alone: cim labels CONFIG"
        raise CimError("no first labels for training", path=paths.first_labels, fix=fix)
    clusters = open_clusters(paths.first_labels)
    labelled = clusters.provenance.get("proposals")
    if labelled is not None and lineage(labelled) != lineage(regions.provenance):
        raise CimError(
            "first labels of other proposals",
            path=paths.first_labels,
            expected=lineage(regions.provenance),
            found=lineage(labelled),
            fix="cim labels CONFIG --overwrite",
        )
    return regions, clusters


def missing_stages(config: Config) -> list[str]:
    """Stages to run before training, in order: "proposals", "prm" (trains the response network), "first_labels"; where
    the peaks of that network prompt the proposals, "prm" comes first.

    A stage counts as missing while any tagged image (with proposals, for first labels) lacks its artefact; but
    where proposals of another maker have gaps, COB's for example, these images are left out instead.

    Raises:
        CimError: the data set itself is missing; or proposals are, for a data set whose published ones have to
            be fetched.
    """
    dataset, paths = build_dataset(config.data, config.data.train_split), RunPaths(config)
    path, labels = paths.proposals(config.data.train_split), paths.first_labels
    tagged = [record.image_id for record in dataset if record.tags]
    regions = open_regions(path) if path.exists() else None
    missing = []
    if regions is None and config.data.dataset != "folder":
        raise CimError("no proposals for training", path=path, fix=_proposals_fix(config))
    prompted, trained = config.proposals.prompted, paths.prm_checkpoint.exists()
    ours = False
    if regions is not None and (trained or not prompted):
        ours = regions.provenance == as_json(proposal_provenance(config, dataset, path))
    proposed = (lambda image_id: False) if regions is None else regions.seen()
    besides = tags_of if prompted else None
    if regions is None or (ours and not (all(map(proposed, tagged)) and fresh(path, dataset, besides))):
        if prompted and not trained and config.prm.checkpoint is None:
            missing.append("prm")
        missing.append("proposals")
    if config.loss.first_labels:
        clusters = open_clusters(labels) if labels.exists() else None
        labelled = (lambda image_id: False) if clusters is None else clusters.seen()
        if (
            regions is None
            or clusters is None
            or missing
            or not all(labelled(i) for i in tagged if proposed(i))
            or not fresh(labels, dataset, tags_of)
        ):
            untrained = config.prm.checkpoint is None and config.assign.points is None and not trained
            if untrained and "prm" not in missing:
                missing.append("prm")
            missing.append("first_labels")
    return missing


def check_images(dataset: Dataset, regions: RegionSource, clusters: ClusterSource | None) -> None:
    """Tell how many images will be skipped, and why.

    Raises:
        CimError: all of them; or what is there was made before photos were replaced, or tags edited.
    """
    if distributed.rank():
        return
    refuse_replaced_photos(regions, dataset.records)
    if isinstance(clusters, StoredClusters):
        refuse_replaced(clusters.store, dataset, "cim labels CONFIG", tags_of)
    found: Counter[str] = Counter()
    proposed, labelled = regions.seen(), None if clusters is None else clusters.seen()
    for record in dataset:
        if not record.tags:
            found["without tags (skipped)"] += 1
        elif not proposed(record.image_id):
            found["without proposals (skipped)"] += 1
        else:
            found["usable"] += 1
            if labelled is not None and not labelled(record.image_id):
                found["without first labels"] += 1
    parts = ", ".join(f"{count} {what}" for what, count in found.items())
    logger.info("%s: %d images, %d classes: %s", dataset.name, len(dataset), len(dataset.classes), parts)
    if not found["usable"]:
        raise CimError("no image can be used for training", expected="tags and proposals", found=parts, fix=PREPARE)
    if found["without first labels"] == found["usable"]:
        raise CimError(
            "no image has first labels",
            fix="cim labels CONFIG, or --set loss.first_labels=false",
        )


def _proposals_fix(config: Config) -> str:
    if config.data.dataset == "folder":
        return f"{PREPARE}; alone: cim proposals CONFIG"
    return "cim import for COB's files (docs/DATASET.md), or cim proposals CONFIG for our own"
