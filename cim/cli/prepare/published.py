"""What the commands around the published files share: which images are meant, and how a stage over them runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cim.core.parallel import StageReport, run_stage
from cim.proposals.published_tree import FIRST_SPLIT, Run, Task, Tree, tasks_from_mat, tasks_from_store


def stage_runner(args: argparse.Namespace) -> Run:
    """:func:`run_stage` with the command line's workers or scheduler, failures named by photo."""

    def run(function: Callable[[Task], None], tasks: list[Task], description: str) -> StageReport:
        return run_stage(
            function,
            tasks,
            names=[task.photo for task in tasks],
            description=description,
            workers=args.workers,
            scheduler=args.scheduler,
        )

    return run


def open_tasks(args: argparse.Namespace) -> tuple[Tree, str, list[Task]]:
    """(tree, split, tasks) meant by the options."""
    tree = Tree.find(args.dataset, args.data_root)
    split = args.split or FIRST_SPLIT[args.dataset]
    dataset = tree.open(split)
    if args.regions is not None:
        return tree, split, tasks_from_store(dataset, args.regions)
    return tree, split, tasks_from_mat(dataset, args.mat_dir or tree.mat_dir(split), args.allow_empty)
