"""Masks as one polygon each, for programs that know nothing else, and polygons as masks.

A polygon runs through the middles of the mask's outermost pixels, and whoever paints it paints its edge as well: that
is what OpenCV's ``fillPoly`` does, with which ultralytics and supervision make masks of polygons. Painted by the
even-odd rule, the outlines of parts and holes give the mask back bit for bit. Formats that take one polygon an instance
get them joined: bridges of no width lead from part to part and into holes. What a bridge crosses becomes mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import Delaunay, QhullError


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of all parts and holes of a mask bool [H, W], each int32 [n, 2] of x, y; none of an empty one."""
    found, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [outline.reshape(-1, 2).astype(np.int32) for outline in found]


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Outlines as one polygon int32 [n, 2], at least three points; the shortest bridges that connect them all."""
    links = _shortest_bridges(rings) if len(rings) > 1 else []
    inserted: list[dict[int, list[np.ndarray]]] = [{} for _ in rings]
    order = [0, *(link[0] for link in links)]
    start = {0: 0, **{ring: vertex for ring, vertex, _, _ in links}}
    parent = {ring: (other, at) for ring, _, other, at in links}
    for ring in reversed(order):  # a ring joins after the one that it is tied to
        points, inside = rings[ring], inserted[ring]
        path: list[np.ndarray] = []
        for vertex in np.roll(np.arange(len(points)), -start[ring]):
            path.append(points[vertex][None])
            for child in inside.get(int(vertex), ()):
                path += [child, points[vertex][None]]
        whole = np.concatenate([*path, points[start[ring]][None]])
        if ring == 0:
            return np.concatenate([whole[:-1], whole[:1].repeat(max(0, 4 - len(whole)), 0)])
        other, at = parent[ring]
        inserted[other].setdefault(at, []).append(whole)
    raise AssertionError("the first ring comes last")


def _shortest_bridges(rings: Sequence[np.ndarray]) -> list[tuple[int, int, int, int]]:
    """(ring, its vertex, ring before, its vertex) of every ring but the first, each after the one that it is tied to.

    The shortest bridge out of any group of rings is an edge of the Delaunay triangulation of all their points.
    """
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    first = np.cumsum([0, *(len(ring) for ring in rings)])
    points = np.concatenate(rings)
    ends = _neighbours(points)
    ends = ends[owner[ends[:, 0]] != owner[ends[:, 1]]]
    length = np.hypot(*(points[ends[:, 0]] - points[ends[:, 1]]).T)
    ends = ends[np.argsort(length, kind="stable")]
    pairs, shortest = np.unique(np.sort(owner[ends], axis=1), axis=0, return_index=True)
    rank = shortest + 1  # as good as the length; 0 would mean that there is no bridge
    tree = minimum_spanning_tree(coo_array((rank, pairs.T), shape=(len(rings),) * 2).tocsr())
    order, before = breadth_first_order(tree, 0, directed=False)
    chosen = {tuple(pair): ends[at] for pair, at in zip(pairs.tolist(), shortest, strict=True)}
    links = []
    for ring in order[1:].tolist():
        other = int(before[ring])
        one, two = chosen[min(ring, other), max(ring, other)]
        here, there = (one, two) if owner[one] == ring else (two, one)
        links.append((ring, int(here - first[ring]), other, int(there - first[other])))
    return links


def _neighbours(points: np.ndarray) -> np.ndarray:
    """Pairs of indices [k, 2] that tie all points together: edges of their triangulation, and points that coincide."""
    places, index = np.unique(points, axis=0, return_inverse=True)
    order = np.argsort(index.ravel(), kind="stable")
    same = index.ravel()[order]
    twins = np.stack([order[:-1], order[1:]], 1)[same[:-1] == same[1:]]
    try:
        corners = Delaunay(places).simplices
        edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    except (QhullError, ValueError):  # fewer than three, or all in a line, along which they are sorted
        edges = np.stack([np.arange(len(places) - 1), np.arange(1, len(places))], 1)
    return np.concatenate([twins, order[np.searchsorted(same, edges)]])


def paint(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Mask bool [H, W] of polygons of whole pixels [n, 2] each, painted together by the even-odd rule, edges too."""
    canvas = np.zeros(size, np.uint8)
    if polygons:
        cv2.fillPoly(canvas, [np.asarray(polygon, np.int32).reshape(-1, 1, 2) for polygon in polygons], 1)
    return canvas.astype(bool)
