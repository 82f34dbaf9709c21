"""The response network on a frozen trunk, solved instead of trained: seconds, no learning rate, the same every time.

On features that do not change, "which tags has the photo" is logistic regression on their mean over the photo, and the
same weights at every place are the class maps (Zhou et al., CVPR 2016). It is convex: solved to the end whatever the
number of photos, classes and tags. Three things make it fit for first labels:

- channels are standardised over all places, so that the decay means the same for every trunk, and folded back;
- photos with and without a class weigh half each, so that a rare class is learnt like a common one;
- every photo also appears as its figure (the places where the trunk responds strongly) with its tags, and as its ground
  with no tag at all: what always stands around a class is not learnt as the class, with two classes or twenty.

How well it tells the tags of photos it has not seen comes with it (:func:`cross_fit`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cim.core.errors import CimError, cannot_write

logger = logging.getLogger(__name__)

DECAYS = (0.01, 0.03, 0.1)
GROUND_WEIGHT = 0.3  # of a ground, beside a mean of 1 for photos and figures; 0.1 to 1 do alike (docs/RESULTS.md)
FOLDS = 5
_STEPS = 200  # of L-BFGS at most; it stops earlier
_LEAST_SPREAD = 1e-4
_BLOCK = 1024  # photos computed with at a time


@dataclass(frozen=True)
class PooledPhotos:
    """Mean features of n photos, float32, every channel at mean 0 and spread 1.

    Attributes:
        whole, figure, ground: [n, D], over all places, those of the figure, and the others; mapped from a file.
        centre, spread: [D], mean and standard deviation that every channel had over all places of all photos.
    """

    whole: Tensor
    figure: Tensor
    ground: Tensor
    centre: Tensor
    spread: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """whole, figure and ground."""
        return self.whole, self.figure, self.ground


@dataclass(frozen=True)
class LinearMaps:
    """A 1x1 convolution: weight float32 [C, D], bias float32 [C]."""

    weight: Tensor
    bias: Tensor

    def scores(self, pooled: Tensor) -> Tensor:
        """[n, D] -> [n, C]."""
        return pooled @ self.weight.T + self.bias

    def write_to(self, head: nn.Conv2d, centre: Tensor, spread: Tensor) -> None:
        """Into a head that reads features as they are, where these maps read standardised ones."""
        weight = self.weight / spread
        with torch.no_grad():
            head.weight.copy_(weight[:, :, None, None])
            assert head.bias is not None  # the response network's last layer has one
            head.bias.copy_(self.bias - weight @ centre)


@dataclass(frozen=True)
class HeldOut:
    """What photos got from networks that had not seen them.

    Attributes:
        scores: float32 [n, C].
        decay: that told the tags best.
        precision: float [C], average precision of every class; NaN where it has no photo, or no photo without it.
    """

    scores: np.ndarray
    decay: float
    precision: np.ndarray


# ---------------------------------------------------------------------- features


def response_strength(features: Tensor) -> Tensor:
    """How strongly the trunk responds at every place, 0..1 in each photo: [B, D, h, w] -> float32 [B, h, w].

    The length of the feature vector; an ImageNet trunk responds to things more than to what they stand on. As a guess
    of where a photo's object is it was ahead of TokenCut's and LOST's kind of cut (docs/RESULTS.md).
    """
    length = features.float().norm(dim=1)
    low, high = length.amin((1, 2), keepdim=True), length.amax((1, 2), keepdim=True)
    return (length - low) / (high - low).clamp(min=1e-6)


def figure_mask(features: Tensor) -> Tensor:
    """The places that respond more than the photo's mean: bool [B, h, w]."""
    strength = response_strength(features)
    return strength > strength.mean((1, 2), keepdim=True)


def pool_features(batches: Iterable[Tensor], folder: Path | None = None) -> PooledPhotos:
    """Mean features of photos, whose trunk features come as [B, D, h, w] one batch after the other.

    Args:
        folder: for the file without a name that holds them, so that they need no memory; None: the system's own.

    Raises:
        CimError: no photos, or no room on the disk.
    """
    total = squares = torch.zeros((), dtype=torch.float64)
    count = 0
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for features in batches:
                features = features.float()
                mask = figure_mask(features).float()
                whole = features.mean((2, 3))
                rows = torch.stack([whole, mean_where(features, mask), mean_where(features, 1 - mask)], 1)
                file.write(rows.cpu().numpy().tobytes())
                total = total + whole.double().sum(0).cpu()
                squares = squares + features.square().mean((2, 3)).double().sum(0).cpu()
                count += len(features)
            if not count:
                raise CimError("no photos to fit the response network to")
            file.flush()
            table = torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(count, 3, len(total))))
    except OSError as error:
        raise cannot_write(Path(folder or tempfile.gettempdir()) / "pooled features", error) from error
    centre = total / count
    spread = (squares / count - centre.square()).clamp(min=0).sqrt().clamp(min=_LEAST_SPREAD)
    centre, spread = centre.float(), spread.float()
    for rows in table.split(_BLOCK):
        rows.sub_(centre).div_(spread)
    return PooledPhotos(table[:, 0], table[:, 1], table[:, 2], centre, spread)


