"""Small segments of a photo and what is known about them: the alphabet of the grouping proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import higra as hg
import numpy as np
from scipy import sparse

_BINS = 8  # soft histogram bins per colour channel
_TEXTURE_BINS = 6
_LAB_RANGE = ((0.0, 100.0), (-45.0, 45.0), (-45.0, 45.0))  # a and b of photographs rarely leave +-45
_TEXTURE_SCALES = (1.0, 2.0)  # pixels
_TEXTURE_MAX = 0.35  # square root of the mean gradient of L / 100 in busy textures
_DEEP_DIMENSIONS = 32  # principal components kept of a deep feature map


@dataclass(frozen=True)
class Superpixels:
    """S segments of a small picture [h, w] and their neighbourhood graph of E edges.

    Attributes:
        labels: int64 [h, w], 0..S-1.
        areas: float64 [S], pixels.
        border: float64 [S, 4], pixels on the top, bottom, left and right border.
        source, target: int64 [E], the two segments of every edge.
        length: float64 [E], pixels of common boundary.
        edge: float64 [E], mean boundary strength, relative to the picture's mean.
        features: name -> float64 [S, D], mean-free with total variance 1 over the picture.
        salience: float64 [S], activation of the deepest map, standardised over the picture; zeros without one.
    """

    labels: np.ndarray
    areas: np.ndarray
    border: np.ndarray
    source: np.ndarray
    target: np.ndarray
    length: np.ndarray
    edge: np.ndarray
    features: dict[str, np.ndarray]
    salience: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    def distance(self, name: str) -> np.ndarray:
        """float64 [E], feature distance of neighbours, relative to the picture's mean."""
        x = self.features[name]
        return _relative(np.linalg.norm(x[self.source] - x[self.target], axis=1))


def make_superpixels(small: np.ndarray, count: int, maps: Sequence[np.ndarray] = ()) -> Superpixels:
    """Segments of a picture by the watershed hierarchy (by volume) of its colour gradient.

    Args:
        small: uint8 [h, w, 3] RGB, h and w at least 1.
        count: segments wanted at most.
        maps: deep feature maps float32 [D, a, b] of the picture, any resolution, fine to coarse.
    """
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    graph, region_graph, labels = _segment(gradient(lab.transpose(2, 0, 1) / 100, 1.0), count)
    size = region_graph.num_vertices()
    source, target = region_graph.edge_list()
    length = hg.rag_accumulate_on_edges(region_graph, hg.Accumulators.sum, np.ones(graph.num_edges()))
    areas = np.bincount(labels.ravel(), minlength=size).astype(np.float64)
    colour = np.concatenate([_soft_bins(lab[..., i], _BINS, *_LAB_RANGE[i]) for i in range(3)])
    strength = hg.weight_graph(graph, gradient(colour, 2.0).astype(np.float64), hg.WeightFunction.max)
    fine = hg.weight_graph(graph, gradient(lab.transpose(2, 0, 1) / 100, 1.0).astype(np.float64), hg.WeightFunction.max)
    edges = [hg.rag_accumulate_on_edges(region_graph, hg.Accumulators.mean, w) for w in (fine, strength)]

    def mean(channels: np.ndarray) -> np.ndarray:
        return segment_means(channels, labels, areas)

    features = {
        "lab": _unit(mean(lab.transpose(2, 0, 1)), areas),
        "colour": _unit(mean(colour), areas),
        "texture": _unit(mean(_texture(lab[..., 0] / 100)), areas),
        "place": _unit(mean(_place(labels.shape)), areas),
    }
    for level, deep in enumerate(maps):
        features[f"deep{level}"] = _deep(deep, labels, areas)
    salience = np.zeros(size)
    if len(maps):
        salience = _standard(_sampler(maps[-1].shape[1:], labels, areas) @ np.linalg.norm(maps[-1], axis=0).ravel())
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    border = np.stack([np.bincount(side, minlength=size) for side in sides], 1).astype(np.float64)
    return Superpixels(
        labels,
        areas,
        border,
        source.astype(np.int64),
        target.astype(np.int64),
        length,
        _relative(edges[0]) + _relative(edges[1]) if len(length) else length,
        features,
        salience,
    )


def gradient(channels: np.ndarray, sigma: float) -> np.ndarray:
    """Strongest directional change over all channels at once (Di Zenzo), float32 [C, h, w] -> [h, w]."""
    xx = yy = xy = np.zeros(channels.shape[1:], np.float32)
    for channel in channels:
        smooth = cv2.GaussianBlur(np.ascontiguousarray(channel, np.float32), (0, 0), sigma)
        dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        xx, yy, xy = xx + dx * dx, yy + dy * dy, xy + dx * dy
    return np.sqrt((xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy * xy))


