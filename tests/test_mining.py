"""Miners against the published program's outputs and against METHOD section 5 in plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_mining import slow_mine, slow_nms

from cim.core.regions import Overlaps, overlaps
from cim.mining.miners import CIMMiner, MISTMiner, OICRMiner, PCLMiner
from cim.mining.steps import find_seeds, greedy, sample_distinct

QUIET = CIMMiner(anti_noise=False)
CLUSTERED = CIMMiner(cluster_seeds=True, containment=False, background_iou=0.1)
ALL = [CIMMiner(), CLUSTERED, MISTMiner(), OICRMiner(), PCLMiner()]


def scene(seed: int, n: int = 40, atoms: int = 25, classes: int = 4, coarse: bool = False, tags: int | None = None):
    """Random proposals, some nested; coarse scores have many ties."""
    rng = np.random.default_rng(seed)
    members = rng.random((n, atoms)) < rng.choice([0.15, 0.4, 0.97], (n, 1))
    over = overlaps(members.astype(np.float32), rng.integers(1, 50, atoms).astype(np.float32))
    s, d = rng.random((2, n, classes)).astype(np.float32)
    if coarse:
        s, d = np.round(s * 4) / 4, np.round(d * 4) / 4
    present = np.zeros(classes, np.float32)
    present[rng.permutation(classes)[: rng.integers(1, classes + 1) if tags is None else tags]] = 1
    return s, d, present, over


def run(miner, data, branch=0, generator=None):
    s, d, tags, over = data
    tensors = [torch.from_numpy(np.asarray(a)) for a in (s, d, tags)]
    return miner(*tensors, Overlaps(*map(torch.from_numpy, over)), branch, generator)


def assert_equal(labels, expected):
    if expected is None:
        assert_nothing(labels)
        return
    for name, value in zip(("class_ids", "integrity", "weight", "mined"), expected, strict=True):
        np.testing.assert_array_equal(getattr(labels, name).numpy(), value.astype(getattr(labels, name).numpy().dtype))


def assert_nothing(labels):
    """A branch that mined nothing teaches nothing."""
    assert not labels.mined.any() and (labels.class_ids == -1).all() and (labels.weight == 0).all()


@pytest.mark.parametrize("image", ["2007_000100", "2007_000104"])
@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize(("prefix", "miner"), [("", QUIET), ("mist_", MISTMiner())])
def test_equals_the_published_program(reference, image, branch, prefix, miner):
    with np.load(reference / "expected" / "mining_and_losses.npz") as f:
        file = {key.removeprefix(f"{image}."): f[key] for key in f.files if key.startswith(image)}
    with np.load(reference / "expected" / "proposals.npz") as f:
        over = [f[f"{image}.{name}"].astype(np.float32) for name in ("iou", "containment")]
    s, d = (file["cls"], file["det"]) if branch == 0 else (file[f"rcls{branch - 1}"], file[f"riou{branch - 1}"])
    labels = run(miner, (s[:, 1:], d[:, 1:], file["labels"][0], over), branch)
    onehot = file[f"{prefix}pl{branch}"]
    assert (onehot.sum(1) <= 1).all()
    np.testing.assert_array_equal(labels.class_ids, np.where(onehot.any(1), onehot.argmax(1), -1))
    np.testing.assert_array_equal(labels.integrity, file[f"{prefix}pi{branch}"])
    np.testing.assert_array_equal(labels.weight, file[f"{prefix}w{branch}"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 2), st.booleans(), st.sampled_from(["cim", "mist"]))
def test_equals_plain_loops(seed, n, branch, coarse, method):
    data = scene(seed, n, coarse=coarse)
    s, d, tags, (iou, containment) = data
    miner = QUIET if method == "cim" else MISTMiner()
    assert_equal(run(miner, data, branch), slow_mine(method, s, d, tags, iou, containment, branch))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_switches_equal_plain_loops(seed, containment_on, big_as_background):
    data = scene(seed)
    s, d, tags, (iou, containment) = data
    miner = replace(QUIET, containment=containment_on, big_as_background=big_as_background)
    expected = slow_mine("cim", s, d, tags, iou, containment, 1, containment_on, big_as_background)
    assert_equal(run(miner, data, 1), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(0, 2), st.booleans(), st.sampled_from([0.0, 0.1, 0.3]))
def test_cluster_seeds_equal_plain_loops(seed, n, branch, containment_on, background):
    s, d, tags, (iou, containment) = scene(seed, n)
    s, d = s.astype(np.float64), d.astype(np.float64)  # sums of k-means in another order must not move a border
    miner = replace(QUIET, cluster_seeds=True, containment=containment_on, background_iou=background)
    expected = slow_mine(
        "cim", s, d, tags, iou, containment, branch, containment_on, cluster_seeds=True, background=background
    )
    assert_equal(run(miner, (s, d, tags, (iou, containment)), branch), expected)


def test_long_chains_of_removals():
    """Every proposal overlaps only its neighbour: the fixed point needs as many steps as there are proposals."""
    n = 50
    iou = np.eye(n, dtype=np.float32) + 0.6 * (np.eye(n, k=1) + np.eye(n, k=-1)).astype(np.float32)
    score = np.linspace(1, 0.1, n, dtype=np.float32)
    index, is_seed = find_seeds(torch.from_numpy(score[None]), torch.from_numpy(iou), 1.0, 0.5)
    assert index[is_seed].tolist() == slow_nms(score, iou, 1.0, 0.5) == list(range(0, n, 2))


def test_a_seed_of_no_candidates_does_not_erase_another():
    """Proposal 1 is big and the seed of class 0; it must leave the proposal 0 that class 0's other seed mined."""
    iou = np.array([[1, 0.1, 0.6], [0.1, 1, 0.1], [0.6, 0.1, 1]], np.float32)
    contain = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]], np.float32)
    s = np.array([[0.5], [0.8], [0.9]], np.float32)  # the big one is looked at last
    d = np.array([[0.9], [0.9], [0.1]], np.float32)
    labels = run(replace(QUIET, seed_fraction=1.0), (s, d, np.ones(1, np.float32), (iou, contain)))
    assert labels.mined.tolist() == [True, False, False]


