"""Trained networks of PyTorch as detectors of :mod:`cim.prediction.predict`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cim.config.build import proposer_options
from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Instances
from cim.engine.checkpoints import load_checkpoint
from cim.inference.detections import Selection
from cim.inference.presence import presence
from cim.inference.scores import Trained, score_proposals, trained_model
from cim.inference.selection import select
from cim.prediction.predict import Detector, Question, photos_alone
from cim.prm.network import ResponseNet, load_response_net
from cim.prm.trained import PeakPrompter
from cim.proposals.stage import Proposer, open_proposer

logger = logging.getLogger(__name__)


def open_checkpoint(path: Path, device: str, weights: str | Path | None = None) -> tuple[tuple[str, ...], Detector]:
    """Classes and detector of a checkpoint; the arguments are those of :func:`cim.load_model`.

    Raises:
        CimError: no such file, not a checkpoint, or of a kind that does not detect.
    """
    if path.is_dir():
        path = next((p for p in (path / "final.pth", path / "train" / "final.pth") if p.is_file()), path / "final.pth")
    state = load_checkpoint(path)
    kind = state["meta"].get("kind")
    if kind not in _DETECTORS:
        raise CimError("not a network that finds instances", path=path, expected=" or ".join(_DETECTORS), found=kind)
    if weights is not None:
        state["meta"]["config"]["proposals"]["weights"] = str(weights)
    classes = tuple(str(name) for name in state["meta"].get("classes", ()))
    return classes, _DETECTORS[kind](state, path, resolve_device(device))


def make_proposer(config: Config, device: torch.device) -> Proposer:
    """Proposals with the settings that the network was trained with.

    Raises:
        CimError: weights or a checkpoint that cannot be had; peaks prompt them, and their network is not there.
    """
    prompted, path = config.proposals.prompted, RunPaths(config).prm_checkpoint
    if prompted and not path.is_file():
        fix = "put it back, or pass regions= to predict"
        raise CimError("no response network, whose peaks say where to look for proposals", path=path, fix=fix)
    propose = open_proposer(proposer_options(config.proposals), str(device))
    if not prompted:
        return propose
    prompter = PeakPrompter(path, config.prm.image_size, config.proposals.peak_fraction, str(device))
    return lambda photo: propose(photo, prompter(photo, ()))


@dataclass(frozen=True, eq=False)
class _CimDetector:
    trained: Trained
    device: torch.device
    net: ResponseNet | None  # says which classes a photo shows (``infer.presence``)

    @cached_property
    def propose(self) -> Proposer:
        return make_proposer(self.trained.config, self.device)

    def __call__(self, questions: Sequence[Question], threshold: float) -> list[Instances]:
        """Proposals, which take longest, are found on all cores; the network takes one photo after the other."""
        if any(question.regions is None for question in questions):
            _ = self.propose  # opened once, not by several threads
        with ThreadPoolExecutor(min(len(questions), os.cpu_count() or 1)) as pool:
            regions = pool.map(self._regions, questions)
            return [self._found(question, own, threshold) for question, own in zip(questions, regions, strict=True)]

    def _regions(self, question: Question) -> RegionSet:
        return self.propose(question.photo) if question.regions is None else question.regions

    def _found(self, question: Question, regions: RegionSet, threshold: float) -> Instances:
        config = self.trained.config
        scores = score_proposals(
            self.trained.model,
            question.photo,
            regions,
            num_classes=len(self.trained.classes),
            sides=config.infer.sides,
            flip=config.infer.flip,
            device=self.device,
            max_proposals=config.infer.max_proposals,
        )
        if self.net is not None and question.tags is None:
            scores = scores * presence(self.net, question.photo) ** np.float32(config.infer.presence)
        settings = vars(Selection.of(config.infer)) | {"score_threshold": threshold}
        return select(regions, scores, "photo", **settings, tags=question.tags)


def _cim(state: dict[str, Any], path: Path, device: torch.device) -> Detector:
    trained = trained_model(state, path, device)
    return _CimDetector(trained, device, _response_net(trained, path, device))


def _response_net(trained: Trained, path: Path, device: torch.device) -> ResponseNet | None:
    """The response network that a CIM learnt from: where its config says, or in the run folder of the checkpoint."""
    if not trained.config.infer.presence:
        return None
    places = (RunPaths(trained.config).prm_checkpoint, path.resolve().parent.parent / "prm" / "final.pth")
    for place in places:
        if place.is_file():
            return load_response_net(place, len(trained.classes), image_size=trained.config.prm.image_size).to(device)
    logger.warning("no response network at %s: scores are those of regions alone (infer.presence)", places[0])
    return None


def _mask_rcnn(state: dict[str, Any], path: Path, device: torch.device) -> Detector:
    from cim.mask_rcnn.detect import load_detector  # needed for these checkpoints only

    return photos_alone(load_detector(state, path, device).detect)


_DETECTORS: dict[str, Callable[[dict[str, Any], Path, torch.device], Detector]] = {"cim": _cim, "mask_rcnn": _mask_rcnn}
