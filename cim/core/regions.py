"""All masks of one image as atoms: the data structure that carries this project.

Pixels that lie in exactly the same set of proposals form one *atom*. A label map of the atoms
(H x W) and a table "proposal i contains atom a" (N x A) replace N pictures without losing a pixel,
and IoU, containment, boxes, 7x7 grids, point cover and mean masks become small products on the
table. NumPy only; :func:`overlaps` also takes torch tensors on any device.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from cim.core.errors import CimError
from cim.core.files import write_npz
from cim.core.types import RawRle

GRID = 7  # side of the mask grids fed to MaskFuse (paper, section 3.3)
_SPARSE_WORK, _SPARSE_SHARE = 1e8, 0.05  # multiplications from which, and share of ones below which, sparse pays
_NO_SCORES: Any = None  # a RegionSet makes zeros of it
_FLOAT32_EXACT = 2**24  # pixel counts above this need float64 to stay whole numbers


class Overlaps(NamedTuple):
    """IoU[i, j] = |i & j| / |i | j|, containment[i, j] = |i & j| / |j|; both [N, N] float."""

    iou: Any
    containment: Any


def overlaps(members: Any, areas: Any) -> Overlaps:
    """IoU and containment of all pairs of proposals (METHOD section 1).

    Args:
        members: [N, A], whether the proposal contains the atom: floating torch tensor on any device, floating
            NumPy array, or bool NumPy array (the fastest for NumPy: many small regions are multiplied sparsely).
        areas: [A], pixels per atom, same kind as members (any number type beside bool members).

    Returns:
        two [N, N] matrices of the same kind (bool: float32, or float64 beyond 2**24 pixels); pairs with an empty
        denominator are 0.
    """
    if isinstance(members, np.ndarray) and members.dtype == np.bool_:
        kind = np.float32 if areas.sum() < _FLOAT32_EXACT else np.float64
        areas = areas.astype(kind)
        if len(members) * members.size > _SPARSE_WORK and np.count_nonzero(members) < _SPARSE_SHARE * members.size:
            return _sparse_overlaps(members, areas)
        members = members.astype(kind)
    weighted = members * areas
    inter = weighted @ members.T
    area = weighted.sum(1)
    union = area[:, None] + area[None, :] - inter
    # A zero denominator has a zero numerator: 0 / 1 is the answer wanted.
    return Overlaps(inter / (union + (union == 0)), inter / (area + (area == 0))[None, :])


def _sparse_overlaps(members: np.ndarray, areas: np.ndarray) -> Overlaps:
    """The same for bool members of which few are set; only pairs that share a pixel are computed."""
    from scipy import sparse

    rows, columns = np.divmod(np.flatnonzero(members), members.shape[1])  # np.nonzero in 2-D is many times slower
    ends = np.append(0, np.cumsum(np.bincount(rows, minlength=len(members))))
    weighted = sparse.csr_matrix((areas[columns], columns, ends), members.shape)
    table = sparse.csr_matrix((np.ones_like(weighted.data), columns, ends), members.shape)
    inter = (weighted @ table.T).tocoo()
    area = np.bincount(rows, areas[columns], minlength=len(members)).astype(areas.dtype)
    result = Overlaps(*(np.zeros((len(members), len(members)), areas.dtype) for _ in range(2)))
    result.iou[inter.row, inter.col] = inter.data / (area[inter.row] + area[inter.col] - inter.data)
    result.containment[inter.row, inter.col] = inter.data / area[inter.col]
    return result


@dataclass(frozen=True, eq=False)
class RegionSet:
    """N masks of one image, held as atoms.

    Attributes:
        atoms: int32 [H, W], atom of every pixel, values 0..A-1, each of them used.
        members: bool [N, A], whether proposal n contains atom a.
        scores: float32 [N], the maker's own ranking (higher is better); zeros when it has none.
    """

    atoms: np.ndarray
    members: np.ndarray
    scores: np.ndarray = _NO_SCORES

    if TYPE_CHECKING:  # the dataclass makes it: what may be left out when a RegionSet is made is always there later

        def __init__(self, atoms: np.ndarray, members: np.ndarray, scores: np.ndarray | None = None) -> None: ...

    def __post_init__(self) -> None:
        if self.atoms.ndim != 2 or self.members.ndim != 2:
            raise ValueError(
                f"atoms must be [H, W] and members [N, A]; found {self.atoms.shape} and {self.members.shape}"
            )
        if self.scores is None:
            object.__setattr__(self, "scores", np.zeros(len(self.members), np.float32))
        if self.scores.shape != (len(self.members),):
            raise ValueError(f"scores must be [{len(self.members)}]; found {list(self.scores.shape)}")

    # ------------------------------------------------------------------ making

    @classmethod
    def from_masks(cls, masks: np.ndarray, scores: np.ndarray | None = None) -> RegionSet:
        """Losslessly from masks [N, H, W] (bool, or anything where non-zero means inside)."""
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise ValueError(f"masks must be [N, H, W]; found {list(masks.shape)}")
        if masks.transpose(0, 2, 1).flags.c_contiguous and not masks.flags.c_contiguous:
            # MATLAB's files are column-major: scan them in memory order rather than copy them.
            turned = cls.from_masks(masks.transpose(0, 2, 1), scores)
            return cls(np.ascontiguousarray(turned.atoms.T), turned.members, turned.scores)
        masks = np.ascontiguousarray(masks)
        count, height, width = masks.shape
        packed = _packed(masks.reshape(count, height * width))
        starts = _run_starts(packed)
        codes = np.ascontiguousarray(packed[:, starts].T)
        first, labels = _unique_rows(codes)
        lengths = np.diff(np.append(starts, height * width))
        atoms = np.repeat(labels.astype(np.int32), lengths).reshape(height, width)
        members = np.ascontiguousarray(np.unpackbits(codes[first], axis=1, count=count).T).view(bool)
        return cls(atoms, members, _as_scores(scores))

    @classmethod
    def from_partitions(
        cls,
        partitions: Sequence[tuple[np.ndarray, np.ndarray]],
        scores: np.ndarray | None = None,
    ) -> RegionSet:
        """From several segmentations of one image, each with the regions built from its segments.

        Args:
            partitions: pairs (labels int [H, W] with values 0..L-1, regions bool [n, L]).
            scores: float [sum of n], optional.

        Returns:
            the regions of all partitions in order, over the common refinement of the segmentations.
        """
        combined = partitions[0][0].astype(np.int64)
        for labels, regions in partitions[1:]:
            _, combined = np.unique(combined.ravel() * regions.shape[1] + labels.ravel(), return_inverse=True)
        shape = partitions[0][0].shape
        _, first, atoms = np.unique(combined.ravel(), return_index=True, return_inverse=True)
        members = [regions[:, labels.ravel()[first]] for labels, regions in partitions]
        merged = cls(atoms.reshape(shape).astype(np.int32), np.concatenate(members).astype(bool), _as_scores(scores))
        return merged.compact()

    def compact(self) -> RegionSet:
        """The same masks over the fewest atoms: atoms with equal members become one."""
        codes = np.ascontiguousarray(np.packbits(self.members, axis=0).T)
        first, labels = _unique_rows(codes)
        return RegionSet(labels.astype(np.int32)[self.atoms], self.members[:, first], self.scores)

    def select(self, index: np.ndarray) -> RegionSet:
        """The proposals at ``index`` (int or bool array), in that order, over compacted atoms."""
        return RegionSet(self.atoms, self.members[index], self.scores[index]).compact()

    def resize(self, size: tuple[int, int]) -> RegionSet:
        """Masks resampled to (H, W), nearest neighbour; atoms that vanish are dropped."""
        rows, columns = (nearest(new, old) for new, old in zip(size, self.size, strict=True))
        used, atoms = np.unique(self.atoms[rows[:, None], columns], return_inverse=True)
        return RegionSet(atoms.reshape(size).astype(np.int32), self.members[:, used], self.scores)

    def flip(self) -> RegionSet:
        """Masks mirrored left to right."""
        return RegionSet(np.ascontiguousarray(self.atoms[:, ::-1]), self.members, self.scores)

    # ------------------------------------------------------------------ asking

    def __len__(self) -> int:
        return len(self.members)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.atoms.shape

    @cached_property
    def atom_areas(self) -> np.ndarray:
        """int64 [A], pixels."""
        return np.bincount(self.atoms.ravel(), minlength=self.members.shape[1])

    @cached_property
    def areas(self) -> np.ndarray:
        """int64 [N], pixels per mask."""
        # Whole numbers far below 2**53: the floating product is exact, and BLAS does it.
        return (self.members.astype(np.float64) @ self.atom_areas.astype(np.float64)).astype(np.int64)

    @cached_property
    def atom_boxes(self) -> np.ndarray:
        """int64 [A, 4], tight xyxy (exclusive) box of every atom."""
        count, (height, width) = self.members.shape[1], self.size
        boxes = np.empty((count, 4), np.int64)
        for axis, (length, size) in enumerate(((width, count), (height, count))):
            # Presence of an atom in a column (row), found once per distinct pair.
            other = np.arange(length) if axis == 0 else np.arange(length)[:, None]
            seen = np.unique(self.atoms.astype(np.int64) * length + other)
            atom, position = np.divmod(seen, length)
            begin = np.searchsorted(atom, np.arange(size))
            end = np.searchsorted(atom, np.arange(size), side="right") - 1
            boxes[:, axis], boxes[:, axis + 2] = position[begin], position[end] + 1
        return boxes

    @cached_property
    def boxes(self) -> np.ndarray:
        """float32 [N, 4], tight xyxy boxes with x2, y2 exclusive; an empty mask has 0, 0, 0, 0."""
        if not len(self):
            return np.zeros((0, 4), np.float32)
        low = np.where(self.members[:, :, None], self.atom_boxes[:, :2], np.iinfo(np.int64).max).min(1)
        high = np.where(self.members[:, :, None], self.atom_boxes[:, 2:], -1).max(1)
        boxes = np.concatenate([low, high], 1)
        boxes[~self.members.any(1)] = 0
        return boxes.astype(np.float32)

    @cached_property
    def grids(self) -> np.ndarray:
        """bool [N, 7, 7], every mask cropped to its box and sampled as Pillow's nearest does."""
        low, extent = self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        # Pillow adds up steps of extent / 7 from half a step, and rounds as that sum does.
        steps = np.repeat((extent.astype(np.float64) / GRID)[:, :, None], GRID, axis=2)
        steps[:, :, 0] *= 0.5
        at = low[:, :, None].astype(np.int64) + np.cumsum(steps, axis=2).astype(np.int64)
        columns, rows = at[:, 0], at[:, 1]
        sampled = self.atoms[rows[:, :, None], columns[:, None, :]]
        return self.members[np.arange(len(self))[:, None, None], sampled]

    @cached_property
    def _product_dtype(self) -> type:
        return np.float32 if self.atoms.size < _FLOAT32_EXACT else np.float64

    def overlaps(self) -> Overlaps:
        """IoU and containment, float32 (float64 beyond 2**24 pixels) [N, N]."""
        return overlaps(self.members, self.atom_areas)

    def iou(self) -> np.ndarray:
        """[N, N] mask IoU."""
        return self.overlaps().iou

    def containment(self) -> np.ndarray:
        """[N, N], [i, j] = how much of j lies inside i."""
        return self.overlaps().containment

    def intersections(self, atoms: np.ndarray) -> np.ndarray:
        """Pixels that every proposal shares with other regions over the same atoms.

        Args:
            atoms: bool or weights [..., A].

        Returns:
            [..., N] floating.
        """
        kind = self._product_dtype
        return (atoms * self.atom_areas).astype(kind) @ self.members.T.astype(kind)

    def iou_with(self, atoms: np.ndarray) -> np.ndarray:
        """IoU [..., N] of regions given as atom selections, bool [..., A], with every proposal."""
        inter = self.intersections(atoms)
        union = np.where(atoms, self.atom_areas, 0).sum(-1)[..., None] + self.areas - inter
        return inter / np.maximum(union, 1)

    def project(self, masks: np.ndarray) -> np.ndarray:
        """Pixels of every atom inside each of M foreign masks [M, H, W] -> float64 [M, A]."""
        flat, count = self.atoms.ravel(), self.members.shape[1]
        rows = [np.bincount(flat[mask.ravel().astype(bool)], minlength=count) for mask in masks]
        return np.array(rows, np.float64).reshape(len(rows), count)

    def iou_with_masks(self, masks: np.ndarray) -> np.ndarray:
        """IoU [M, N] of M foreign masks [M, H, W], ground truth for example, with every proposal."""
        inter = self.project(masks) @ self.members.T.astype(np.float64)
        area = np.asarray(masks, bool).reshape(len(masks), self.atoms.size).sum(1)
        return inter / np.maximum(area[:, None] + self.areas[None] - inter, 1)

    def covering(self, y: int, x: int) -> np.ndarray:
        """bool [N], which proposals contain the pixel."""
        return self.members[:, self.atoms[y, x]]

    def mean_mask(self, index: np.ndarray) -> np.ndarray:
        """Average of the chosen masks, float64 [A] per atom; zeros when none is chosen."""
        chosen = self.members[index]
        return chosen.mean(0) if len(chosen) else np.zeros(self.members.shape[1])

    # ------------------------------------------------------------------ masks back

    def masks(self, index: np.ndarray | Sequence[int] | None = None) -> np.ndarray:
        """bool [n, H, W] of the proposals at ``index`` (all when None)."""
        chosen = self.members if index is None else self.members[np.asarray(index, dtype=np.int64)]
        return np.take(chosen, self.atoms, axis=1)  # contiguous masks, which indexing does not give

    def atom_mask(self, atoms: np.ndarray) -> np.ndarray:
        """bool [H, W] of an atom selection bool [A]."""
        return np.asarray(atoms, bool)[self.atoms]

    def rles(self, index: np.ndarray | Sequence[int] | None = None) -> list[RawRle]:
        """COCO's uncompressed run lengths (column-major, first run counts zeros), one dict each."""
        chosen = self.members if index is None else self.members[np.asarray(index, dtype=np.int64)]
        column_major = self.atoms.ravel(order="F")
        starts = np.flatnonzero(np.diff(column_major, prepend=-1))
        values = chosen[:, column_major[starts]]
        return [_runs(row, starts, self.atoms.size, self.size) for row in values]

    # ------------------------------------------------------------------ disk

    def arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`save` writes."""
        return {
            "atoms": _smallest(self.atoms),
            "members": np.packbits(self.members, axis=1),
            "shape": np.array(self.members.shape, np.int64),
            "atom_areas": self.atom_areas,
            "scores": self.scores.astype(np.float32),
        }

    def save(self, path: str | Path) -> None:
        """One small file, written atomically."""
        write_npz(path, **self.arrays())

    @classmethod
    def load(cls, path: str | Path, content: bytes | None = None) -> RegionSet:
        """What :meth:`save` wrote.

        Args:
            content: of the file, where it has been read already.

        Raises:
            CimError: missing, damaged or foreign file.
        """
        members, areas, scores, atoms = _read(path, with_atoms=True, content=content)
        loaded = cls(atoms.astype(np.int32), members, scores)
        loaded.__dict__["atom_areas"] = areas  # the cached property, already known
        return loaded


def load_members(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Only (members bool [N, A], atom areas int64 [A]) of a stored RegionSet: all that overlaps need."""
    return _read(path, with_atoms=False)[:2]


