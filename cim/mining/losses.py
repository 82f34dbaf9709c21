"""Named, unweighted losses of one image, and the criterion that weighs them (METHOD section 6).

N proposals, C classes, K branches; probabilities are floating [N, C+1] with column 0 = background.

Every loss takes ``stable``. Published (False): probabilities are clamped to [1e-6, 1 - 1e-6], which
leaves no gradient where a network is surely wrong; on light features training can get stuck there.
Stable: 1 - p is summed from the other classes, not subtracted, and the floor is 1e-30, so that the
gradient of a log-softmax arrives whole. Both agree wherever the clamp is not active.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cim.core.regions import Overlaps
from cim.core.types import PseudoLabels, RoiScores, Sample
from cim.mining.miners import Miner
from cim.mining.scene_labels import scene_labels
from cim.mining.told import Told
from cim.mining.told_labels import ignore_barred, mine_told, without_barred

CLAMP = 1e-6  # published
FLOOR = 1e-30  # stable; 1 / FLOOR still fits a float32


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses; ``first_branch`` multiplies the pseudo labels' weights w of branch 0."""

    mil: float = 1.0
    pcl: float = 12.0
    cls: float = 1.0
    iou: float = 3.0
    bag: float = 1.0
    first_branch: float = 3.0

    def of(self, name: str) -> float:
        """Factor of a loss by its name: "mil", "pcl", "cls0", "iou2", ..."""
        return getattr(self, name.rstrip("0123456789"))


