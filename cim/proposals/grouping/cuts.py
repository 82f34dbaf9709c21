"""Regions cut in two where they hold together least: what merges took together may be two things side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import eigh

from cim.proposals.grouping.superpixels import Superpixels

_LEAST = 3  # segments of a half: fewer are no thing


def cut_apart(sp: Superpixels, regions: np.ndarray) -> np.ndarray:
    """Both halves of every region's best normalised cut (Shi and Malik, PAMI 2000), bool [2 M, S].

    Merge trees only ever join the two nearest; a cut looks at a whole region. Segments hold together by the length of
    their common boundary, less where it is strong: a region parts at its neck, or along a contour inside it. The
    second eigenvector of the normalised Laplacian orders the segments; of all places to part them, that of the
    smallest normalised cut is taken.

    Args:
        regions: bool [N, S]; those of fewer than six segments, or with a segment that touches no other of theirs, are
            not cut (M <= N).
    """
    held = np.zeros((len(sp), len(sp)))
    held[sp.source, sp.target] = held[sp.target, sp.source] = sp.length * np.exp(
        -sp.edge / max(np.median(sp.edge), 1e-6)
    )
    halves = [half for region in regions for half in _halves(held, region)]
    return np.array(halves, bool).reshape(-1, len(sp))


def _halves(held: np.ndarray, region: np.ndarray) -> Iterator[np.ndarray]:
    inside = np.flatnonzero(region)
    if len(inside) < 2 * _LEAST:
        return
    weights = held[np.ix_(inside, inside)]
    degree = weights.sum(1)
    if degree.min() <= 0:
        return
    root = np.sqrt(degree)
    laplacian = np.eye(len(inside)) - weights / np.outer(root, root)
    vector = eigh(laplacian, subset_by_index=[1, 1], check_finite=False)[1][:, 0] / root
    order = np.argsort(vector, kind="stable")
    degrees = degree[order].cumsum()
    within = weights[np.ix_(order, order)].cumsum(0).cumsum(1).diagonal()  # of the first k with each other
    across, places = degrees - within, slice(_LEAST - 1, len(order) - _LEAST)
    cost = across[places] / degrees[places] + across[places] / (degrees[-1] - degrees[places])
    half = np.zeros(len(order), bool)
    half[order[: _LEAST + np.argmin(cost)]] = True
    for side in (half, ~half):
        whole = np.zeros_like(region)
        whole[inside[side]] = True
        yield whole
