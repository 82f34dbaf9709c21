"""Grouping proposals: what they find, bad photos, and the tool that stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from doors import call_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cim.cli.common import run
from cim.cli.prepare import proposals
from cim.core.errors import CimError
from cim.core.photo import photo_size, read_photo
from cim.proposals.cob import read_cob
from cim.proposals.frame import enlarge, shrink
from cim.proposals.grouping.cuts import cut_apart
from cim.proposals.grouping.deep import TrunkFeatures
from cim.proposals.grouping.hierarchy import distinct, grow_trees, tree_regions
from cim.proposals.grouping.propose import GroupingOptions, propose
from cim.proposals.grouping.ranking import diverse_order, object_cues
from cim.proposals.grouping.superpixels import Superpixels, _sampler, make_superpixels, segment_means
from cim.proposals.options import ProposerOptions, provenance
from cim.proposals.stage import ProposalStage, open_proposer
from cim.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent


def scene(height: int = 120, width: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A two-coloured disc on textured ground, and its mask."""
    rng = np.random.default_rng(seed)
    photo = rng.normal((70, 110, 60), 12, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 4) ** 2
    photo[disc] = rng.normal((190, 60, 50), 12, (int(disc.sum()), 3))
    photo[disc & (y < height / 2)] += (0, 60, 30)
    return np.clip(photo, 0, 255).astype(np.uint8), disc


def maps_of(photo: np.ndarray) -> list[np.ndarray]:
    """Three maps at strides 8, 16 and 32 that know colour, in the manner of a trunk."""
    return [shrink(photo, max(photo.shape[:2]) // s).transpose(2, 0, 1).astype(np.float32) for s in (8, 16, 32)]


@pytest.mark.parametrize("features", [None, maps_of], ids=["colour", "deep"])
def test_the_object_is_among_the_first(features) -> None:
    photo, disc = scene()
    regions = propose(photo, features=features)
    assert regions.size == disc.shape
    assert regions.iou_with_masks(disc[None])[0, :10].max() > 0.85


def test_best_first_without_duplicates_within_limits() -> None:
    photo, _ = scene()
    options = GroupingOptions(max_proposals=40, min_area=0.01, max_area=0.5, max_iou=0.8)
    regions = propose(photo, options)
    assert 10 < len(regions) <= 40
    assert (np.diff(regions.scores) <= 0).all()
    share = regions.areas / regions.atoms.size
    assert share.min() >= 0.009 and share.max() <= 0.51
    assert np.triu(regions.iou(), 1).max() <= 0.82  # the full frame moves borders by a pixel
    first = propose(photo, GroupingOptions(max_proposals=5, min_area=0.01, max_area=0.5, max_iou=0.8))
    np.testing.assert_array_equal(first.masks(), regions.masks(range(5)))


def test_same_photo_same_proposals() -> None:
    photo, _ = scene()
    one, two = propose(photo), propose(photo)
    np.testing.assert_array_equal(one.members, two.members)
    np.testing.assert_array_equal(one.atoms, two.atoms)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 2), (3, 40)])
@pytest.mark.parametrize("features", [None, maps_of], ids=["colour", "deep"])
def test_odd_sizes(size: tuple[int, int], features) -> None:
    if features and min(size) < 2:
        features = lambda photo: [np.ones((3, 1, 1), np.float32)] * 3  # noqa: E731
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    regions = propose(photo, features=features)
    assert regions.size == size
    assert regions.areas.all()


def test_one_colour_has_no_objects() -> None:
    regions = propose(np.full((60, 80, 3), 128, np.uint8))
    assert regions.size == (60, 80)
    assert np.isfinite(regions.scores).all()


