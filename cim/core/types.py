"""What flows between the stages of one image. N proposals, C classes, K refinement branches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:  # the types of torch alone: this module does without it at run time
    from torch import Tensor, device

    from cim.core.regions import Overlaps


class Rle(TypedDict):
    """COCO's compressed run lengths of one mask: ``size`` [H, W]; ``counts`` str (bytes fresh from pycocotools)."""

    size: list[int]
    counts: str | bytes


class RawRle(TypedDict):
    """The same uncompressed: pixels of background and of mask in turn, column by column; the first may be 0."""

    size: list[int]
    counts: list[int]


def _same_length(owner: object, **fields: Any) -> None:
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{type(owner).__name__}: fields must share one length; found {lengths}")


@dataclass(frozen=True)
class Clusters:
    """First pseudo labels (METHOD section 3).

    Attributes:
        class_ids: int64 [N], -1 unlabelled, 0 background, 1..C foreground.
        cluster: int64 [N], cluster number from 1; 0 where unlabelled.
        evidence: float32 [N, C+1], 0..1, what speaks for a proposal as an instance of each class of the photo
            (:func:`cim.prm.evidence.class_evidence`; 1 for background and all other classes); None: not known.
    """

    class_ids: np.ndarray
    cluster: np.ndarray
    evidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        _same_length(self, class_ids=self.class_ids, cluster=self.cluster)
        if self.evidence is not None:
            _same_length(self, class_ids=self.class_ids, evidence=self.evidence)

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True)
class Sample:
    """One image as training and inference see it, torch; h, w: the resized image's frame. Where ``pooled`` features
    were kept, training does without what has pixels or belongs to them: image, boxes, grids and atoms may be empty.

    Attributes:
        image_id: id in the data set.
        image: float32 [3, h, w], RGB, normalised by ImageNet mean and std.
        boxes: float32 [N, 4], xyxy in the frame of ``image``.
        grids: float32 [N, 7, 7], 0 or 1.
        members: bool [N, A] and atom_areas: float32 [A] (pixels of the photo): all that overlaps need.
        atoms: int32 [h, w], the atom label map in the frame of ``image``.
        proposal: int64 [N], index of every row in the image's stored proposals.
        tags: float32 [C], 1 for the classes in the picture. They stay on the host: how many there are decides shapes.
        class_ids, cluster: int64 [N], first labels (see :class:`Clusters`).
        features: floating [D, h', w'], the trunk's map when it was computed before; None otherwise.
        overlaps: the published matrices (:class:`cim.core.regions.Overlaps`, float32 [N, N]) where proposals come
            without masks (``members`` is then [N, 0]); None otherwise. ``cim.training.samples.overlaps_of`` hides this.
        evidence: float32 [N, C+1] (see :class:`Clusters`); None where it is not known.
        pooled: floating [N, d], what a light head made of the frozen trunk's map before; None otherwise.
        truth: of a scene (:mod:`cim.training.scenes`), float32 [2, M, N]: mask IoU with its M instances, and share of
            each that lies inside; ``truth_class``: int64 [], their class, 1..C. None for photos: labels are mined.
        told: what is known beyond tags in terms of these proposals (:class:`cim.mining.told.Told`, NumPy arrays
            wherever the tensors are); None: nothing.
    """

    image_id: int | str
    image: Tensor
    boxes: Tensor
    grids: Tensor
    members: Tensor
    atom_areas: Tensor
    atoms: Tensor
    proposal: Tensor
    tags: Tensor
    class_ids: Tensor
    cluster: Tensor
    features: Tensor | None = None
    overlaps: Overlaps | None = None
    evidence: Tensor | None = None
    pooled: Tensor | None = None
    truth: Tensor | None = None
    truth_class: Tensor | None = None
    told: Any = None

    def to(self, device: str | device) -> Sample:
        """The same with every tensor but the tags on ``device``."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if hasattr(v, "to") and k != "tags"}
        if self.overlaps is not None:
            moved["overlaps"] = type(self.overlaps)(*(v.to(device, non_blocking=True) for v in self.overlaps))
        return replace(self, **moved)


class SceneTruth(NamedTuple):
    """What N proposals have to do with the M instances of a scene, float32 [M, N] each.

    ``iou``: mask IoU; ``covered``: share of the instance that lies inside the proposal.
    """

    iou: np.ndarray
    covered: np.ndarray


@dataclass(frozen=True)
class RoiScores:
    """Scores of all proposals, torch float32; column 0 is background.

    Attributes:
        cls: [N, C+1], softmax over classes (anti-noise branch).
        det: [N, C+1], softmax over proposals (anti-noise branch).
        refine_cls: [K, N, C+1], softmax over classes.
        refine_iou: [K, N, C+1], sigmoid.
    """

    cls: Tensor
    det: Tensor
    refine_cls: Tensor
    refine_iou: Tensor


@dataclass(frozen=True)
class PseudoLabels:
    """What a miner gives a refinement branch (METHOD section 5), torch.

    Attributes:
        class_ids: int64 [N], -1 ignored, 0 background, 1..C.
        integrity: float32 [N], 1 where the overlap with the pseudo ground truth exceeds t_iou.
        weight: float32 [N], confidence of the pseudo ground truth; 0 where ignored.
        mined: bool [N], the proposals that serve as pseudo ground truth.
        seeds: int64 [], how many seeds they grew from, over all classes (diagnostics).
    """

    class_ids: Tensor
    integrity: Tensor
    weight: Tensor
    mined: Tensor
    seeds: Tensor | int = 0


@dataclass(frozen=True)
class Instances:
    """Detections of one image, all fields of one length n.

    Attributes:
        image_id: id in the data set.
        size: (H, W) of the photo in pixels; the frame of boxes and masks.
        class_ids: int64 [n], 0..C-1.
        score: float32 [n].
        boxes: float32 [n, 4], xyxy, exclusive.
        rles: n COCO run-length dicts (``size``, ``counts``; compressed counts are str).
        proposal: int64 [n], index into the image's proposals; -1 when the mask is not one of them.
        known: bool [n], instances of classes of which is known how many there are; None: of none.
    """

    image_id: int | str
    size: tuple[int, int]
    class_ids: np.ndarray
    score: np.ndarray
    boxes: np.ndarray
    rles: list[Rle]
    proposal: np.ndarray
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        fields = {name: getattr(self, name) for name in ("class_ids", "score", "boxes", "rles", "proposal")}
        _same_length(self, **fields, **({} if self.known is None else {"known": self.known}))

    def __len__(self) -> int:
        return len(self.class_ids)
