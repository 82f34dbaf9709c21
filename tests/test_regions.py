"""RegionSet against slow, obvious versions of everything it answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from cim.core import regions as regions_module
from cim.core.errors import CimError
from cim.core.regions import RegionSet, load_members, overlaps

MASKS = hnp.arrays(bool, st.tuples(st.integers(0, 19), st.integers(1, 7), st.integers(1, 9)))
few = settings(max_examples=60, deadline=None)


def blobs(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Rectangles, with an empty mask, a full one and a duplicate among them."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
    if count > 4:
        masks[1], masks[2], masks[3] = False, True, masks[0]
    return masks


def slow_box(mask: np.ndarray) -> list[int]:
    inside = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not inside:
        return [0, 0, 0, 0]
    ys, xs = zip(*inside, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def slow_overlaps(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    iou = np.zeros((len(masks), len(masks)))
    containment = np.zeros_like(iou)
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            inter, union, area = (one & other).sum(), (one | other).sum(), other.sum()
            iou[i, j] = inter / union if union else 0
            containment[i, j] = inter / area if area else 0
    return iou, containment


# ---------------------------------------------------------------------- lossless


@few
@given(MASKS)
def test_every_mask_comes_back(masks):
    regions = RegionSet.from_masks(masks)
    assert len(regions) == len(masks) and regions.size == masks.shape[1:]
    assert regions.masks().dtype == bool
    np.testing.assert_array_equal(regions.masks(), masks)
    assert sorted(np.unique(regions.atoms)) == list(range(regions.members.shape[1]))


@few
@given(MASKS)
def test_atoms_are_the_fewest(masks):
    different = {tuple(masks[:, y, x]) for y in range(masks.shape[1]) for x in range(masks.shape[2])}
    assert RegionSet.from_masks(masks).members.shape[1] == len(different)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 200])  # around the byte and word limits of the coding
def test_numbers_of_masks(count):
    masks = blobs(count, (23, 17), count)
    np.testing.assert_array_equal(RegionSet.from_masks(masks).masks(), masks)


def test_memory_orders_and_dtypes_agree():
    masks = blobs(12, (9, 14))
    plain = RegionSet.from_masks(masks)
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)
    last = np.ascontiguousarray(masks.transpose(1, 2, 0)).transpose(2, 0, 1)
    for other in (columns, last, masks[:, ::-1][:, ::-1], masks.astype(np.uint8) * 255, masks.astype(np.float64)):
        np.testing.assert_array_equal(RegionSet.from_masks(other).masks(), plain.masks())


@pytest.mark.parametrize("shape", [(0, 5, 4), (0, 1, 1)])
def test_no_proposals(shape, tmp_path):
    regions = RegionSet.from_masks(np.zeros(shape, bool))
    assert regions.boxes.shape == (0, 4) and regions.grids.shape == (0, 7, 7) and regions.areas.shape == (0,)
    assert regions.iou().shape == regions.containment().shape == (0, 0)
    assert regions.covering(0, 0).shape == (0,) and regions.rles() == [] and regions.masks().shape == shape
    assert len(regions.select(np.zeros(0, int))) == 0 and not regions.mean_mask(np.zeros(0, int)).any()
    regions.save(tmp_path / "none.npz")
    assert RegionSet.load(tmp_path / "none.npz").masks().shape == shape


def test_one_pixel():
    regions = RegionSet.from_masks(np.array([[[True]], [[False]]]))
    np.testing.assert_array_equal(regions.boxes, [[0, 0, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(regions.iou(), [[1, 0], [0, 0]])
    assert regions.grids[0].all() and not regions.grids[1].any()


def test_more_atoms_than_16_bits(tmp_path):
    size = (260, 260)  # 67,600 pixels, each with its own set of masks: the bits of its number
    numbers = np.arange(size[0] * size[1]).reshape(size)
    masks = (numbers[None] >> np.arange(17)[:, None, None] & 1).astype(bool)
    regions = RegionSet.from_masks(masks)
    assert regions.members.shape[1] == numbers.size > 65536
    regions.save(tmp_path / "many.npz")
    loaded = RegionSet.load(tmp_path / "many.npz")
    np.testing.assert_array_equal(loaded.masks(), masks)
    np.testing.assert_array_equal(loaded.boxes, [slow_box(mask) for mask in masks[:, :, :]])


def test_hash_collisions_are_noticed(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 3, (50, 20), dtype=np.uint8)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: type("", (), {"integers": lambda *a, **k: np.uint64(0)}))
    first, kind = regions_module._unique_rows(codes)
    np.testing.assert_array_equal(codes[first][kind], codes)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="masks must be"):
        RegionSet.from_masks(np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="atoms must be"):
        RegionSet(np.zeros(3, np.int32), np.zeros((1, 1), bool))
    with pytest.raises(ValueError, match="scores must be"):
        RegionSet(np.zeros((3, 3), np.int32), np.zeros((2, 1), bool), np.zeros(3, np.float32))


# ---------------------------------------------------------------------- questions


@few
@given(MASKS)
def test_areas_boxes_cover(masks):
    regions = RegionSet.from_masks(masks)
    np.testing.assert_array_equal(regions.areas, masks.sum((1, 2)))
    assert regions.atom_areas.sum() == masks[0].size if len(masks) else True
    np.testing.assert_array_equal(regions.boxes, np.array([slow_box(m) for m in masks]).reshape(-1, 4))
    assert regions.boxes.dtype == np.float32
    y, x = masks.shape[1] - 1, masks.shape[2] // 2
    np.testing.assert_array_equal(regions.covering(y, x), masks[:, y, x])


@few
@given(MASKS)
def test_overlaps(masks):
    iou, containment = slow_overlaps(masks)
    regions = RegionSet.from_masks(masks)
    np.testing.assert_allclose(regions.iou(), iou, rtol=1e-6)
    np.testing.assert_allclose(regions.containment(), containment, rtol=1e-6)


@few
@given(MASKS)
def test_sparse_product_is_the_dense_one(masks):
    regions = RegionSet.from_masks(masks)
    sparse = regions_module._sparse_overlaps(regions.members, regions.atom_areas.astype(np.float32))
    for one, other in zip(sparse, regions.overlaps(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype == np.float32


def test_sparse_product_is_taken_for_many_small_regions(monkeypatch):
    members, areas = np.eye(600, dtype=bool), np.arange(600)
    members[0] = True
    expected = overlaps(members.astype(np.float32), areas.astype(np.float32))
    monkeypatch.setattr(regions_module, "_sparse_overlaps", lambda *a: pytest.fail("too early"))
    overlaps(members[:100], areas)
    monkeypatch.undo()
    calls = []
    real = regions_module._sparse_overlaps
    monkeypatch.setattr(regions_module, "_sparse_overlaps", lambda *a: calls.append(1) or real(*a))
    found = overlaps(members, areas)
    assert calls
    np.testing.assert_array_equal(found.iou, expected.iou)
    np.testing.assert_array_equal(found.containment, expected.containment)


def test_torch_overlaps_are_numpys():
    regions = RegionSet.from_masks(blobs(30, (40, 31)))
    members, areas = torch.from_numpy(regions.members).float(), torch.from_numpy(regions.atom_areas).float()
    for one, other in zip(overlaps(members, areas), regions.overlaps(), strict=True):
        assert isinstance(one, torch.Tensor)
        np.testing.assert_allclose(one.numpy(), other, atol=1e-7)


def test_pixel_counts_beyond_float32_stay_whole():
    size = (4097, 4097)  # 2**24 + 8193 pixels
    atoms = np.zeros(size, np.int32)
    atoms[0, 0] = 1
    regions = RegionSet(atoms, np.array([[True, True], [True, False]]))
    assert regions.iou().dtype == np.float64
    assert regions.iou()[0, 1] == (atoms.size - 1) / atoms.size


@few
@given(MASKS)
def test_grids_are_pillows(masks):
    regions = RegionSet.from_masks(masks)
    for mask, box, grid in zip(masks, regions.boxes.astype(int), regions.grids, strict=True):
        if mask.any():
            crop = Image.fromarray(mask[box[1] : box[3], box[0] : box[2]].astype(np.uint8))
            np.testing.assert_array_equal(grid, np.asarray(crop.resize((7, 7), Image.Resampling.NEAREST)))
        else:
            assert not grid.any()


@few
@given(MASKS, st.data())
def test_mean_mask_and_foreign_masks(masks, data):
    regions = RegionSet.from_masks(masks)
    index = np.array(data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=5)) if len(masks) else [], int)
    mean = regions.mean_mask(index)
    expected = masks[index].mean(0) if len(index) else np.zeros(masks.shape[1:])
    np.testing.assert_allclose(mean[regions.atoms], expected, atol=1e-12)

    strong = mean > 0.5
    np.testing.assert_array_equal(regions.atom_mask(strong), expected > 0.5)
    every = np.concatenate([(expected > 0.5)[None], masks])
    np.testing.assert_allclose(regions.iou_with(strong), slow_overlaps(every)[0][0, 1:], rtol=1e-6)

    foreign = np.random.default_rng(len(masks)).random((3, *masks.shape[1:])) > 0.4
    expected = slow_overlaps(np.concatenate([foreign, masks]))[0][:3, 3:]
    np.testing.assert_allclose(regions.iou_with_masks(foreign), expected, rtol=1e-6)
    assert regions.iou_with_masks(foreign[:0]).shape == (0, len(masks))


@few
@given(MASKS)
def test_rles_are_cocos(masks):
    regions = RegionSet.from_masks(masks)
    for mask, rle in zip(masks, regions.rles(), strict=True):
        assert sum(rle["counts"]) == mask.size
        packed = coco_mask.frPyObjects(rle, *rle["size"])
        np.testing.assert_array_equal(coco_mask.decode(packed), mask)
        assert packed["counts"] == coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]


def test_rles_of_some():
    masks = blobs(9, (11, 6))
    regions = RegionSet.from_masks(masks)
    assert regions.rles([4, 2]) == [regions.rles()[4], regions.rles()[2]] and regions.rles([]) == []
    np.testing.assert_array_equal(regions.masks([4, 2]), masks[[4, 2]])


# ---------------------------------------------------------------------- making others


@few
@given(MASKS, st.data())
def test_select_and_compact(masks, data):
    scores = np.arange(len(masks), dtype=np.float32)
    regions = RegionSet.from_masks(masks, scores)
    index = np.array(data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=8)) if len(masks) else [], int)
    chosen = regions.select(index)
    np.testing.assert_array_equal(chosen.masks(), masks[index])
    np.testing.assert_array_equal(chosen.scores, scores[index])
    assert chosen.members.shape[1] == RegionSet.from_masks(masks[index]).members.shape[1]  # the fewest atoms
    flags = np.arange(len(masks)) % 2 == 0
    np.testing.assert_array_equal(regions.select(flags).masks(), masks[flags])


@few
@given(MASKS, st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_resize_and_flip(masks, size):
    regions = RegionSet.from_masks(masks)
    resized = regions.resize(size)
    rows = [min(int((k + 0.5) * masks.shape[1] / size[0]), masks.shape[1] - 1) for k in range(size[0])]
    columns = [min(int((k + 0.5) * masks.shape[2] / size[1]), masks.shape[2] - 1) for k in range(size[1])]
    np.testing.assert_array_equal(resized.masks(), masks[:, rows][:, :, columns])
    assert resized.atoms.max() + 1 == resized.members.shape[1]
    np.testing.assert_array_equal(regions.flip().masks(), masks[:, :, ::-1])


@few
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_from_partitions(seed, parts):
    rng = np.random.default_rng(seed)
    partitions, masks = [], []
    for _ in range(parts):
        labels = rng.integers(0, 4, (6, 5))
        regions = rng.random((rng.integers(0, 4), 4)) > 0.5
        partitions.append((labels, regions))
        masks += [np.isin(labels, np.flatnonzero(row)) for row in regions]
    scores = np.arange(len(masks), dtype=np.float64)
    joined = RegionSet.from_partitions(partitions, scores)
    expected = np.array(masks, bool).reshape(-1, 6, 5)
    np.testing.assert_array_equal(joined.masks(), expected)
    np.testing.assert_array_equal(joined.scores, scores)
    assert joined.members.shape[1] == RegionSet.from_masks(expected).members.shape[1]


# ---------------------------------------------------------------------- disk


@few
@given(masks=MASKS)
def test_saved_is_loaded(tmp_path_factory, masks):
    path = tmp_path_factory.mktemp("regions") / "one.npz"
    regions = RegionSet.from_masks(masks, np.linspace(0, 1, len(masks)))
    regions.save(path)
    loaded = RegionSet.load(path)
    np.testing.assert_array_equal(loaded.masks(), masks)
    np.testing.assert_array_equal(loaded.scores, regions.scores)
    np.testing.assert_array_equal(loaded.boxes, regions.boxes)
    members, areas = load_members(path)
    np.testing.assert_array_equal(members, regions.members)
    np.testing.assert_array_equal(areas, regions.atom_areas)


def test_damaged_files(tmp_path):
    path = tmp_path / "one.npz"
    with pytest.raises(CimError, match="no proposals for this image"):
        RegionSet.load(path)
    RegionSet.from_masks(blobs(9, (30, 20))).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-60]):
        path.write_bytes(damaged)
        with pytest.raises(CimError, match="damaged region file"):
            RegionSet.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(CimError, match="damaged region file"):
        load_members(path)


@pytest.mark.parametrize("change", ["atoms beyond the table", "flat atoms", "areas", "scores"])
def test_contents_that_disagree(tmp_path, change):
    path = tmp_path / "one.npz"
    RegionSet.from_masks(blobs(9, (30, 20))).save(path)
    content = dict(np.load(path))
    if change == "atoms beyond the table":
        content["atoms"] = content["atoms"] + 1
    elif change == "flat atoms":
        content["atoms"] = content["atoms"].ravel()
    else:
        name = {"areas": "atom_areas", "scores": "scores"}[change]
        content[name] = content[name][:-1]
    np.savez(path, **content)
    with pytest.raises(CimError, match="damaged region file"):
        RegionSet.load(path)


# ---------------------------------------------------------------------- the published program


@pytest.mark.parametrize("name", ["2007_000100", "2007_000104"])
def test_equals_the_published_program(reference, name):
    cells = loadmat(reference / "VOC2012" / "COB_SBD_trainaug" / f"{name}.mat")["maskmat"][:, 0]
    regions = RegionSet.from_masks(np.stack(list(cells)))
    expected = np.load(reference / "expected" / "proposals.npz")
    np.testing.assert_array_equal(regions.iou().astype(np.float16), expected[f"{name}.iou"])
    np.testing.assert_array_equal(regions.containment().astype(np.float16), expected[f"{name}.containment"])
    np.testing.assert_array_equal(regions.boxes, expected[f"{name}.boxes"])
    np.testing.assert_array_equal(regions.grids, expected[f"{name}.grids"])


def test_benchmark_runs(capsys):
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "regions.py"
    spec = importlib.util.spec_from_file_location("regions_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.main(["--mat", "--synthetic", "16", "--repeats", "1", "--sample", "9"]) == 0
    times, sizes = capsys.readouterr().out.strip().split("\n\n")
    assert [len(part.splitlines()) for part in (times, sizes)] == [4, 4] and "| nested | 16 | 9 |" in times
