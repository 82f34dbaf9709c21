"""From a trained network to scores of all proposals per image (METHOD section 8); ``cim.inference.detections`` selects.

Scores are kept in a store (kind "detections", one file per image: ``scores`` and ``mil``, float32 [N, C], and with
``infer.presence`` the ``presence`` of every class, float32 [C]), so that an
interrupted run continues, several processes share the work, and other selections or the anti-noise branch alone
(WSDDN) need no second run of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cim.config.build import build_model
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, InferConfig
from cim.core.errors import CimError, StorageError
from cim.core.files import fingerprint
from cim.core.parallel import StageReport
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.core.types import RoiScores, Sample
from cim.datasets.base import Dataset, Record
from cim.datasets.known import NOTHING
from cim.engine.checkpoints import load_checkpoint
from cim.engine.fit import distributed
from cim.inference.detections import Branch, with_masks
from cim.inference.presence import presence
from cim.models.backbones import RANDOM
from cim.prm.network import ResponseNet
from cim.storage.photos import PhotoFile, PhotoTable, drop_replaced
from cim.storage.published import RegionSource, lineage, open_regions
from cim.storage.store import Store
from cim.training.samples import make_sample

_AHEAD = 2  # images prepared while the network works


@dataclass(frozen=True)
class Trained:
    """A CIM network ready for inference, and what its checkpoint says about it."""

    model: nn.Module
    classes: tuple[str, ...]
    config: Config


def trained_model(state: dict[str, Any], path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """The network of a checkpoint, in eval mode; nothing is downloaded.

    Args:
        state: what ``load_checkpoint`` returned.
        path: for messages.

    Raises:
        CimError: not a CIM checkpoint, or weights that do not fit its own settings.
    """
    meta = state["meta"]
    if meta.get("kind") != "cim":
        raise CimError("not a CIM network", path=path, expected="kind cim", found=f"kind {meta.get('kind')}")
    try:
        config = Config(**meta["config"])
        classes = tuple(str(name) for name in meta["classes"])
    except (KeyError, TypeError, ValueError) as error:
        found = str(error).replace("\n", " ")
        raise CimError("checkpoint without usable settings", path=path, found=found) from None
    own = config.model_copy(update={"model": config.model.model_copy(update={"weights": RANDOM})})
    model = build_model(own, len(classes))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CimError("weights do not fit the network", path=path, found=str(error).split("\n")[1].strip()) from None
    return Trained(model.to(device).eval(), classes, config)


def find_checkpoint(given: str | Path | None, paths: RunPaths) -> Path:
    """The checkpoint meant by a file, a run folder, or nothing (the config's own run).

    Raises:
        CimError: there is none.
    """
    path = paths.checkpoint if given is None else Path(given)
    candidates = [path / "final.pth", path / "train" / "final.pth"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CimError("no trained network here", path=path, fix="cim train CONFIG, or pass --checkpoint")


def evaluation_dir(paths: RunPaths, checkpoint: Path) -> Path:
    """Where detections and metrics of a checkpoint go: the work folder for the config's own final.pth, else a
    folder beside the checkpoint."""
    if checkpoint.resolve() == paths.checkpoint.resolve():
        return paths.work_dir
    return checkpoint.with_name(f"{checkpoint.stem}_evaluation")


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """:func:`trained_model` of a file.

    Raises:
        CimError: missing, damaged or foreign checkpoint.
    """
    return trained_model(load_checkpoint(path), path, device)


# ---------------------------------------------------------------------- one image


def score_proposals(
    model: nn.Module,
    photo: np.ndarray,
    regions: RegionSet,
    *,
    num_classes: int,
    sides: Sequence[int],
    flip: bool,
    device: torch.device | str = "cpu",
    max_proposals: int | None = None,
) -> np.ndarray:
    """Class scores of all proposals, float32 [N, C] without background: mean over branches and passes.

    Args:
        model: ``CIMNet``, in eval mode and on ``device``.
        photo: uint8 [H, W, 3], RGB.
        regions: N proposals of the photo.
        num_classes: C.
        sides: long sides in pixels, one pass each.
        flip: pass the mirrored photo too.
        max_proposals: score only so many, those their maker ranks highest; the others get 0.
    """
    record = Record(image_id="photo", path=Path("photo"), size=tuple(photo.shape[:2]))
    passes = prepare_passes(record, regions, num_classes, sides, max_proposals, photo)
    return score_passes(model, passes, len(regions), num_classes, flip=flip, device=device)["scores"]


def prepare_passes(
    record: Record,
    regions: RegionSet,
    num_classes: int,
    sides: Sequence[int],
    max_proposals: int | None = None,
    photo: np.ndarray | None = None,
) -> list[Sample]:
    """One sample per long side, on the CPU; the photo is read once. No samples without proposals."""
    if not len(regions):
        return []
    photo = read_photo(record.path) if photo is None else photo
    record = replace(record, tags=(), known=NOTHING)  # inference knows nothing of what is in the picture
    return [make_sample(record, regions, None, side, False, num_classes, max_proposals, photo=photo) for side in sides]


@torch.inference_mode()
def score_passes(
    model: nn.Module,
    passes: Sequence[Sample],
    count: int,
    num_classes: int,
    *,
    flip: bool,
    device: torch.device | str = "cpu",
) -> dict[Branch, np.ndarray]:
    """Mean scores of prepared passes and their mirror images.

    Args:
        passes: samples of one image, all with the same rows.
        count: N, proposals of the image.

    Returns:
        ``scores`` (mean over refinement branches of cls_k * iou_k) and ``mil`` (cls * det, the anti-noise branch),
        float32 [N, C]; rows that the samples lack are 0.
    """
    if not passes:
        return {"scores": np.zeros((count, num_classes), np.float32), "mil": np.zeros((count, num_classes), np.float32)}
    refined, mil = torch.zeros((), device=device), torch.zeros((), device=device)
    for sample in passes:
        sample = sample.to(device)
        for view in (sample, mirrored(sample)) if flip else (sample,):
            output: RoiScores = model(view)
            refined = refined + (output.refine_cls.float() * output.refine_iou.float()).mean(0)
            mil = mil + output.cls.float() * output.det.float()
    views = len(passes) * (2 if flip else 1)
    rows = passes[0].proposal.numpy()
    return {"scores": _spread(refined / views, rows, count), "mil": _spread(mil / views, rows, count)}


def mirrored(sample: Sample) -> Sample:
    """The sample left to right, without touching the photo again."""
    boxes = sample.boxes.clone()
    boxes[:, [0, 2]] = sample.image.shape[-1] - sample.boxes[:, [2, 0]]
    flipped = {name: getattr(sample, name).flip(-1) for name in ("image", "grids", "atoms")}
    return replace(sample, boxes=boxes, features=None, pooled=None, **flipped)  # the trunk sees the mirror image afresh


def _spread(values: torch.Tensor, rows: np.ndarray, count: int) -> np.ndarray:
    """[n, C+1] of some rows -> float32 [N, C] of all, background dropped."""
    kept = values[:, 1:].cpu().numpy()
    spread = np.zeros((count, kept.shape[1]), np.float32)
    spread[rows] = kept
    return spread


# ---------------------------------------------------------------------- a data set


def detection_store(
    root: Path,
    checkpoint: Path,
    infer: InferConfig,
    proposals: dict[str, Any],
    overwrite: bool = False,
    packed: bool = False,
    response: Path | None = None,
) -> Store:
    """The store of a checkpoint's scores; refuses to mix those of other weights, passes or proposals.

    Args:
        proposals: provenance of the proposals that are scored.
        packed: the form of a new store.
        response: checkpoint of the response network that adds ``presence``.

    Raises:
        CimError: the folder holds scores made otherwise.
    """
    provenance = _made_from(checkpoint, infer, proposals, response)
    if overwrite:
        if distributed.is_main():
            Store.create(root, "detections", provenance, overwrite=True, packed=packed)
        distributed.wait()  # nobody writes before the old ones are gone
    return Store.create(root, "detections", provenance, packed=packed)


def check_scores(config: Config, split: str) -> None:
    """Whether scores that are there would be kept; nothing is written.

    Raises:
        CimError: they are of other weights, passes or proposals.
    """
    paths = RunPaths(config)
    if paths.checkpoint.is_file() and paths.proposals(split).exists():
        regions = open_regions(paths.proposals(split))
        made_from = _made_from(paths.checkpoint, config.infer, regions.provenance, presence_checkpoint(config, split))
        Store.agreeing(paths.detections(split), "detections", made_from)


def asks_presence(config: Config, split: str) -> bool:
    """Whether the response network is to say which classes the photos of a split show."""
    return bool(config.infer.presence) and split != config.data.train_split


def presence_checkpoint(config: Config, split: str) -> Path | None:
    """The response network that says which classes the photos of a split show; None where tags do, nobody asks, or
    there is none."""
    path = RunPaths(config).prm_checkpoint
    return path if asks_presence(config, split) and path.is_file() else None


def _made_from(
    checkpoint: Path, infer: InferConfig, proposals: dict[str, Any], response: Path | None
) -> dict[str, Any]:
    return {
        "checkpoint": fingerprint(checkpoint),
        "sides": list(infer.sides),
        "flip": infer.flip,
        "max_proposals": infer.max_proposals,
        "proposals": lineage(proposals),
        **({"presence": fingerprint(response)} if response is not None else {}),
    }


def score_dataset(
    model: nn.Module,
    dataset: Dataset,
    source: RegionSource,
    store: Store,
    infer: InferConfig,
    device: torch.device | str = "cpu",
    net: ResponseNet | None = None,
) -> StageReport:
    """Score every image that the store lacks; under torchrun each process takes its share.

    The next images are read and resized while the network works. An unreadable photo or missing proposals harm no
    other image: they are listed in the report. ``net`` says which classes are in the photo at all (``presence``).
    """
    share = dataset.records[distributed.rank() :: distributed.world()]
    drop_replaced(store, share)
    there = store.seen()
    missing = [record for record in share if not there(record.image_id)]
    classes = len(dataset.classes)

    def prepare(record: Record) -> tuple[PhotoFile | None, int, np.ndarray, list[Sample]]:
        file, regions = PhotoFile.of(record.path), with_masks(source.load(record.image_id), record.image_id)
        photo = read_photo(record.path)
        passes = prepare_passes(record, regions, classes, infer.sides, infer.max_proposals, photo)
        return file, len(regions), photo, passes

    report = StageReport()
    progress = tqdm(total=len(missing), desc="scores", unit="image", disable=not distributed.is_main())
    with progress:
        for record, future in _ahead(prepare, missing):
            try:
                file, count, photo, passes = future.result()
                arrays = score_passes(model, passes, count, classes, flip=infer.flip, device=device)
                told = {} if net is None else {"presence": presence(net, photo)}
                store.save(record.image_id, **arrays, **told)
                PhotoTable(store.root).note(record.image_id, file)
                report.done += 1
            except StorageError:  # no other image would fare better
                raise
            except CimError as error:
                report.failed[str(record.image_id)] = str(error)
            progress.update()
    distributed.wait()
    return report


def _ahead(function: Callable[[Record], Any], records: Sequence[Record]) -> Iterator[tuple[Record, Future[Any]]]:
    """Every record with the future of ``function(record)``, a few of them under way in threads."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: list[tuple[Record, Future[Any]]] = []
        for record in records:
            waiting.append((record, pool.submit(function, record)))
            if len(waiting) > _AHEAD:
                yield waiting.pop(0)
        yield from waiting