def test_a_large_photo_is_worked_on_small() -> None:
    photo = np.zeros((6000, 8000, 3), np.uint8)
    photo[2000:4000, 3000:5000] = (200, 40, 40)
    regions = propose(photo, GroupingOptions(max_proposals=20))
    assert regions.size == (6000, 8000)
    found = [regions.members[i] for i in range(len(regions)) if 3.8e6 < regions.areas[i] < 4.2e6]
    assert found and regions.atoms.dtype == np.int32


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_wrong_arrays(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        propose(bad)


# ---------------------------------------------------------------------- parts


def test_every_tree_holds_all_merges() -> None:
    sp = make_superpixels(scene()[0], 60, maps_of(scene()[0]))
    for parents in grow_trees(sp):
        regions = tree_regions(parents)
        assert regions.shape == (2 * len(sp) - 2, len(sp))
        children = [np.flatnonzero(parents == node) for node in range(len(sp), len(parents) - 1)]
        for node, (left, right) in zip(range(len(sp), len(parents) - 1), children, strict=True):
            assert (regions[node] == (regions[left] | regions[right])).all()
            assert not (regions[left] & regions[right]).any()


def grid_of_segments(columns: int, rows: int) -> Superpixels:
    """Square segments of 4 x 4 pixels, all boundaries alike."""
    labels = np.arange(rows * columns).reshape(rows, columns)
    pairs = np.concatenate(
        [np.c_[labels[:, :-1].ravel(), labels[:, 1:].ravel()], np.c_[labels[:-1].ravel(), labels[1:].ravel()]]
    )
    even = np.ones(len(pairs))
    pixels = labels.repeat(4, 0).repeat(4, 1)
    size = labels.size
    return Superpixels(pixels, np.full(size, 16.0), np.zeros((size, 4)), *pairs.T, 4 * even, even, {}, np.zeros(size))


def test_a_region_is_cut_at_its_neck() -> None:
    sp = grid_of_segments(9, 4)
    region = np.ones((4, 9), bool)
    region[[0, 1, 3], 4] = False  # two blocks of 4 x 4 segments, joined by one
    left = np.zeros((4, 9), bool)
    left[:, :4] = True
    halves = cut_apart(sp, region.reshape(1, -1))
    assert halves.shape == (2, 36)
    assert (halves.sum(0) == region.ravel()).all()
    assert min((half ^ left.ravel()).sum() for half in halves) <= 1  # the neck itself may go either way


def test_a_region_is_cut_along_a_contour() -> None:
    sp = grid_of_segments(6, 4)
    column = np.arange(24) % 6
    sp.edge[(column[sp.source] == 1) & (column[sp.target] == 2)] = 8
    halves = cut_apart(sp, np.ones((1, 24), bool))
    assert {frozenset(np.flatnonzero(half)) for half in halves} == {
        frozenset(np.flatnonzero(column < 2)),
        frozenset(np.flatnonzero(column >= 2)),
    }


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_cut_is_better_than_cuts_at_random(seed: int) -> None:
    """Normalised cut, written out, of the halves and of 20 random partings in two."""
    rng = np.random.default_rng(seed)
    sp = grid_of_segments(5, 4)
    sp.edge[:] = rng.random(len(sp.edge)) * 3
    held = np.zeros((20, 20))
    for a, b, length, edge in zip(sp.source, sp.target, sp.length, sp.edge, strict=True):
        held[a, b] = held[b, a] = length * np.exp(-edge / np.median(sp.edge))

    def cost(side: np.ndarray) -> float:
        across = sum(held[a, b] for a in range(20) for b in range(20) if side[a] and not side[b])
        return across / held[side].sum() + across / held[~side].sum()

    one, two = cut_apart(sp, np.ones((1, 20), bool))
    assert (one ^ two).all()
    others = [rng.permutation(20) < rng.integers(5, 15) for _ in range(20)]
    assert cost(one) <= min(map(cost, others))


def test_what_cannot_be_cut_is_left_out() -> None:
    sp = grid_of_segments(6, 4)
    few = np.arange(24) < 5
    alone = np.isin(np.arange(24), [0, 1, 2, 6, 7, 8, 23])  # a segment that touches none of the others
    assert cut_apart(sp, np.stack([few, alone])).shape == (0, 24)
    assert cut_apart(sp, np.zeros((0, 24), bool)).shape == (0, 24)


def test_cuts_join_the_other_proposals() -> None:
    photo, _ = scene()
    cut = propose(photo, GroupingOptions(5000, cuts=60), maps_of)
    plain = propose(photo, GroupingOptions(5000), maps_of)
    assert len(cut) > len(plain)
    ours = cut.iou_with_masks(plain.masks()).max(1)
    assert (ours > 0.89).all()  # each is there, or a near-duplicate of better score


def test_stores_with_and_without_cuts_are_told_apart() -> None:
    plain, cut = (provenance(ProposerOptions(deep_features=False, cuts=cuts)) for cuts in (0, 60))
    assert cut == {**plain, "cuts": 60} and "cuts" not in plain


def test_the_setting_reaches_the_maker() -> None:
    photo, _ = scene()
    found = open_proposer(ProposerOptions(max_proposals=5000, deep_features=False, cuts=60))(photo)
    assert (
        len(found) == len(propose(photo, GroupingOptions(5000, cuts=60))) > len(propose(photo, GroupingOptions(5000)))
    )


def test_segment_means_of_a_resampled_map() -> None:
    """The sparse sampler against resampling the map and averaging."""
    import cv2

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (30, 50))
    areas = np.bincount(labels.ravel()).astype(float)
    small = rng.random((4, 6)).astype(np.float32)
    large = cv2.resize(small, (50, 30), interpolation=cv2.INTER_LINEAR)
    expected = segment_means(large[None], labels, areas)[:, 0]
    np.testing.assert_allclose(_sampler((4, 6), labels, areas) @ small.ravel(), expected, atol=1e-3)


