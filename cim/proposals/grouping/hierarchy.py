"""Merge trees of superpixels under several ideas of what belongs together, and the regions they hold."""

from __future__ import annotations

import higra as hg
import numpy as np

from cim.proposals.grouping.superpixels import Superpixels


def grow_trees(superpixels: Superpixels) -> list[np.ndarray]:
    """Parents of every tree: int [2 S - 1] each, leaves first, the last node is the root.

    Two linkages, both from ``higra``: *average*, which merges across the weakest boundary, and *Ward*, which
    merges where the variance inside grows least and so prefers to finish small regions first (the size term of
    Selective Search, IJCV 2013, section 4.2). With deep maps their cues lead, without them colour and texture do.
    """
    sp, edge = superpixels, superpixels.edge
    if len(sp) < 2:
        return []
    if "deep1" in sp.features:
        return [
            _ward(sp, "deep1"),
            _ward(sp, "deep0", "deep1"),
            _ward(sp, "deep1", "deep2"),
            _ward(sp, "deep1", "place"),
            _average(sp, edge / 2 + sp.distance("colour") + sp.distance("deep1")),
            _average(sp, edge / 2 + sp.distance("deep0")),
            _average(sp, edge * sp.distance("deep1")),
        ]
    return [
        _ward(sp, "colour"),
        _ward(sp, "colour", "texture"),
        _ward(sp, "colour", "texture", "place"),
        _ward(sp, "lab", "texture"),
        _ward(sp, "lab"),
        _average(sp, edge),
        _average(sp, sp.distance("colour")),
        _average(sp, edge / 2 + sp.distance("colour")),
        _average(sp, edge / 2 + sp.distance("colour") + sp.distance("texture")),
    ]


def tree_regions(parents: np.ndarray) -> np.ndarray:
    """All nodes of a tree but the root as leaf sets, bool [2 S - 2, S]."""
    count = (len(parents) + 1) // 2
    members = np.zeros((len(parents), count), bool)
    members[np.arange(count), np.arange(count)] = True
    for node, parent in enumerate(parents[:-1]):  # children come before their parents
        members[parent] |= members[node]
    return members[:-1]


def distinct(regions: np.ndarray) -> np.ndarray:
    """Rows of bool [N, S] without repetitions, in order of first appearance."""
    packed = np.packbits(regions, axis=1)
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return regions[np.sort(np.unique(rows, return_index=True)[1])]


def _graph(sp: Superpixels) -> hg.UndirectedGraph:
    graph = hg.UndirectedGraph(len(sp))
    graph.add_edges(sp.source, sp.target)
    return graph


def _average(sp: Superpixels, weights: np.ndarray) -> np.ndarray:
    return hg.binary_partition_tree_average_linkage(_graph(sp), weights.copy(), sp.length.copy())[0].parents()


def _ward(sp: Superpixels, *names: str) -> np.ndarray:
    features = np.concatenate([sp.features[name] for name in names], 1)
    return hg.binary_partition_tree_ward_linkage(_graph(sp), features, sp.areas.copy())[0].parents()
