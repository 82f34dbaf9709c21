"""The settings: one typed schema.

Networks, miners and losses never see a config; ``cim/config/build.py`` hands them plain arguments.
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DataConfig(Section):
    """Which photos, and where their artefacts live. Relative paths are relative to the current folder."""

    dataset: Literal["voc", "coco", "folder"] = "folder"
    root: str = "data/VOC2012"  # published tree (voc, coco)
    train_split: str = "trainaug"  # voc: trainaug, val (2007: trainval, test); coco: train2017, val2017; folder: train
    eval_split: str = "val"  # also test-dev2017 (coco); folder: val
    # folder data set
    images: str | None = None  # training photos
    tags: str | None = None  # tags.csv or COCO json; None: one sub-folder per class
    known: tuple[str, ...] = ()  # files of points, boxes, masks on training photos (docs/ANNOTATE.md)
    rejected: bool = True  # masks that these files say were deleted: what looks like them is no instance
    negatives: str | None = None  # folder of photos that show none of the classes; so do rows of tags without labels
    leave_out: str | None = None  # json of training photos not to be used; cim run writes it for unreadable ones
    val_images: str | None = None
    val_tags: str | None = None
    val_annotations: str | None = None  # COCO json with masks, evaluation only
    train_annotations: str | None = None  # the same for the training photos (CorLoc), never seen by training
    # artefacts; None: <root>/cim/<split>/... for voc and coco, <work_dir>/... for folders
    proposals: str | None = None  # region store (or published cob/*.pkl) of the training split
    val_proposals: str | None = None
    features: str | None = None  # maps of a frozen trunk (train.cache_features); may be shared by runs
    first_labels: str | None = None  # clusters store or published label_assign/*.pkl
    scenes: str | None = None  # scenes of known truth (train.scenes); None: <work_dir>/scenes
    packed: bool = False  # new stores keep all photos' artefacts in one file, not in one each (docs/DATASET.md)


class ProposalConfig(Section):
    """How proposals are made when none are given (docs/PROPOSALS.md)."""

    method: Literal["grouping", "sam"] = "grouping"
    max_proposals: int = Field(default=1000, ge=1)
    deep_features: bool = True  # group with the features of an ImageNet trunk as well as with colour
    backbone: str = "mobilenet_v2"  # that trunk: mobilenet_v2, resnet50_c5 or timm:NAME
    weights: str | None = None  # its file; None: the library's own ImageNet weights
    min_area: float = Field(default=0.0008, ge=0, le=1)  # size limits, fractions of the picture
    max_area: float = Field(default=0.9, ge=0, le=1)
    cuts: NonNegativeInt = 0  # so many of the best regions are also cut in two where they hold together least
    sam_checkpoint: str | None = None  # hub name or folder, e.g. facebook/sam-vit-base
    # what SAM is asked about: a grid of points, the peaks of the response network (it is trained first then), or both
    prompts: Literal["grid", "peaks", "both"] = "grid"
    sam_grid: PositiveInt | None = None  # points along a side; None: 32, beside peaks 8
    peak_fraction: float = Field(default=0.3, ge=0, le=1)  # peaks that prompt: of the highest of a class in that photo

    @property
    def prompted(self) -> bool:
        """Whether the response network has its say, and so comes before the proposals."""
        return self.method == "sam" and self.prompts != "grid"


class PRMConfig(Section):
    """Peak response network (METHOD section 2)."""

    backbone: str = "resnet50_c5"  # published: the whole ResNet-50, stride 32
    weights: str | None = None  # None: the library's own ImageNet weights; a file otherwise
    checkpoint: str | None = None  # trained response network, e.g. published prm_voc.pth; None: <work_dir>/prm
    image_size: PositiveInt = 448
    upsample: PositiveInt = 8
    fit: Literal["sgd", "converge"] = "sgd"  # converge: frozen trunk, solved to the end in seconds (cim/prm/fit.py)
    score: Literal["peaks", "top"] = "peaks"  # image score: mean of peaks; of the top tenth (from scratch)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: PositiveInt = 16
    epochs: PositiveFloat = 20.0
    flip: bool = True
    frozen_trunk: bool = False  # train the last layer alone, on features computed once
    train_norms: bool = True  # batch norms learn; false for small batches and for weights with folded norms
    feature_cache_gb: float = 4.0  # frozen trunk: keep features on disk up to this size, else compute them each time
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: NonNegativeInt = 2
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 500  # updates


class AssignConfig(Section):
    """First labels (METHOD section 3)."""

    peak_rule: Literal["value", "relative"] = "value"  # published: peaks above a value; or a share of the highest
    peak_threshold: FiniteFloat = 10.0  # value
    peak_fraction: float = Field(default=0.7, ge=0, le=1)  # relative: of the highest peak of the class in that photo
    # proposals without a class: those near one (published); also those whose class maps are negative; all
    background: Literal["touching", "negative", "rest"] = "touching"
    evidence: bool = False  # keep what the class maps say of every proposal, for loss.evidence
    mean_mask_threshold: float = Field(default=0.7, ge=0, le=1)
    iou: float = Field(default=0.5, ge=0, le=1)
    points: str | None = None  # folder of `x y class confidence` files: CIM-p


class ModelConfig(Section):
    """Networks (METHOD section 4)."""

    backbone: str = "resnet50"
    weights: str | None = None  # file with ImageNet weights; None: the library's own; prm: the run's own PRM trunk
    head: Literal["mask_fuse", "region_pool"] = "mask_fuse"  # region_pool: light, for frozen trunks
    hidden: PositiveInt = 4096  # width of the two fully connected layers
    axes: tuple[PositiveInt, ...] = (64,)  # region_pool: principal axes kept of each part of the trunk's features
    refinements: int = Field(default=3, ge=1)  # K
    roi_align: Literal["torchvision", "mmcv"] = "torchvision"
    freeze: Literal["published", "all", "none"] = "published"  # how much of the trunk is not trained


class MiningConfig(Section):
    """Mining (METHOD section 5)."""

    method: Literal["cim", "mist", "oicr", "pcl"] = "cim"
    seed_fraction: float = 0.1  # p
    cls_threshold: float = 0.25  # t_cls of branch 0
    iou_threshold: float = 0.5  # t_iou of branch 0
    threshold_step: float = 0.1
    contain_threshold: float = 0.85  # t_con
    big_fraction: float = 0.9
    big_as_background: bool = False  # what the paper means; the published program never does it
    anti_noise: bool = True  # sampling, step 5
    containment: bool = True
    cluster_seeds: bool = False  # seeds from PCL's score clusters instead of step 2
    # mask IoU with all mined below this: ignored, not background
    background_iou: float = Field(default=0.0, ge=0, le=1)
    integrity: bool = True  # the integrity (IoU) branch


class LossConfig(Section):
    """Loss weights (METHOD section 6)."""

    mil: float = 1.0
    pcl: float = 12.0
    cls: float = 1.0
    iou: float = 3.0
    bag: float = 1.0
    first_branch: float = 3.0  # factor on the weights w of branch 0
    first_labels: bool = True
    evidence: float = Field(default=0.0, ge=0)  # power of the evidence of first labels in the first instance scores
    stable: bool = False  # gradients where the published program's clamp stops them (cim/mining/losses.py)


class TrainConfig(Section):
    """Schedule of CIM training (METHOD section 7), stated in images."""

    images_per_update: PositiveInt = 4
    updates: PositiveInt = 45000
    step: tuple[int, ...] = (30000,)
    epochs: PositiveFloat | None = None  # instead of updates and step: rounds, or `visits` (cim/training/lengths.py)
    visits: PositiveFloat = 400.0  # photos that an average class is seen on, at least
    step_share: float = Field(default=0.7, gt=0, le=1)  # of the updates, after which the rate falls
    least_updates: PositiveInt = 400  # limits of that rule
    most_updates: PositiveInt = 20000
    stretch: PositiveFloat = 1.0  # times what the rule says: less or more training
    # share of the photos that is held out until the rate falls, which it then does once their loss stops falling
    held_out: float = Field(default=0.0, ge=0, lt=1)
    # photos of rare classes come more often; 1: as often as those of common ones
    balance: float = Field(default=0.0, ge=0, le=1)
    start: str | None = None  # checkpoint of a trained network to go on from, with a schedule of its own
    scenes: NonNegativeInt = 0  # scenes of known truth beside the photos of an update (cim/training/scenes.py); 0: none
    gamma: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 2.5e-4
    bias_lr_factor: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_updates: NonNegativeInt = 500
    warmup_factor: float = 1 / 3
    rescale_momentum: bool = True
    clip_grad: float | None = None
    sides: tuple[PositiveInt, ...] = Field(default=(480, 576, 688, 864, 1200), min_length=1)  # long side, pixels
    flip: bool = True
    max_proposals: PositiveInt = 1000
    cache_features: bool = False  # frozen trunk, no flips: compute its maps once (data.features)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: NonNegativeInt = 2
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 1000  # updates
    keep_checkpoints: int = 2
    picture_every: NonNegativeInt = 1000  # updates; 0: never


class InferConfig(Section):
    """Inference and selection (METHOD section 8)."""

    sides: tuple[PositiveInt, ...] = Field(default=(480, 576, 688, 864, 1200), min_length=1)
    flip: bool = True
    score_threshold: float = 1e-5
    nms: Literal["box", "mask"] = "box"
    nms_iou: float = 0.3
    max_per_image: PositiveInt = 100
    # lower the score of a region that holds two separate ones of this share of its score (cim/mining/groups.py)
    group_ratio: float | None = Field(default=None, gt=0)
    # power of the response network's probability that a class is in the photo at all, where tags do not say it
    presence: float = Field(default=0.0, ge=0)
    max_proposals: PositiveInt | None = None


class ExportConfig(Section):
    """Pseudo labels (METHOD section 8, docs/EXPORT.md)."""

    threshold: float = Field(default=0.3, ge=0, le=1)
    threshold_kind: Literal["absolute", "quantile"] = "absolute"  # quantile: share left out, class by class
    tags_first: bool = False  # other classes take none of an image's places (infer.max_per_image); published: they do
    keep_best_per_tag: bool = False  # at least one instance for every tag of an image
    # what may be an instance as well (this share of the best score of its class in the photo), and labels that may be
    # several, become crowds: areas that teach nothing (cim/labels/export.py)
    doubtful: float | None = Field(default=None, gt=0, le=1)
    min_area: NonNegativeInt = 0  # pixels
    mask_nms: float | None = None  # mask IoU from which a worse instance of the class is dropped
    empty_images: Literal["keep", "drop"] = "keep"
    scores: Literal["keep", "weight", "drop"] = "keep"  # weight: score over the best of its class


class KnownConfig(Section):
    """Where what is known beyond tags is used (docs/ANNOTATE.md); without any of it, these change nothing."""

    first_labels: bool = True  # clusters from points, boxes, masks; as many peaks as instances
    mining: bool = True  # pseudo ground truth of a marked class: the best disjoint set of so many
    mining_numbers: bool = False  # of a class with a number and no mark, too: costs more than it brings
    selection: bool = True  # of pseudo labels: exactly so many, certain masks as they are
    evaluation: bool = False  # selection on the photos that results are judged on, too


class RefineConfig(Section):
    """Mask R-CNN on the pseudo labels (docs/EXPORT.md)."""

    backbone: Literal["resnet50_fpn", "mobilenet_fpn"] = "resnet50_fpn"  # mobilenet_fpn: small, for a CPU
    weights: str | None = None  # file with ImageNet weights; None: the library's own
    images_per_update: PositiveInt = 16
    micro_batch: int = Field(default=2, ge=1)  # images per pass through the network; memory grows with it
    scenes: NonNegativeInt = 0  # scenes of certain labels beside the photos of an update (cim/mask_rcnn/scenes.py)
    updates: PositiveInt = 18000
    step: tuple[int, ...] = (12000, 16000)
    epochs: PositiveFloat | None = None  # instead of updates and step, as train.epochs, with its floor and ceiling
    stretch: PositiveFloat = 1.0  # times what that rule says
    held_out: float = Field(default=0.0, ge=0, lt=1)  # as train.held_out
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.02
    trunk_lr_factor: float = Field(default=1.0, gt=0)  # the trunk's rate as a fraction of lr
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_updates: NonNegativeInt = 500
    clip_grad: float | None = None
    min_side: PositiveInt = 800  # short side of the images, pixels, unless the long one would exceed max_side
    max_side: PositiveInt = 1333
    flip: bool = True
    score_weighted: bool = False  # losses of a region times the weight or score of the label it belongs to
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: NonNegativeInt = 2
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 1000


class Config(Section):
    """Everything; one yaml file."""

    name: str = "cim"
    work_dir: str = "runs/cim"
    device: str = "auto"  # auto: CUDA when present
    data: DataConfig = DataConfig()
    proposals: ProposalConfig = ProposalConfig()
    prm: PRMConfig = PRMConfig()
    assign: AssignConfig = AssignConfig()
    model: ModelConfig = ModelConfig()
    mining: MiningConfig = MiningConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()
    export: ExportConfig = ExportConfig()
    known: KnownConfig = KnownConfig()
    refine: RefineConfig = RefineConfig()