def test_cues_of_a_region_by_hand() -> None:
    photo, _ = scene(40, 60)
    sp = make_superpixels(photo, 30)
    rng = np.random.default_rng(1)
    regions = rng.random((5, len(sp))) < 0.3
    regions[:, 0] = True
    cues = object_cues(sp, regions)
    for row, region in enumerate(regions):
        inside = region[sp.labels]
        assert cues["size"][row] == pytest.approx(np.log(inside.mean()), abs=1e-5)
        sides = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
        assert cues["borders"][row] == sum(side.sum() > 2 for side in sides)
        outline = (inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum()
        touch = sum(side.sum() for side in sides)
        assert cues["outline"][row] == pytest.approx(np.log((touch + outline) / np.sqrt(inside.sum())), rel=1e-4)
        weights = np.zeros(len(sp))
        for a, b, length in zip(sp.source, sp.target, sp.length, strict=True):
            if region[a] != region[b]:
                weights[b if region[a] else a] += length
        x = sp.features["colour"]
        mean = np.average(x[region], axis=0, weights=sp.areas[region])
        ring = np.average(x, axis=0, weights=weights)
        assert cues["ring_colour"][row] == pytest.approx(np.linalg.norm(mean - ring), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_as_the_slow_greedy_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sp = make_superpixels(scene(20, 30)[0], 12)
    regions = distinct(rng.random((15, len(sp))) < 0.5)
    score = rng.random(len(regions))
    kept: list[int] = []
    for i in np.argsort(-score):
        overlaps = [
            sp.areas[regions[i] & regions[j]].sum() / max(sp.areas[regions[i] | regions[j]].sum(), 1) for j in kept
        ]
        if all(overlap <= 0.5 for overlap in overlaps):
            kept.append(i)
    assert diverse_order(sp, regions, score, 0.5, 6).tolist() == kept[:6]


def test_enlarging_keeps_every_label() -> None:
    labels = np.arange(12).reshape(3, 4)
    large = enlarge(labels, (7, 4))
    assert large.shape == (7, 4) and set(large.ravel()) == set(range(12))


# ---------------------------------------------------------------------- the trunk's cue


def test_trunk_gives_three_maps_for_any_photo() -> None:
    trunk = TrunkFeatures(weights="none", side=96)
    assert [m.shape for m in trunk(np.zeros((60, 90, 3), np.uint8))] == [(32, 8, 12), (96, 4, 6), (320, 2, 3)]
    assert [m.shape[1:] for m in trunk(np.zeros((1, 300, 3), np.uint8))] == [(4, 12), (2, 6), (1, 3)]
    assert len(propose(scene()[0], features=trunk)) > 10


def test_trunk_errors() -> None:
    with pytest.raises(CimError, match="no grouping cue"):
        TrunkFeatures("vgg16")
    with pytest.raises(CimError, match="no such weights file"):
        TrunkFeatures(weights="missing.pth")


# ---------------------------------------------------------------------- photos of all kinds, and the tool


def odd_photos(folder: Path) -> dict[str, tuple[int, int]]:
    """Photos that people have; name -> (H, W) after rotation."""
    folder.mkdir()
    photo, _ = scene(40, 60)
    image = Image.fromarray(photo)
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(photo[:, :, 0].astype(np.uint16) * 256).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20), "teal").save(folder / "flat.png")
    Image.new("RGB", (1, 1), "teal").save(folder / "dot.png")
    upright = dict.fromkeys(("grey", "alpha", "cmyk", "deep"), (40, 60))
    return {**upright, "turned": (60, 40), "flat": (20, 30), "dot": (1, 1)}


