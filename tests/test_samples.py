"""Photo, proposals and first labels -> Sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.datasets.base import Record
from cim.storage.published import PublishedProposals
from cim.training.samples import frame, keep_best, make_sample, normalise, overlaps_of

H, W = 40, 60


@pytest.fixture
def record(tmp_path: Path) -> Record:
    photo = np.zeros((H, W, 3), np.uint8)
    photo[:, : W // 2] = (255, 0, 0)
    Image.fromarray(photo).save(tmp_path / "a.png")
    return Record("a", tmp_path / "a.png", (H, W), (1,))


@pytest.fixture
def regions() -> RegionSet:
    masks = np.zeros((3, H, W), bool)
    masks[0, 5:20, 5:25] = True
    masks[1, 0:40, 30:60] = True
    masks[2, 5:20, 5:15] = True
    return RegionSet.from_masks(masks, np.array([0.1, 0.9, 0.5], np.float32))


def clusters() -> Clusters:
    return Clusters(np.array([2, -1, 0]), np.array([1, 0, 2]))


def test_frame_and_contents(record: Record, regions: RegionSet):
    sample = make_sample(record, regions, clusters(), 120, False, 3)
    assert sample.image.shape == (3, 80, 120) and sample.atoms.shape == (80, 120)
    torch.testing.assert_close(sample.boxes, torch.from_numpy(regions.boxes) * 2)
    assert torch.equal(sample.grids, torch.from_numpy(regions.grids).float())
    assert sample.tags.tolist() == [0, 1, 0]
    assert sample.class_ids.tolist() == [2, -1, 0] and sample.cluster.tolist() == [1, 0, 2]
    red = sample.image[:, 40, 20]
    torch.testing.assert_close(red, torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    resized = regions.resize((80, 120)).masks()
    assert np.array_equal(sample.members.numpy()[:, sample.atoms.numpy()], resized)


def test_flip_mirrors_everything(record: Record, regions: RegionSet):
    """Proposals of the mirrored photo, made anew, are the flipped sample's."""
    flipped = make_sample(record, regions, None, W, True, 3)
    mirrored = RegionSet.from_masks(regions.masks()[:, :, ::-1])
    torch.testing.assert_close(flipped.boxes, torch.from_numpy(mirrored.boxes))
    assert torch.equal(flipped.grids, torch.from_numpy(mirrored.grids).float())
    assert np.array_equal(flipped.members.numpy()[:, flipped.atoms.numpy()], mirrored.masks())
    straight = make_sample(record, regions, None, W, False, 3)
    assert torch.equal(flipped.image, straight.image.flip(2))
    assert flipped.class_ids.tolist() == [-1, -1, -1]


def test_overlaps_equal_the_regions_own(record: Record, regions: RegionSet):
    sample = make_sample(record, regions, None, 97, True, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = overlaps_of(sample)
    for mine, theirs in zip(found, regions.overlaps(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_cap_keeps_the_best_rows_in_order(record: Record, regions: RegionSet):
    sample = make_sample(record, regions, clusters(), W, False, 3, max_proposals=2)
    assert sample.proposal.tolist() == [1, 2]
    assert sample.class_ids.tolist() == [-1, 0]
    torch.testing.assert_close(sample.boxes, torch.from_numpy(regions.boxes[1:]))
    np.testing.assert_array_equal(overlaps_of(sample).iou.numpy(), regions.iou()[1:, 1:])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 6), st.integers(0, 9))
def test_keep_best(scores: list[int], limit: int, seed: int):
    values = np.array(scores, np.float32)
    rows = keep_best(values, limit, np.random.default_rng(seed))
    assert len(rows) == min(limit, len(scores)) and (np.diff(rows) > 0).all()
    assert sorted(values[rows]) == sorted(scores)[len(scores) - len(rows) :]


def test_ties_are_drawn():
    chosen = {tuple(keep_best(np.zeros(5), 2, np.random.default_rng(seed))) for seed in range(60)}
    assert len(chosen) == 10


def test_published_proposals(record: Record, regions: RegionSet, tmp_path: Path):
    import pickle

    paths = [tmp_path / "iou.pkl", tmp_path / "asy.pkl"]
    for path, matrix in zip(paths, regions.overlaps(), strict=True):
        path.write_bytes(pickle.dumps(matrix.astype(np.float16)))
    published = PublishedProposals(regions.boxes, regions.grids, regions.scores, *paths)
    sample = make_sample(record, published, clusters(), 120, True, 3, max_proposals=2).to("cpu")
    ours = make_sample(record, regions, clusters(), 120, True, 3, max_proposals=2)
    for name in ("image", "boxes", "grids", "class_ids", "proposal"):
        assert torch.equal(getattr(sample, name), getattr(ours, name)), name
    for mine, theirs in zip(overlaps_of(sample), overlaps_of(ours), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_no_proposals(record: Record):
    empty = RegionSet(np.zeros((H, W), np.int32), np.zeros((0, 1), bool))
    sample = make_sample(record, empty, Clusters(np.zeros(0, np.int64), np.zeros(0, np.int64)), 30, True, 3)
    assert sample.boxes.shape == (0, 4) and sample.grids.shape == (0, 7, 7)
    assert overlaps_of(sample).iou.shape == (0, 0)


def test_things_that_do_not_belong_together(record: Record, regions: RegionSet):
    other = RegionSet(np.zeros((H, W - 1), np.int32), np.ones((1, 1), bool))
    with pytest.raises(CimError, match="another size of the photo"):
        make_sample(record, other, None, 60, False, 3)
    with pytest.raises(CimError, match="belong to other proposals"):
        make_sample(record, regions, Clusters(np.zeros(2, np.int64), np.zeros(2, np.int64)), 60, False, 3)
    with pytest.raises(CimError, match="class numbers"):
        make_sample(record, regions, clusters(), 60, False, 1)


def test_frame():
    assert frame((375, 500), 1200) == (900, 1200)
    assert frame((1, 3000), 480) == (1, 480)


def test_normalise_is_writable_and_contiguous():
    image = np.full((4, 6, 3), 128, np.uint8)[:, ::-1]
    result = normalise(image)
    assert result.is_contiguous() and result.dtype == torch.float32
    torch.testing.assert_close(result[0], torch.full((4, 6), (128 / 255 - 0.485) / 0.229))