def test_thresholds_at_equality():
    """IoU of exactly t_cls removes a seed and gives a class; exactly t_iou is not complete."""
    iou = np.eye(5, dtype=np.float32)
    for a, b, value in [(0, 1, 0.25), (0, 2, 0.5), (0, 3, 0.24)]:
        iou[a, b] = iou[b, a] = value
    s = np.array([[0.9], [0.8], [0.1], [0.1], [0.1]], np.float32)
    miner = replace(QUIET, seed_fraction=0.4, containment=False)
    labels = run(miner, (s, s, np.ones(1, np.float32), (iou, iou)))
    assert labels.mined.tolist() == [True] + [False] * 4
    assert labels.class_ids.tolist() == [1, 1, 1, 0, -1]
    assert labels.integrity.tolist() == [1, 0, 0, 0, 0]


def test_oicr_has_one_truth_per_class():
    s, d, tags, over = scene(3, tags=2)
    labels = run(OICRMiner(), (s, d, tags, over))
    present = np.flatnonzero(tags)
    best = [(s * d)[:, c].argmax() for c in present]
    assert sorted(np.flatnonzero(labels.mined)) == sorted(set(best))
    nearest = over[0][:, best]
    expected = np.where(nearest.max(1) >= 0.5, present[nearest.argmax(1)] + 1, 0)
    np.testing.assert_array_equal(labels.class_ids, expected)
    assert (labels.weight > 0).all()  # the rest is background, nothing is ignored


def test_pcl_finds_both_objects():
    """Two groups of overlapping high proposals: the middle of each is its centre, with the group's best score."""
    iou = np.eye(10, dtype=np.float32)
    for a, b in [(0, 1), (1, 2), (3, 4), (4, 5), (4, 6)]:
        iou[a, b] = iou[b, a] = 0.6
    iou[7, 1] = iou[1, 7] = 0.2  # background
    s = np.array([[0.9, 0.8, 0.85, 0.8, 0.82, 0.95, 0.8, 0.1, 0.1, 0.12]], np.float32).T
    labels = run(PCLMiner(), (s, np.ones_like(s), np.ones(1, np.float32), (iou, iou)))
    assert np.flatnonzero(labels.mined).tolist() == [1, 4]
    assert labels.class_ids.tolist() == [1] * 7 + [0, -1, -1]
    np.testing.assert_allclose(labels.weight, [0.9] * 3 + [0.95] * 4 + [0.9, 0, 0])
    assert int(labels.seeds) == 7