def test_tool_stores_odd_photos_lists_bad_ones_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = odd_photos(tmp_path / "photos")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    whole = (tmp_path / "photos" / "cmyk.jpg").read_bytes()
    (tmp_path / "photos" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = ["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "store"), "--no-deep-features"]
    arguments += ["--workers", "1", "--max-proposals", "50"]
    assert run(lambda: call_tool("pre/generate_proposals", *arguments)) == 2
    assert "bad.jpg" in caplog.text and "cut.jpg" in caplog.text and "2 of 9 failed" in caplog.text
    store = Store.open(tmp_path / "store", "regions")
    assert store.provenance["trained_on_masks"] is False
    assert {name: store.load_regions(name).size for name in sizes} == sizes
    assert all(photo_size(path) == sizes[path.stem] for path in (tmp_path / "photos").glob("[!bc]*.[pj][np]g"))
    made = store.path("grey").stat().st_mtime_ns
    for name in ("bad", "cut"):
        (tmp_path / "photos" / f"{name}.jpg").unlink()
    assert run(lambda: call_tool("pre/generate_proposals", *arguments, "--export-mat", tmp_path / "mat")) == 0
    assert store.path("grey").stat().st_mtime_ns == made
    exported, kept = read_cob(tmp_path / "mat" / "grey.mat", (40, 60)), store.load_regions("grey")
    np.testing.assert_array_equal(exported.masks(), kept.masks())


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_exported_mat_files_are_read_back(tmp_path: Path, layout: str) -> None:
    Image.fromarray(scene(40, 60)[0]).save(tmp_path / "2007_000001.png")
    settings_ = ProposerOptions(deep_features=False, max_proposals=7)
    store = Store.create(tmp_path / "store", "regions", provenance(settings_))
    (record,), _ = proposals._folder(tmp_path)
    ProposalStage(store, settings_, mat=tmp_path / "mat", mat_layout=layout)(record)
    found = read_cob(tmp_path / "mat" / "2007_000001.mat", (40, 60))
    np.testing.assert_array_equal(found.masks(), store.load_regions("2007_000001").masks())
    assert len(found) == 7
    np.testing.assert_array_equal(read_photo(record.path), scene(40, 60)[0])


def test_tool_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos, store = tmp_path / "photos", str(tmp_path / "store")
    photos.mkdir()
    Image.new("RGB", (30, 20), "teal").save(photos / "a.png")
    wrong = (
        [],
        ["--images", str(photos)],
        ["--images", str(tmp_path / "none"), "--output", store],
        ["--images", str(photos), "--output", store, "--max-proposals", "0"],
        ["--images", str(photos), "--output", store, "--weights", str(tmp_path / "none.pth")],
        ["--images", str(photos), "--output", store, "--method", "sam"],
    )
    for arguments in wrong:
        assert run(lambda arguments=arguments: call_tool("pre/generate_proposals", *arguments)) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
    Image.new("RGB", (30, 20), "teal").save(photos / "a.jpg")
    assert run(lambda: call_tool("pre/generate_proposals", "--images", photos, "--output", store)) == 2
    assert "two photos of one name" in capsys.readouterr().err