@dataclass(frozen=True)
class Criterion:
    """All losses of one image.

    Attributes:
        miner: gives every refinement branch its labels.
        weights: factors of the losses.
        integrity: use the integrity (IoU) branch; without, its loss is left out and its score counts as 1.
        first_labels: use the first pseudo labels (pcl).
        stable: see the module's head.
        evidence: the instance scores ``det`` of the anti-noise branch are multiplied by a proposal's evidence for the
            class to this power, and brought back to a sum of 1 over proposals, before anything is mined or compared:
            what nothing speaks for is not taken for the class just because it always stands around it. Training
            alone: scores at inference are the network's own. 0, or no evidence: as published.
    """

    miner: Miner
    weights: LossWeights = field(default_factory=LossWeights)
    integrity: bool = True
    first_labels: bool = True
    stable: bool = False
    evidence: float = 0.0

    def __call__(
        self, scores: RoiScores, sample: Sample, overlaps: Overlaps, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses (their sum is to be minimised) and diagnostics.

        Args:
            scores: of the image's proposals, in any floating dtype; losses are float32.
            sample: only tags [C], class_ids and cluster [N] are used, what is known beyond tags, and a scene's truth,
                instead of mining.
            overlaps: mask IoU and containment [N, N].
            generator: for anti-noise sampling.

        Returns:
            losses: scalars "mil", "pcl" and per branch k that was mined "cls{k}", "iou{k}", "bag{k}".
            diagnostics: scalars "seeds{k}", "mined{k}" (numbers), "labelled{k}", "background{k}",
            "ignored{k}" (shares of the proposals), "skipped" (branches where nothing was mined).
        """
        scores = self.informed(scores, sample)
        labels: list[PseudoLabels | None]
        if sample.truth is None or sample.truth_class is None:
            labels = self.mine(scores, sample.tags, overlaps, generator, sample.told)
        else:
            (iou, covered), class_number = sample.truth, sample.truth_class
            labels = [scene_labels(iou, covered, class_number, k) for k in range(len(scores.refine_cls))]
        losses = self.unweighted(scores, sample, labels)
        return {name: self.weights.of(name) * value for name, value in losses.items()}, diagnostics(labels)

    def informed(self, scores: RoiScores, sample: Sample) -> RoiScores:
        """The scores with the sample's evidence in them; see :class:`Criterion`."""
        if not self.evidence or sample.evidence is None or not len(sample.evidence):
            return scores
        det = _at_least_float32(scores.det) * sample.evidence**self.evidence
        return replace(scores, det=det / det.sum(0, keepdim=True).clamp_min(FLOOR))

    def mine(
        self,
        scores: RoiScores,
        tags: Tensor,
        overlaps: Overlaps,
        generator: torch.Generator | None = None,
        told: Told | None = None,
    ) -> list[PseudoLabels | None]:
        """Pseudo labels of every branch; branch k learns from the scores of branch k - 1 (METHOD section 5).

        Args:
            told: what is known of the image beyond its tags (:mod:`cim.mining.told_labels`).
        """
        with torch.no_grad():
            scores = self._prepared(scores)
            cls, instance = [scores.cls, *scores.refine_cls], [scores.det, *scores.refine_iou]
            found = []
            for k in range(len(scores.refine_cls)):
                s, d = cls[k][:, 1:], instance[k][:, 1:]
                if told is not None:
                    s, d = without_barred(s, told), without_barred(d, told)
                mine = partial(self._mine, s, d, overlaps, k, generator)
                found.append(
                    mine(tags) if told is None else ignore_barred(mine_told(mine, s * d, tags, overlaps, k, told), told)
                )
            return found

    def _mine(
        self, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None, tags: Tensor
    ) -> PseudoLabels | None:
        return self.miner(s, d, tags, overlaps, branch, generator)

    def unweighted(self, scores: RoiScores, sample: Sample, labels: list[PseudoLabels | None]) -> dict[str, Tensor]:
        """Every loss by name, without its factor (but with ``first_branch`` in the weights of branch 0)."""
        with torch.autocast(scores.cls.device.type, enabled=False):
            scores = self._prepared(scores)
            losses = {"mil": mil_loss(scores.cls, scores.det, sample.tags, self.stable)}
            if self.first_labels:
                losses["pcl"] = cluster_loss(scores.cls, sample.class_ids, sample.cluster, self.stable)
            for k, mined in enumerate(labels):
                if mined is None:
                    continue
                if k == 0 and sample.truth is None:
                    mined = replace(mined, weight=self.weights.first_branch * mined.weight)
                cls, iou = scores.refine_cls[k], scores.refine_iou[k]
                losses[f"cls{k}"] = class_loss(cls, mined, self.stable)
                if self.integrity:
                    losses[f"iou{k}"] = integrity_loss(iou, mined)
                bag = bag_loss(cls, iou, mined, sample.tags, self.stable)
                losses[f"bag{k}"] = bag * mined.mined.any()  # where nothing was mined, absent classes are silent, too
            return losses

    def _prepared(self, scores: RoiScores) -> RoiScores:
        """At least float32, and integrity scores of 1 where that branch is switched off."""
        iou = _at_least_float32(scores.refine_iou)
        if not self.integrity:
            iou = torch.ones_like(iou)
        cls, det, refine = map(_at_least_float32, (scores.cls, scores.det, scores.refine_cls))
        return RoiScores(cls, det, refine, iou)


def mil_loss(cls: Tensor, det: Tensor, tags: Tensor, stable: bool = False) -> Tensor:
    """Mean BCE between sum_i cls[i] * det[i] and the image's label, background included.

    Args:
        cls, det: [N, C+1], softmax over classes and over proposals.
        tags: [C], 1 for the classes of the image.
    """
    yes = (cls * det).sum(0)
    no = (_others(cls) * det).sum(0) if stable else None  # sum_i det[i] = 1
    return _bce(yes, no, _image_label(tags, cls)).mean()


def cluster_loss(cls: Tensor, class_ids: Tensor, cluster: Tensor, stable: bool = False) -> Tensor:
    """Loss of the first pseudo labels, pcl; 0 where no proposal has one.

    A foreground cluster compares its mean probabilities with its class, times its size; background
    compares every proposal by itself. Divided by the number of proposals that have a label.

    Args:
        cls: [N, C+1].
        class_ids, cluster: int64 [N], see :class:`cim.core.types.Clusters`.
    """
    width = cls.shape[1]
    label = functional.one_hot(class_ids.clamp_min(0), width).to(cls.dtype)
    clustered, front = class_ids >= 0, class_ids > 0
    numbers, group = torch.unique(torch.where(front, cluster, 0), return_inverse=True)  # one group holds the rest
    size = cls.new_zeros(len(numbers)).index_add(0, group, front.to(cls.dtype))

    def group_mean(values: Tensor) -> Tensor:
        total = values.new_zeros(len(numbers), width).index_add(0, group, values * front[:, None])
        return total / size.clamp_min(1)[:, None]

    yes, target = group_mean(cls), group_mean(label)
    no = _others(yes) if stable else None
    foreground = (size * _bce(yes, no, target).mean(1)).sum()
    each = _bce(cls, _others(cls) if stable else None, label).mean(1)
    background = torch.where(class_ids == 0, each, 0).sum()
    return (foreground + background) / clustered.sum().clamp_min(1)


def class_loss(cls: Tensor, labels: PseudoLabels, stable: bool = False) -> Tensor:
    """Weighted cross entropy over the labelled proposals, divided by their number."""
    used = labels.class_ids >= 0
    picked = cls.gather(1, labels.class_ids.clamp_min(0)[:, None])[:, 0]
    log = picked.clamp_min(FLOOR).log() if stable else picked.clamp(CLAMP, 1 - CLAMP).log()
    return torch.where(used, -log * labels.weight, 0).sum() / used.sum().clamp_min(1)


def integrity_loss(iou: Tensor, labels: PseudoLabels) -> Tensor:
    """Weighted smooth L1 between iou[i, y_i] and the integrity target, over foreground, divided by its number."""
    front = labels.class_ids > 0
    picked = iou.gather(1, labels.class_ids.clamp_min(0)[:, None])[:, 0]
    error = functional.smooth_l1_loss(picked, labels.integrity, reduction="none")
    return torch.where(front, error * labels.weight, 0).sum() / front.sum().clamp_min(1)


def bag_loss(cls: Tensor, iou: Tensor, labels: PseudoLabels, tags: Tensor, stable: bool = False) -> Tensor:
    """Mean BCE over classes of the best cls * iou of each.

    For classes of the image (and background) the best among the proposals labelled so, weighted by that
    proposal's weight; nothing when there is none. For absent classes the best of all, weight 1.
    """
    target = _image_label(tags, cls)
    present = target > 0
    score = cls * iou
    allowed = functional.one_hot(labels.class_ids.clamp_min(0), cls.shape[1]).bool() & (labels.class_ids >= 0)[:, None]
    best = score.detach().masked_fill(present & ~allowed, -1.0).argmax(0, keepdim=True)
    weight = torch.where(present, labels.weight[best[0]] * allowed.any(0), 1.0)
    yes = score.gather(0, best)[0]
    no = (_others(cls) + cls * (1 - iou)).gather(0, best)[0] if stable else None
    return (_bce(yes, no, target) * weight).mean()


def diagnostics(labels: list[PseudoLabels | None]) -> dict[str, Tensor]:
    """What mining did, as scalars per branch; see :class:`Criterion`."""
    empty = [torch.ones(()) if found is None else (~found.mined.any()).float() for found in labels]
    values: dict[str, Tensor] = {"skipped": sum(empty, torch.zeros(()))}
    for k, found in enumerate(labels):
        if found is None:
            continue
        values[f"seeds{k}"] = torch.as_tensor(found.seeds, device=found.mined.device).float()
        values[f"mined{k}"] = found.mined.sum().float()
        values[f"labelled{k}"] = (found.class_ids > 0).float().mean()
        values[f"background{k}"] = (found.class_ids == 0).float().mean()
        values[f"ignored{k}"] = (found.class_ids < 0).float().mean()
    return values


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _image_label(tags: Tensor, like: Tensor) -> Tensor:
    """[C+1]: the tags after a background that is always there."""
    return torch.cat([like.new_ones(1), (tags > 0).to(like, non_blocking=True)])


def _others(p: Tensor) -> Tensor:
    """1 - p for probabilities that sum to 1 along the last axis, exact where p is close to 1."""
    width = p.shape[-1]
    return p @ (1 - torch.eye(width, dtype=p.dtype, device=p.device))


def _bce(yes: Tensor, no: Tensor | None, target: Tensor) -> Tensor:
    """Elementwise binary cross entropy; ``no`` is 1 - yes computed exactly, or None for the published clamp."""
    if no is None:
        yes = yes.clamp(CLAMP, 1 - CLAMP)
        no = 1 - yes
    else:
        yes, no = yes.clamp_min(FLOOR), no.clamp_min(FLOOR)
    return -(target * yes.log() + (1 - target) * no.log())