def mean_where(features: Tensor, mask: Tensor) -> Tensor:
    """[B, D, h, w] and float [B, h, w] -> [B, D]; the mean of all places where the mask is empty."""
    mask = torch.where(mask.sum((1, 2), keepdim=True) > 0, mask, torch.ones_like(mask))
    return torch.einsum("bdhw,bhw->bd", features, mask) / mask.sum((1, 2))[:, None]


# ---------------------------------------------------------------------- the fit


def balance(tags: Tensor) -> Tensor:
    """Weights [n, C] with mean 1 by which photos with a class weigh as much as those without: tags 0/1 [n, C]."""
    count, has = len(tags), tags.sum(0)
    return torch.where(tags > 0, count / (2 * has.clamp(min=1)), count / (2 * (count - has).clamp(min=1)))


def fit_maps(
    pooled: tuple[Tensor, Tensor, Tensor],
    tags: Tensor,
    decay: float,
    ground_weight: float = GROUND_WEIGHT,
    chosen: Tensor | None = None,
) -> LinearMaps:
    """Class-balanced, regularised logistic regression by L-BFGS, one class beside the other.

    Args:
        pooled: standardised whole, figure and ground [n, D].
        tags: float 0/1 [n, C]; a photo without any is a negative of all classes.
        decay: factor of half the squared weights, beside mean losses.
        ground_weight: of the grounds as negatives; see :data:`GROUND_WEIGHT`.
        chosen: bool [n], photos to fit to; None: all. The others take no part.
    """
    chosen = torch.ones(len(tags), dtype=torch.bool) if chosen is None else chosen
    weighed, count = torch.zeros_like(tags), int(chosen.sum())
    weighed[chosen] = balance(tags[chosen])
    parts = (  # features, their targets, their weights
        (pooled[0], tags, weighed),
        (pooled[1], tags, weighed),
        (pooled[2], torch.zeros_like(tags), torch.full_like(tags, ground_weight) * chosen[:, None]),
    )
    weight = torch.zeros(tags.shape[1], pooled[0].shape[1], requires_grad=True)
    bias = torch.zeros(tags.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = decay / 2 * weight.square().sum()
        value.backward()
        value = value.detach()
        for features, target, weights in parts:
            for at in range(0, len(tags), _BLOCK):  # all at once would be as large as all photos
                rows = slice(at, at + _BLOCK)
                part = functional.binary_cross_entropy_with_logits(
                    features[rows] @ weight.T + bias, target[rows], weights[rows] / count, reduction="sum"
                )
                part.backward()
                value = value + part.detach()
        return value

    solver.step(loss)
    return LinearMaps(weight.detach(), bias.detach())


def cross_fit(
    pooled: tuple[Tensor, Tensor, Tensor], tags: Tensor, decays: Sequence[float] = DECAYS, folds: int = FOLDS
) -> HeldOut:
    """Scores of every photo by networks fitted to the others, at the decay that tells the tags best.

    The mean average precision over classes decides, the larger decay on a tie.

    Args:
        pooled, tags: as in :func:`fit_maps`.
    """
    fold = torch.from_numpy(stratified_folds(tags.numpy() > 0, folds))
    best: HeldOut | None = None
    for decay in sorted(decays, reverse=True):
        scores = torch.zeros_like(tags)
        for k in range(folds):
            out = fold == k
            if out.any() and not out.all():
                maps = fit_maps(pooled, tags, decay, chosen=~out)
                for rows in out.nonzero()[:, 0].split(_BLOCK):
                    scores[rows] = maps.scores(pooled[0][rows])
        found = HeldOut(scores.numpy(), decay, class_precisions(scores.numpy(), tags.numpy() > 0))
        if best is None or _mean(found.precision) > _mean(best.precision) + 1e-6:
            best = found
    assert best is not None
    return best


def stratified_folds(tags: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every photo, int64 [n]: the photos of each class, rarest first, are dealt out in turn.

    Args:
        tags: bool [n, C].
    """
    order = np.random.default_rng(seed).permutation(len(tags))
    fold = np.full(len(tags), -1)
    sizes = np.zeros(folds, np.int64)
    masks = [tags[:, k] for k in np.argsort(tags.sum(0), kind="stable")] + [np.ones(len(tags), bool)]
    for mask in masks:
        counts = np.array([(mask & (fold == k)).sum() for k in range(folds)])
        for index in order[mask[order] & (fold[order] < 0)]:
            k = np.lexsort((sizes, counts))[0]
            fold[index] = k
            counts[k] += 1
            sizes[k] += 1
    return fold


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision at the ranks of the true ones, all of one class; NaN when there is none.

    Args:
        scores: [n]; equal scores rank in the order given.
        truth: bool [n].
    """
    hits = np.asarray(truth, bool)[np.argsort(-scores, kind="stable")]
    if not hits.any():
        return float("nan")
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def class_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average precision of every class, float64 [C]; NaN for one that no photo has, or that all have.

    Args:
        scores: [n, C]; truth: bool [n, C].
    """
    result = np.full(truth.shape[1], np.nan)
    for k in range(truth.shape[1]):
        if not truth[:, k].all():
            result[k] = average_precision(scores[:, k], truth[:, k])
    return result


def _mean(precision: np.ndarray) -> float:
    known = precision[~np.isnan(precision)]
    return float(known.mean()) if len(known) else 0.0