@overload
def _read(
    path: str | Path, with_atoms: Literal[True], content: bytes | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...
@overload
def _read(
    path: str | Path, with_atoms: Literal[False], content: bytes | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]: ...
def _read(
    path: str | Path, with_atoms: bool, content: bytes | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    try:
        with np.load(path if content is None else io.BytesIO(content), allow_pickle=False) as file:
            count, atoms = (int(n) for n in file["shape"])
            members = np.unpackbits(file["members"], axis=1, count=atoms).view(bool)
            areas, scores = file["atom_areas"], file["scores"]
            if members.shape != (count, atoms) or areas.shape != (atoms,) or scores.shape != (count,):
                raise ValueError("table, areas, scores and shape disagree")
            if areas.dtype.kind not in "iu" or scores.dtype.kind != "f":
                raise ValueError("areas or scores that are no numbers")
            labels = file["atoms"] if with_atoms else None
            if labels is not None and (labels.ndim != 2 or labels.dtype.kind != "u"):
                raise ValueError("no label map")
            if labels is not None and not np.array_equal(np.bincount(labels.ravel(), minlength=atoms), areas):
                raise ValueError("label map and table disagree")
            return members, areas, scores, labels
    except (FileNotFoundError, NotADirectoryError):  # a pack is no directory
        raise CimError("no proposals for this image", path=path, fix="cim proposals") from None
    except Exception as error:  # zipfile, zlib, KeyError, ValueError, EOFError: all mean the same here
        raise CimError(
            "damaged region file", path=path, expected="a file written by RegionSet.save", found=error
        ) from error


def _packed(masks: np.ndarray) -> np.ndarray:
    """Eight masks to a byte, as np.packbits does along axis 0: [N, P] -> uint8 [ceil(N / 8), P].

    One pass over the masks with the byte row in cache; np.packbits takes 25 times as long on this axis.
    """
    count, pixels = masks.shape
    packed = np.zeros((-(-count // 8), pixels), np.uint8)
    for number, mask in enumerate(masks):
        row = packed[number // 8]
        inside = mask if mask.dtype == np.bool_ else mask != 0
        np.add(row, row, out=row)  # a shift to the left, faster than NumPy's
        np.bitwise_or(row, inside.view(np.uint8), out=row)
    if count % 8:
        packed[-1] <<= 8 - count % 8
    return packed


def _run_starts(packed: np.ndarray) -> np.ndarray:
    """Pixels whose bytes differ from those of the pixel before; the first pixel always. uint8 [B, P] -> int64 [R]."""
    changed = np.zeros(packed.shape[1], np.uint8)
    different = np.empty(max(packed.shape[1] - 1, 0), np.uint8)
    for row in packed:
        np.bitwise_xor(row[1:], row[:-1], out=different)
        np.bitwise_or(changed[1:], different, out=changed[1:])
    changed[:1] = 1
    return np.flatnonzero(changed != 0)


def _unique_rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the first row of each kind and the kind of every row, for uint8 [R, B], exactly."""
    rows, width = codes.shape
    padded = np.zeros((rows, -(-max(width, 1) // 8) * 8), np.uint8)
    padded[:, :width] = codes
    words = padded.view(np.uint64)
    if words.shape[1] == 1:
        key = words[:, 0]
    else:  # a 64-bit mix first, then proof that no two different rows met in it
        odd = np.random.default_rng(7).integers(0, 2**63, words.shape[1], dtype=np.uint64) * 2 + 1
        mixed = words * odd
        key = (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    _, first, kind = np.unique(key, return_index=True, return_inverse=True)
    if words.shape[1] > 1 and not np.array_equal(words[first[kind]], words):
        _, first, kind = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return first, kind.ravel()


def _as_scores(scores: np.ndarray | None) -> np.ndarray | None:
    return None if scores is None else np.asarray(scores, np.float32)


def nearest(new: int, old: int) -> np.ndarray:
    """Position among ``old`` pixels of the centre of each of ``new`` pixels, int64 [new]."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)


def _smallest(labels: np.ndarray) -> np.ndarray:
    highest = int(labels.max(initial=0))
    return labels.astype(np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.uint32)


def _runs(values: np.ndarray, starts: np.ndarray, pixels: int, size: tuple[int, int]) -> RawRle:
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = starts[changes]
    edges = (
        np.concatenate([[0], edges, [pixels]]) if not values[:1].any() else np.concatenate([[0, 0], edges, [pixels]])
    )
    return {"size": [int(size[0]), int(size[1])], "counts": np.diff(edges).tolist()}
