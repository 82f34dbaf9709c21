"""Whether the finished stages of a job go together with changed settings or inputs, asked before anything is written.

The libraries are imported by the process that looks, not by the one that waits for stages.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from cim.cli.common import run
from cim.cli.worker import run_apart
from cim.config.schema import Config


def ask(configs: Sequence[Config], val: bool, refined: bool, learnt: bool = True, tagged: bool = True) -> int:
    """Exit code: 0, or 2 where a stage would refuse what is there, which it has told in one line.

    Args:
        configs: of the job's flows.
        val: proposals and scores of the validation photos are part of them.
        refined: so is Mask R-CNN.
        learnt: first labels and what was trained on them count; False: they are about to be set aside.
        tagged: so does the response network; False: it is about to be set aside, too.
    """
    words = json.dumps([[config.model_dump(mode="json") for config in configs], val, refined, learnt, tagged])
    code = run_apart([words], _look)
    return code if code >= 0 else 1


def _look(words: Sequence[str]) -> None:
    logging.disable(logging.INFO)  # the stages themselves tell what they find
    configs, *others = json.loads(words[0])
    sys.exit(run(lambda: _all([Config(**config) for config in configs], *others)))


def _all(configs: Sequence[Config], val: bool, refined: bool, learnt: bool, tagged: bool) -> None:
    for config in configs:
        refuse_changes(config, val, refined, learnt, tagged)


def refuse_changes(config: Config, val: bool, refined: bool, learnt: bool = True, tagged: bool = True) -> None:
    """Ask the stages of a folder's flow, in their order, what they would say of what is there; nothing is written.

    Raises:
        CimError: of the first that would refuse; or the photos and tags cannot be used.
    """
    from cim.cli.learn.labels import check_labels
    from cim.config.build import build_dataset
    from cim.config.run_paths import RunPaths
    from cim.inference.scores import check_scores
    from cim.labels.export import chosen_path, label_path
    from cim.mask_rcnn.train import check_mask_rcnn
    from cim.prm.train import check_prm
    from cim.prm.trained import proposal_provenance
    from cim.storage.store import Store
    from cim.training.train import check_cim

    paths, train = RunPaths(config), config.data.train_split
    splits = [train, config.data.eval_split] if val else [train]
    dataset = build_dataset(config.data, train)
    prompted = config.proposals.prompted  # by the peaks of a network, which then comes first
    if tagged and prompted:
        check_prm(config, dataset)
    if not prompted or (tagged and paths.prm_checkpoint.is_file()):
        for split in splits:
            made_from = proposal_provenance(config, dataset, paths.proposals(split))
            Store.agreeing(paths.proposals(split), "regions", made_from)
    if tagged and not prompted:
        check_prm(config, dataset)
    if not learnt:
        return
    check_labels(config, dataset)
    check_cim(config, dataset)
    for split in reversed(splits):
        check_scores(config, split)
    if refined:
        check_mask_rcnn(config, chosen_path(label_path(config, train), config.export))
