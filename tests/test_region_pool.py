"""Region pooling: cover, ring and pooled features against loops over pixels; cached features give the same scores."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cim.config.loading import load_config
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.models.region_pool import RegionPool, cell_cover, ring_cover
from cim.training.feature_cache import FeatureCache
from cim.training.kept import cached_features
from cim.training.samples import make_sample


def slow_cover(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    count, height, width = masks.shape
    inside, pixels = np.zeros((count, *size)), np.zeros(size)
    for y in range(height):
        for x in range(width):
            cell = y * size[0] // height, x * size[1] // width
            pixels[cell] += 1
            inside[(slice(None), *cell)] += masks[:, y, x]
    return inside / np.maximum(pixels, 1)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 4), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99)
)
def test_cover_is_the_share_of_a_cells_pixels(count, height, width, h, w, seed):
    masks = np.random.default_rng(seed).random((count, height, width)) < 0.5
    regions = RegionSet.from_masks(masks)
    found = cell_cover(torch.from_numpy(regions.atoms), torch.from_numpy(regions.members), (h, w))
    np.testing.assert_allclose(found.numpy(), slow_cover(masks, (h, w)), atol=1e-6)


def test_ring_surrounds_and_leaves_out_the_inside():
    inside = torch.zeros(1, 7, 7)
    inside[0, 3, 3] = 1
    ring = ring_cover(inside, 2)[0]
    assert ring.sum() == 24 and ring[3, 3] == 0 and ring[1, 1] == 1 and not ring[0].any()


def sample_of(masks: np.ndarray) -> SimpleNamespace:
    regions = RegionSet.from_masks(masks)
    return SimpleNamespace(atoms=torch.from_numpy(regions.atoms), members=torch.from_numpy(regions.members))


def test_pooled_features_are_means_inside_and_around():
    torch.manual_seed(0)
    head = RegionPool((1, 2), (1, 1), 5, ring=1).eval()
    for buffer in (head.axes, head.centre, head.spread):
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 2:4, 2:4] = True
    masks[1, :, :3] = True
    features = torch.rand(1, 3, 6, 6)
    cells = torch.einsum("dhw,dk->khw", features[0], head.axes)
    expected = []
    for mask in masks:
        around = np.zeros_like(mask)
        for y, x in np.argwhere(mask):
            around[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        around &= ~mask
        expected.append(torch.cat([cells[:, mask].mean(1), cells[:, around].mean(1)]))
    expected = (torch.stack(expected) - head.centre) / head.spread
    hidden = torch.relu(head.fc2(torch.relu(head.fc1(expected))))
    torch.testing.assert_close(head(features, sample_of(masks)), hidden)


def test_no_proposals_and_a_proposal_that_covers_all():
    head = RegionPool((3,), (2,), 5).eval()
    features = torch.rand(1, 3, 4, 4)
    assert head(features, sample_of(np.zeros((0, 8, 8), bool))).shape == (0, 5)
    assert head(features, sample_of(np.ones((1, 8, 8), bool))).isfinite().all()  # its ring is empty


def seen(channels: int, images: int = 8) -> list[tuple[torch.Tensor, SimpleNamespace]]:
    """Feature maps whose last channels are all mixtures of two sources, at very different scales, and samples."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    scales = 10.0 ** torch.arange(channels - 1).remainder(4)
    mixture = torch.randn(channels - 1, 2, generator=generator)
    result = []
    for _ in range(images):
        sources = torch.randn(2, 6, 5, generator=generator)
        mixed = torch.einsum("ck,khw->chw", mixture, sources) * scales[:, None, None]
        features = torch.cat([torch.randn(1, 6, 5, generator=generator), mixed])[None] + 7
        result.append((features, sample_of(rng.random((6, 12, 10)) < 0.4)))
    return result