def segment_means(channels: np.ndarray, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Mean of every channel [C, h, w] over every segment -> float64 [S, C]."""
    flat = labels.ravel()
    sums = [np.bincount(flat, channel.ravel(), minlength=len(areas)) for channel in channels]
    return np.stack(sums, 1) / areas[:, None]


def _segment(strength: np.ndarray, count: int) -> tuple[Any, Any, np.ndarray]:
    """Higra's graphs of the pixels and of the segments, and the segment of every pixel, int64 [h, w]."""
    graph = hg.get_4_adjacency_graph(strength.shape)
    weights = hg.weight_graph(graph, strength.astype(np.float64), hg.WeightFunction.mean)
    tree, altitudes = hg.watershed_hierarchy_by_volume(graph, weights)
    cut = hg.labelisation_horizontal_cut_from_num_regions(tree, altitudes, count)
    region_graph = hg.make_region_adjacency_graph_from_labelisation(graph, cut)
    labels = np.asarray(hg.get_attribute(region_graph, "vertex_map")).reshape(strength.shape)
    return graph, region_graph, labels.astype(np.int64)


def _soft_bins(values: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    """Triangular membership of every pixel in evenly spaced bins, float32 [count, h, w]."""
    place = np.clip((values - low) / (high - low), 0, 1) * (count - 1)
    return np.maximum(0, 1 - np.abs(place - np.arange(count, dtype=np.float32)[:, None, None])).astype(np.float32)


def _texture(lightness: np.ndarray) -> np.ndarray:
    """Soft bins of the local mean gradient at two scales, float32 [2 * 6, h, w]."""
    bins = []
    for scale in _TEXTURE_SCALES:
        smooth = cv2.GaussianBlur(lightness, (0, 0), scale)
        change = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) * (scale / 8)
        bins.append(_soft_bins(np.sqrt(cv2.GaussianBlur(change, (0, 0), 2)), _TEXTURE_BINS, 0, _TEXTURE_MAX))
    return np.concatenate(bins)


def _place(size: tuple[int, int]) -> np.ndarray:
    return np.mgrid[: size[0], : size[1]].astype(np.float32) / max(size)


def _sampler(size: tuple[int, int], labels: np.ndarray, areas: np.ndarray) -> sparse.csr_array:
    """Matrix [S, a * b] that takes a map [a, b], bilinearly resampled to the labels' frame, to its segment means."""
    (low_y, high_y, part_y), (low_x, high_x, part_x) = (
        _taps(old, new) for old, new in zip(size, labels.shape, strict=True)
    )
    corners = (
        (low_y, 1 - part_y, low_x, 1 - part_x),
        (low_y, 1 - part_y, high_x, part_x),
        (high_y, part_y, low_x, 1 - part_x),
        (high_y, part_y, high_x, part_x),
    )
    cells = np.concatenate([(y[:, None] * size[1] + x).ravel() for y, _, x, _ in corners])
    weights = np.concatenate([(wy[:, None] * wx).ravel() for _, wy, _, wx in corners])
    rows = np.tile(labels.ravel(), 4)
    shape = (len(areas), size[0] * size[1])
    return sparse.coo_array((weights / areas[rows], (rows, cells)), shape).tocsr()


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours of every new position among the old ones, and the weight of the upper one."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, old - 1), place - low


def _deep(maps: np.ndarray, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Leading principal components of the segments' mean unit vectors, total variance about 1."""
    flat = maps.reshape(len(maps), -1)
    direction = flat / np.maximum(np.linalg.norm(flat, axis=0, keepdims=True), 1e-6)
    x = _sampler(maps.shape[1:], labels, areas) @ direction.T
    x = x - np.average(x, axis=0, weights=areas)
    variance, axes = np.linalg.eigh((x * areas[:, None]).T @ x / areas.sum())
    return x @ axes[:, ::-1][:, :_DEEP_DIMENSIONS] / np.sqrt(max(variance.sum(), 1e-12))


def _unit(x: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Mean-free, total variance 1 (zeros stay zeros)."""
    x = x - np.average(x, axis=0, weights=areas)
    return x / np.sqrt(max(np.average((x**2).sum(1), weights=areas), 1e-12))


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (x.std() + 1e-6)


def _relative(weights: np.ndarray) -> np.ndarray:
    return weights / (weights.mean() + 1e-9) if len(weights) else weights
