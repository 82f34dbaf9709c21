"""What Segment Anything costs on a CPU: looking at a photo once, and answering a thousand prompts or tens of them.

Networks of full size with random weights, since their values do not matter for time; processor time, so that other jobs
on the machine do not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from cim.cli.common import parser, run
from cim.core.errors import CimError
from cim.proposals.sam import SamOptions, _propose
from cim.proposals.sam_network import INSTALL, SamNetwork, load_sam

SIZES = {"Sam": "ViT-B", "Sam2": "Hiera-T"}  # of transformers' default configs


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "OMP_NUM_THREADS=1 python benchmarks/sam.py --prompts 1024 64 16")
    result.add_argument("--families", nargs="+", choices=SIZES, default=list(SIZES))
    result.add_argument("--prompts", nargs="+", type=int, default=[1024, 64, 16])
    result.add_argument("--size", nargs=2, type=int, default=[375, 500], metavar=("H", "W"))
    return result


def random_network(family: str) -> tuple[SamNetwork, str]:
    """Saved and loaded as any checkpoint is; and which size it has.

    Raises:
        CimError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise CimError("Segment Anything needs the package transformers", fix=INSTALL) from None
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")())
    images: Any = getattr(transformers, f"{family}ImageProcessor")()
    weights = sum(weight.numel() for weight in model.parameters()) / 1e6
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        images.save_pretrained(folder)
        return load_sam(folder, "cpu"), f"{family}, {SIZES[family]}, {weights:.0f} M weights"


def seconds(work: Callable[..., object], *args: object) -> float:
    """Processor time."""
    begin = time.process_time()
    work(*args)
    return time.process_time() - begin


def main() -> None:
    args = get_parser().parse_args()
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*args.size, 3)).astype(np.uint8)
    print("| network | look at the photo, s | prompts | answer them, s | together, s |\n|---|--:|--:|--:|--:|")
    for family in args.families:
        network, name = random_network(family)
        seconds(network.look, photo)  # the first time costs more
        look = min(seconds(network.look, photo) for _ in range(3))
        for count in args.prompts:
            # every mask is enlarged and looked at, none is kept: how many would be depends on the weights
            options = SamOptions(iou_threshold=-np.inf, stability_threshold=np.inf)
            whole = seconds(_propose, network, photo, rng.random((count, 2)), options)
            print(f"| {name} | {look:.1f} | {count} | {whole - look:.1f} | {whole:.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
