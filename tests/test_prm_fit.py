"""The solved response network: it tells planted classes, not their surroundings, and knows when it tells nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prm_tools import toy_config

from cim.core.errors import CimError
from cim.prm.fit import (
    balance,
    class_precisions,
    cross_fit,
    figure_mask,
    fit_maps,
    pool_features,
    response_strength,
    stratified_folds,
)
from cim.prm.network import ResponseNet, load_response_net
from cim.prm.train import train_prm

D, SIDE = 8, 6


def planted(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, D, s, s] and tags [n, 2]: channel 0 or 1 is strong where the object is, 2 or 3 weak around it."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, D, SIDE, SIDE, generator=generator)
    tags = torch.zeros(count, 2)
    for n in range(count):
        kind = n % 2
        tags[n, kind] = 1
        features[n, 2 + kind] += 1.5
        features[n, 2 + kind, 2:4, 2:4] -= 1.5
        features[n, kind, 2:4, 2:4] += 4
    return features, tags


def responses(features: torch.Tensor, tags: torch.Tensor, ground_weight: float) -> tuple[float, float]:
    """Mean response of the class of each photo on its object and around it."""
    pooled = pool_features(features.split(16))
    net = ResponseNet(torch.nn.Identity(), D, 2)
    fitted = fit_maps(pooled.parts, tags, 0.03, ground_weight)
    fitted.write_to(net.head, pooled.centre, pooled.spread)
    with torch.no_grad():
        maps = net.head(features)[tags > 0]
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[2:4, 2:4] = True
    return float(maps[:, inside].mean()), float(maps[:, ~inside].mean())


def test_the_ground_is_not_learnt_as_the_class():
    on, around = responses(*planted(), ground_weight=0.3)
    bare, without = responses(*planted(), ground_weight=0.0)
    assert without > 0.5 * bare  # the surroundings tell the class as well as the object does
    assert around < 0.2 * on


def test_photos_not_seen_tell_what_was_learnt():
    features, tags = planted()
    parts = pool_features(features.split(16)).parts
    assert cross_fit(parts, tags).precision == pytest.approx([1, 1], abs=0.02)
    shuffled = tags[torch.randperm(len(tags), generator=torch.Generator().manual_seed(1))]
    assert cross_fit(parts, shuffled).precision.max() < 0.75  # chance is 0.5


def test_the_head_reads_raw_features_as_the_fit_read_standardised_ones():
    features, tags = planted(20)
    features = 50 * features + 7
    pooled = pool_features(features.split(7))
    np.testing.assert_allclose(pooled.centre, features.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(pooled.spread, features.std((0, 2, 3), correction=0), rtol=1e-3)
    parts = pooled.parts
    fitted = fit_maps(parts, tags, 0.1)
    net = ResponseNet(torch.nn.Identity(), D, 2, score="mean")
    fitted.write_to(net.head, pooled.centre, pooled.spread)
    with torch.no_grad():
        means = net.head(features).mean((2, 3))
    np.testing.assert_allclose(means, fitted.scores(parts[0]), atol=1e-3)


@given(scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=10)
def test_the_unit_of_the_features_does_not_matter(scale):
    features, tags = planted(20)
    one = fit_maps(pool_features([features]).parts, tags, 0.1)
    other = fit_maps(pool_features([scale * features]).parts, tags, 0.1)
    np.testing.assert_allclose(one.weight, other.weight, atol=0.01)


def test_a_rare_class_weighs_as_much_as_a_common_one():
    tags = torch.zeros(50, 2)
    tags[:40, 0] = 1
    tags[:3, 1] = 1
    weights = balance(tags)
    for k in range(2):
        assert weights[tags[:, k] > 0, k].sum() == pytest.approx(25)
        assert weights[tags[:, k] == 0, k].sum() == pytest.approx(25)


@given(seed=st.integers(0, 1000), count=st.integers(5, 60), classes=st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_folds_share_out_every_class(seed, count, classes):
    tags = np.zeros((count, classes), bool)
    tags[np.arange(count), np.random.default_rng(seed).integers(0, classes, count)] = True
    fold = stratified_folds(tags, 5)
    assert set(fold) <= set(range(5))
    for k in range(classes):
        sizes = np.bincount(fold[tags[:, k]], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert np.bincount(fold, minlength=5).max() <= count // 5 + classes


def test_precision_where_there_is_nothing_to_tell():
    truth = np.array([[True, False, True], [True, False, False]])
    values = class_precisions(np.array([[1.0, 1, 0], [0, 1, 1]]), truth)
    assert np.isnan(values[:2]).all()
    assert values[2] == 0.5


def test_a_class_that_all_photos_have_is_told_from_their_grounds():
    features, tags = planted()
    features, tags = features[tags[:, 0] > 0], tags[tags[:, 0] > 0]
    on, around = responses(features, tags, ground_weight=0.3)
    assert on > around + 1


def test_strength_and_figure():
    features = torch.zeros(1, 2, 3, 3)
    features[0, :, 1, 1] = 3
    strength = response_strength(features)
    assert strength.max() == 1 and strength.min() == 0
    assert figure_mask(features).sum() == 1
    assert not figure_mask(torch.ones(1, 2, 3, 3)).any()
    pooled = pool_features([torch.ones(1, 2, 3, 3)])  # all alike: figure and ground are the whole
    torch.testing.assert_close(pooled.ground, pooled.whole)
    with pytest.raises(CimError, match="no photos"):
        pool_features([])


# ---------------------------------------------------------------------- from photos


def test_a_solved_network_from_tagged_photos(tmp_path):
    config = toy_config(tmp_path, fit="converge", frozen_trunk=True)
    path = train_prm(config)
    net = load_response_net(path, 2)
    assert net.score == "mean"
    told = json.loads((Path(config.work_dir) / "prm" / "held_out.json").read_text())
    assert told["photos"] == 6
    assert set(told["average_precision"]) == {"box", "disc"}
    assert told["share_of_photos"] == {"box": 0.5, "disc": 0.5}
    before = path.stat().st_mtime_ns
    assert train_prm(config) == path
    assert path.stat().st_mtime_ns == before
    other = config.model_copy(update={"prm": config.prm.model_copy(update={"image_size": 96})})
    with pytest.raises(CimError, match="other settings"):
        train_prm(other)


def test_a_trunk_that_learns_cannot_be_solved_for(tmp_path):
    with pytest.raises(CimError, match="frozen_trunk=true"):
        train_prm(toy_config(tmp_path, fit="converge", frozen_trunk=False))
