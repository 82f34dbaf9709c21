"""The only place where config meets constructors."""

from __future__ import annotations

from pathlib import Path

from cim.config.run_paths import RunPaths
from cim.config.schema import Config, DataConfig, LossConfig, MiningConfig, ProposalConfig
from cim.core.errors import CimError
from cim.datasets.base import Dataset
from cim.datasets.coco import open_coco
from cim.datasets.folder import open_folder, read_vocabulary
from cim.datasets.voc import open_voc
from cim.mining.losses import Criterion, LossWeights
from cim.mining.miners import CIMMiner, Miner, MISTMiner, OICRMiner, PCLMiner
from cim.models.backbones import FROM_PRM, RANDOM, build_backbone
from cim.models.cim_net import CIMNet
from cim.models.mask_fuse import MaskFuse
from cim.models.predictor import Predictor
from cim.models.region_pool import RegionPool
from cim.models.weights import load_trunk, read_weights
from cim.proposals.options import ProposerOptions


def build_dataset(config: DataConfig, split: str) -> Dataset:
    """A split of the configured data set.

    These are ``trainaug``, ``val`` and, of 2007, ``trainval``, ``test`` of voc; ``train2017``, ... of coco; ``train``
    and ``val`` of a folder.

    The classes of a folder data set are always those of its training tags.

    Raises:
        CimError: unknown split; anything missing or damaged.
    """
    if config.dataset == "voc":
        return open_voc(config.root, split)
    if config.dataset == "coco":
        return open_coco(config.root, split)
    return _build_folder(config, split)


def _build_folder(config: DataConfig, split: str) -> Dataset:
    if split not in ("train", "val"):
        fix = "set data.train_split=train data.eval_split=val"
        raise CimError("no such split of a folder data set", expected="train or val", found=split, fix=fix)
    if config.images is None:
        raise CimError("no training photos given", fix="set data.images to their folder")
    if split == "train":
        return open_folder(
            config.images,
            config.tags,
            annotations=config.train_annotations,
            category_source=config.val_annotations or config.train_annotations,
            negatives=config.negatives,
            known=_known_files(config),
            rejected=config.rejected,
            leave_out=config.leave_out,
            name="train",
        )
    if not (config.val_images or config.val_tags or config.val_annotations):
        raise CimError("no validation photos given", fix="set data.val_images to their folder")
    return open_folder(
        config.val_images or config.images,
        config.val_tags,
        annotations=config.val_annotations,
        vocabulary=read_vocabulary(config.images, config.tags, config.val_annotations or config.train_annotations),
        name="val",
    )


def _known_files(config: DataConfig) -> tuple[str, ...]:
    """What is known of training photos.

    Raises:
        CimError: a file that results are judged by.
    """
    judges = {Path(path).resolve() for path in (config.train_annotations, config.val_annotations) if path}
    for path in config.known:
        if Path(path).resolve() in judges:
            fix = "leave it out of data.known, or out of data.train_annotations"
            raise CimError("results would be judged by what training was told", path=path, fix=fix)
    return config.known


def build_model(config: Config, num_classes: int) -> CIMNet:
    """The network for C = ``num_classes`` classes, trunk weights loaded.

    Raises:
        CimError: unknown trunk, weights that do not fit or cannot be had, axes for another trunk, mmcv asked for
            but absent.
    """
    model = config.model
    own = model.weights == FROM_PRM
    backbone = build_backbone(model.backbone, RANDOM if own else model.weights, freeze=model.freeze)
    if own:
        path = trunk_file(config)
        prefix = "trunk.body."
        tensors = {name.removeprefix(prefix): t for name, t in read_weights(path).items() if name.startswith(prefix)}
        load_trunk(backbone.body, tensors, path)
    if model.head == "region_pool":
        if len(model.axes) != len(backbone.parts):
            expected = f"{len(backbone.parts)} numbers, one per part of {model.backbone}"
            raise CimError("model.axes does not fit the trunk", expected=expected, found=list(model.axes))
        head: MaskFuse | RegionPool = RegionPool(backbone.parts, model.axes, model.hidden)
    else:
        head = MaskFuse(backbone.channels, backbone.stride, model.hidden, model.roi_align)
    return CIMNet(backbone, head, Predictor(head.width, num_classes, model.refinements))


def trunk_file(config: Config) -> Path:
    """The file with the trunk's weights: ``model.weights``, or this run's response network where that says "prm".

    Raises:
        CimError: the response network is not trained yet.
    """
    if config.model.weights != FROM_PRM:
        return Path(config.model.weights or "")
    path = RunPaths(config).prm_checkpoint
    if not path.is_file():
        fix = "cim prm CONFIG"
        raise CimError("no response network to take the trunk from (model.weights: prm)", path=path, fix=fix)
    return path


def build_miner(config: MiningConfig) -> Miner:
    """The configured miner."""
    if config.method == "oicr":
        return OICRMiner(config.iou_threshold)
    if config.method == "pcl":
        return PCLMiner(positive_iou=config.iou_threshold)
    shared = {
        "seed_fraction": config.seed_fraction,
        "cls_threshold": config.cls_threshold,
        "iou_threshold": config.iou_threshold,
        "threshold_step": config.threshold_step,
    }
    if config.method == "mist":
        return MISTMiner(**shared)
    return CIMMiner(
        **shared,
        contain_threshold=config.contain_threshold,
        big_fraction=config.big_fraction,
        big_as_background=config.big_as_background,
        anti_noise=config.anti_noise,
        containment=config.containment,
        cluster_seeds=config.cluster_seeds,
        background_iou=config.background_iou,
    )


def build_criterion(mining: MiningConfig, loss: LossConfig) -> Criterion:
    """The losses, with the miner that labels for them."""
    factors = {name: getattr(loss, name) for name in LossWeights.__dataclass_fields__}
    switches = {"integrity": mining.integrity, "first_labels": loss.first_labels, "stable": loss.stable}
    return Criterion(build_miner(mining), LossWeights(**factors), **switches, evidence=loss.evidence)


def proposer_options(config: ProposalConfig) -> ProposerOptions:
    """The configured maker of proposals."""
    return ProposerOptions(**config.model_dump())