def test_sampling_has_the_right_distribution():
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0])
    mined = torch.tensor([True, True, True, True, False])
    rounds = 20000
    kept = sample_distinct(weight.expand(rounds, 5), mined.expand(rounds, 5), 7, torch.Generator().manual_seed(0))
    expected = 1 - (1 - weight[:4]) ** 4  # in four draws at least once
    np.testing.assert_allclose(kept[:, :4].float().mean(0), expected, atol=0.012)
    assert not kept[:, 4].any() and kept.any(1).all()


def test_sampling_of_weightless_and_of_nothing():
    mined = torch.tensor([[True, True, False], [False, False, False]])
    kept = sample_distinct(torch.zeros(2, 3), mined, 2, torch.Generator().manual_seed(0))
    assert kept[0].any() and not kept[0, 2] and not kept[1].any()


@pytest.mark.parametrize("miner", ALL)
def test_same_seed_same_labels(miner):
    data = scene(5, n=200)
    first, second = (run(miner, data, 0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))
    if miner == CIMMiner():
        others = [run(miner, data, 0, torch.Generator().manual_seed(i)).mined for i in range(2, 6)]
        assert any(not torch.equal(first.mined, other) for other in others)
        everything = run(QUIET, data).mined
        assert (everything | ~first.mined).all() and first.mined.sum() < everything.sum()


def test_draws_do_not_depend_on_what_was_mined():
    after = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(0)
        run(CIMMiner(), scene(seed, tags=2), 0, generator)
        after.append(torch.rand(1, generator=generator))
    assert torch.equal(*after)


@pytest.mark.parametrize("miner", ALL)
def test_autocast_changes_nothing(miner):
    data = scene(6, n=100)
    plain = run(miner, data, 1, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(miner, data, 1, torch.Generator().manual_seed(0))
    assert all(torch.equal(getattr(plain, name), getattr(mixed, name)) for name in vars(plain))


@pytest.mark.parametrize("miner", ALL)
@pytest.mark.parametrize(("n", "tags"), [(0, 1), (0, 0), (5, 0)])
def test_nothing_to_mine(miner, n, tags):
    assert run(miner, scene(0, n=n, tags=tags)) is None


@pytest.mark.parametrize("miner", ALL)
def test_one_proposal(miner):
    one = np.ones((1, 1), np.float32)
    labels = run(miner, (one, one, np.ones(1, np.float32), (one, one)))
    if miner == CIMMiner():
        assert_nothing(labels)  # it contains all proposals: big
    else:
        assert labels.class_ids.tolist() == [1]


@pytest.mark.parametrize("miner", [*ALL, CIMMiner(big_as_background=True), replace(CLUSTERED, containment=True)])
@pytest.mark.parametrize("branch", [0, 2])
def test_no_step_waits_for_the_device(miner, branch):
    """Tensors on the meta device have shapes but no values: whoever asks for one, or for a size that depends on one,
    fails. So would the same step wait for a GPU."""
    s, d, over = (
        torch.rand(2, 30, device="meta"),
        torch.rand(2, 30, device="meta"),
        torch.rand(2, 30, 30, device="meta"),
    )
    classes = torch.tensor([1, 4], device="meta")
    labels = miner.mine(classes, s, d, Overlaps(*over), branch, torch.Generator().manual_seed(0))
    assert labels.class_ids.device.type == "meta" and labels.class_ids.shape == (30,)
    with pytest.raises(RuntimeError):
        bool(labels.mined.any())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_greedy_nms_is_one_after_the_other(seed, n, look):
    hits = (torch.rand(2, n, n, generator=torch.Generator().manual_seed(seed)) < 0.2).float().triu(1)
    keep = torch.ones(2, n, dtype=torch.bool)
    for row in range(2):
        for b in range(n):
            keep[row, b] = not any(bool(keep[row, a]) and bool(hits[row, a, b]) for a in range(b))
    assert torch.equal(greedy(hits, look), keep)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: mining there is not tested")
@pytest.mark.parametrize("miner", ALL)
def test_cuda_equals_cpu(miner):
    s, d, tags, over = (torch.as_tensor(np.asarray(a)) for a in scene(7, n=300))
    answers = []
    for at in ("cpu", "cuda"):
        moved = s.to(at), d.to(at), tags, Overlaps(*over.to(at)), 0, torch.Generator().manual_seed(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            answers.append(miner(*moved))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(answers[0].class_ids, answers[1].class_ids.cpu())
    torch.testing.assert_close(answers[0].weight, answers[1].weight.cpu())