def test_calibration_finds_the_axes_and_gives_all_the_same_spread():
    maps = seen(9)
    head = RegionPool((1, 8), (1, 2), 5)
    head.calibrate(iter(maps), every=1)
    pooled = torch.cat([(head._pooled(f, s, head.axes) - head.centre) / head.spread for f, s in maps])
    torch.testing.assert_close(pooled.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(pooled.std(0), torch.ones(6), atol=1e-3, rtol=0)
    # the shallow part stays as it is, and the two axes of the deep one carry all that its eight channels do
    torch.testing.assert_close(head.axes[:, 0], torch.eye(9)[:, 0])
    assert (head.axes[0, 1:] == 0).all()
    raw = torch.cat([head._pooled(f, s, torch.eye(9)) for f, s in maps])[:, 1:9].double()
    along = raw @ head.axes[1:, 1:].double()
    design = torch.cat([along, torch.ones(len(raw), 1, dtype=torch.float64)], 1)
    found = design @ torch.linalg.lstsq(design, raw).solution
    assert ((found - raw).std(0) < 1e-3 * raw.std(0)).all()
    torch.testing.assert_close(torch.corrcoef(along.T)[0, 1].abs(), torch.tensor(0.0).double(), atol=1e-4, rtol=0)


def test_axes_along_which_nothing_varied_are_switched_off():
    (features, sample), *_ = seen(9)
    head = RegionPool((9,), (8,), 5).eval()
    head.calibrate([(features, sample)], every=1)  # two sources and one free channel: five of the axes are empty
    assert head.spread.isinf().sum() >= 5
    assert head(features * 1000, sample).isfinite().all()
    shifted = features.clone()
    shifted[0, :, 2, 2] += torch.randn(9, generator=torch.Generator().manual_seed(1)) * 100
    pooled = (head._pooled(shifted, sample, head.axes) - head.centre) / head.spread
    assert (pooled[:, head.spread.isinf()] == 0).all()


def test_without_images_calibration_changes_nothing():
    head = RegionPool((4,), (2,), 5)
    before = {name: value.clone() for name, value in head.named_buffers()}
    head.calibrate([])
    assert all(torch.equal(before[name], value) for name, value in head.named_buffers())


def test_axes_that_do_not_fit_the_trunk_are_told(tmp_path):
    from cim.config.build import build_model

    config = light(tmp_path)
    config.model.axes = (64,)
    with pytest.raises(CimError, match="3 numbers, one per part of mobilenet_v2_d16"):
        build_model(config, 1)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.png"
        Image.fromarray(rng.integers(0, 255, (40, 64, 3), np.uint8)).save(path)
        records.append(Record(name, path, (40, 64), (0,)))
    return Dataset("toy", ("x",), (1,), tuple(records))


def light(tmp_path, **train) -> Config:
    model = {"backbone": "mobilenet_v2_d16", "weights": "none", "freeze": "all", "head": "region_pool", "hidden": 8}
    model["axes"] = (96, 64, 32)
    train = {"cache_features": True, "flip": False, "sides": (64,), **train}
    return Config(work_dir=str(tmp_path / "run"), model=model, train=train)


def test_cached_features_give_the_same_scores(tmp_path, photos):
    from cim.config.build import build_model

    torch.manual_seed(0)
    config = light(tmp_path)
    model = build_model(config, 1).eval()
    cache = cached_features(config, model, photos, torch.device("cpu"))
    record = photos[0]
    regions = RegionSet.from_masks(np.random.default_rng(1).random((5, 40, 64)) < 0.3)
    sample = make_sample(record, regions, None, 64, False, 1, photo=read_photo(record.path))
    with torch.no_grad():
        fresh = model(sample)
        known = model(replace(sample, features=cache.load("a", 64)))
    torch.testing.assert_close(fresh.cls, known.cls, atol=2e-3, rtol=0)
    before = cache.path("b", 64).stat().st_mtime_ns
    cached_features(config, model, photos, torch.device("cpu"))
    assert cache.path("b", 64).stat().st_mtime_ns == before  # what is there stays


def test_features_are_not_kept_for_a_trunk_that_learns_or_flips(tmp_path, photos):
    from cim.config.build import build_model

    config = light(tmp_path, flip=True)
    with pytest.raises(CimError, match="cache_features=false"):
        cached_features(config, build_model(config, 1), photos, torch.device("cpu"))


def test_damaged_features_are_told(tmp_path):
    cache = FeatureCache.create(tmp_path / "features", "tiny", "none")
    cache.path("a", 64).write_bytes(b"no array")
    with pytest.raises(CimError, match="cannot read features"):
        cache.load("a", 64)
    with pytest.raises(CimError, match="other settings"):
        FeatureCache.create(tmp_path / "features", "another", "none")


def test_the_light_config_uses_it():
    assert load_config("folder_mobilenet").model.head == "region_pool"
