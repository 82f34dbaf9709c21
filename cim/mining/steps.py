"""The steps of mining as functions on tensors (METHOD section 5). N proposals, P classes present in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cim.core.types import PseudoLabels

CENTRES = 5  # of the clusters of a class


def find_big(containment: Tensor, threshold: float, fraction: float) -> Tensor:
    """The proposals that contain at least ``fraction`` of all (step 1): [N, N] -> bool [N]."""
    return (containment > threshold).sum(1) >= fraction * len(containment)


def find_seeds(score: Tensor, iou: Tensor, fraction: float, threshold: float) -> tuple[Tensor, Tensor]:
    """The highest proposals of every class after greedy NMS (step 2).

    Args:
        score: floating [P, N].
        iou: mask IoU [N, N].
        fraction: share of the proposals considered per class.
        threshold: a proposal goes when its IoU with a kept, higher one reaches this.

    Returns:
        the n considered proposals of every class by falling score, int64 [P, n], and which of them are seeds, bool.
    """
    order = score.sort(dim=1, descending=True, stable=True).indices[:, : seed_count(score, fraction)]
    hits = (iou[order[:, :, None], order[:, None, :]] >= threshold).to(score.dtype).triu(1)  # [P, n, n], a hits b
    return order, greedy(hits, look=score.device.type == "cpu")


def greedy(hits: Tensor, look: bool) -> Tensor:
    """Who survives when every survivor removes those it hits; 0/1 [P, n, n], strictly upper -> bool [P, n].

    "b survives if no survivor hits b" has one solution, and repeating it settles rank after rank, so it is reached
    after as many steps as the longest chain of removals: a handful, n at the very worst. ``look``: stop when it is;
    asking a GPU would make it wait, so there all n steps are taken.
    """
    keep, ones = torch.ones_like(hits[:, :1]), torch.ones_like(hits[:, :1])
    for _ in range(hits.shape[1]):
        before, keep = keep, torch.baddbmm(ones, keep, hits, alpha=-1).clamp_(min=0)
        if look and torch.equal(before, keep):
            break
    return keep[:, 0] > 0


def sample_distinct(weight: Tensor, mined: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """Anti-noise sampling (step 5): per class as many draws as were mined, with replacement; the distinct ones stay.

    Args:
        weight: [P, N], at least 0; chances are proportional to it (equal where all mined ones weigh 0).
        mined: bool [P, N].
        most: upper bound of mined per class. The generator always gives P * most numbers, so that what
            follows does not depend on how many were mined.
        generator: on any device; the draws do not depend on the device of the scores.

    Returns:
        bool [P, N], a subset of ``mined``.
    """
    chance = torch.where(mined, weight, 0).double()
    chance = torch.where(chance.sum(1, keepdim=True) > 0, chance, mined.double())
    steps = chance.cumsum(1)
    home = generator.device if generator is not None else chance.device
    uniform = torch.rand(len(mined), most, generator=generator, device=home, dtype=torch.float64).to(chance.device)
    drawn = torch.searchsorted(steps, uniform * steps[:, -1:], right=True).clamp_(max=mined.shape[1] - 1)
    counts = torch.arange(most, device=mined.device) < mined.sum(1, keepdim=True)
    hits = torch.zeros_like(chance).scatter_add_(1, drawn, counts.double())
    return (hits > 0) & mined


def seed_count(score: Tensor, fraction: float) -> int:
    """How many proposals of a class are considered as seeds: ceil(pN)."""
    return min(math.ceil(fraction * score.shape[1]), score.shape[1])


def listed(chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """What is chosen in every row, ascending, as tensors whose size does not depend on it.

    Args:
        chosen: bool [P, N].
        most: upper bound of how many are chosen in a row.

    Returns:
        int64 [P, m], m = min(most, N), and bool [P, m]: which entries count; the rest is filled with others.
    """
    index = (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    return index, chosen.gather(1, index)


def marked(like: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """bool [P, N], True at the proposals ``index`` [P, n] that count, bool [P, n]."""
    return torch.zeros_like(like, dtype=torch.bool).scatter_(1, index, counts)


def find_complete(
    containment: Tensor, threshold: float, big: Tensor, d: Tensor, index: Tensor, is_seed: Tensor
) -> Tensor:
    """Step 3: for every seed the proposal of highest d among those that contain it and are not big.

    Args:
        containment: [N, N], [i, j] = share of j inside i; i contains j when it exceeds ``threshold``.
        big: bool [N].
        d: [P, N], at least 0.
        index: int64 [P, n], proposals of every class; is_seed: bool [P, n], which of them are seeds.

    Returns:
        bool [P, N]; a seed without candidates leaves no trace.
    """
    contains = containment.index_select(1, index.flatten()).T.reshape(*index.shape, -1) > threshold  # [P, n, N]
    candidates = contains & ~big
    best = torch.where(candidates, d[:, None], -1.0).argmax(2)
    votes = (candidates.any(2) & is_seed).to(d.dtype)
    return torch.zeros_like(d).scatter_add_(1, best, votes) > 0


def top_group(score: Tensor, groups: int, rounds: int = 20) -> Tensor:
    """The proposals of the highest k-means group of every class: [P, N] -> bool [P, N]. Deterministic."""
    low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
    centres = low + (high - low) * torch.linspace(0, 1, groups, device=score.device, dtype=score.dtype)
    for _ in range(rounds):
        member = nn.functional.one_hot((score[:, :, None] - centres[:, None]).abs().argmin(2), groups).to(score.dtype)
        size = member.sum(1)
        mean = (member * score[:, :, None]).sum(1) / size.clamp_min(1)
        before, centres = centres, torch.where(size > 0, mean, centres)
        if score.device.type == "cpu" and torch.equal(before, centres):  # settled; asking another device costs more
            break
    nearest = (score[:, :, None] - centres[:, None]).abs().argmin(2)
    return nearest == nearest.gather(1, score.argmax(1, keepdim=True))


def cluster_centres(
    weight: Tensor, iou: Tensor, groups: int = 3, graph_iou: float = 0.4, most: int = CENTRES
) -> tuple[Tensor, Tensor, Tensor]:
    """The centres of the score clusters of every class (PCL, TPAMI 2018). Deterministic.

    The proposals of the highest of ``groups`` score groups (k-means) are joined where they overlap by more than
    ``graph_iou``; the one with most neighbours becomes a centre and leaves with its neighbours; and so on, ``most``
    times at most.

    Args:
        weight: s * d, floating [P, N], at least 0.
        iou: mask IoU [N, N].

    Returns:
        bool [P, N], the centres; [P, N], ``weight`` with the highest weight of a cluster at its centre; int64 scalar,
        how many proposals stood in the highest groups.
    """
    alive = top_group(weight, groups)
    candidates = alive.sum()
    centres, weights = torch.zeros_like(alive), weight.clone()
    near = (iou > graph_iou).to(weight.dtype)
    near.fill_diagonal_(1)
    every = torch.arange(len(weight), device=weight.device)
    for _ in range(most):  # a fixed number: nothing to ask the device
        degree = (alive.to(weight.dtype) @ near).masked_fill(~alive, -1)
        centre = degree.argmax(1)
        cluster = alive & (near[centre] > 0)
        highest = weight.masked_fill(~cluster, 0).amax(1)
        left = alive.any(1)
        centres[every, centre] |= left
        weights[every, centre] = torch.where(left, highest, weights[every, centre])
        alive = alive & ~cluster
    return centres, weights, candidates


def one_class_each(mined: Tensor, weight: Tensor) -> Tensor:
    """Step 4: bool [P, N] where every proposal keeps the class of largest weight, the first one on a tie."""
    if not len(mined):
        return mined
    best = weight.masked_fill(~mined, -1.0).argmax(0, keepdim=True)
    return torch.zeros_like(mined).scatter_(0, best, True) & mined


def spread(
    mined: Tensor,
    weight: Tensor,
    classes: Tensor,
    iou: Tensor,
    positive_iou: float,
    complete_iou: float,
    seeds: Tensor,
    most: int,
    background_from: float | None = 0.0,
) -> PseudoLabels:
    """Step 6: every proposal takes class and weight of the pseudo ground truth it overlaps best.

    Overlap below ``positive_iou`` makes it background, and ignored when below ``background_from``
    (0: when there is none; None: never). Where nothing was mined, all are ignored.

    Args:
        most: upper bound of pseudo ground truths per class.
    """
    index, counts = listed(mined, most)
    return labels_of(
        # IoU is symmetric, and rows lie together in memory
        iou[index.flatten()].masked_fill(~counts.flatten()[:, None], -1.0),
        classes[:, None].expand_as(index).flatten(),
        weight.gather(1, index).flatten(),
        mined.any(0),
        positive_iou=positive_iou,
        complete_iou=complete_iou,
        seeds=seeds,
        background_from=background_from,
    )


def labels_of(
    iou: Tensor,
    classes: Tensor,
    weight: Tensor,
    mined: Tensor,
    *,
    positive_iou: float,
    complete_iou: float,
    seeds: int | Tensor,
    background_from: float | None = 0.0,
) -> PseudoLabels:
    """The same for T pseudo ground truths, T > 0, whatever they are.

    Args:
        iou: [T, N], of each with every proposal.
        classes: int64 [T], 1..C.
        weight: [T].
        mined: bool [N], the proposals among them.
    """
    overlap, best = iou.max(0)
    class_ids = torch.where(overlap >= positive_iou, classes[best], 0)
    weights = weight[best]
    if background_from is not None:
        ignored = (overlap <= 0) | (overlap < background_from)
        class_ids = class_ids.masked_fill(ignored, -1)
        weights = weights.masked_fill(ignored, 0)
    return PseudoLabels(
        class_ids=class_ids,
        integrity=(overlap > complete_iou).to(weights.dtype),
        weight=weights,
        mined=mined,
        seeds=torch.as_tensor(seeds, device=class_ids.device),
    )
