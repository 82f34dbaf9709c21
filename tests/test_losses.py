"""Losses against the published program's numbers and against METHOD section 6 in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.config.build import build_criterion, build_miner
from cim.config.schema import LossConfig, MiningConfig
from cim.core.regions import Overlaps
from cim.core.types import PseudoLabels, RoiScores, Sample
from cim.mining.losses import Criterion, LossWeights, bag_loss, class_loss, cluster_loss, integrity_loss, mil_loss
from cim.mining.miners import CIMMiner, MISTMiner, OICRMiner, PCLMiner

EPS = 1e-6


def sample_of(tags, class_ids=None, cluster=None) -> Sample:
    fields = dict.fromkeys(Sample.__dataclass_fields__)
    return Sample(**{**fields, "tags": tags, "class_ids": class_ids, "cluster": cluster})


def scene(seed: int, n: int = 30, classes: int = 4, branches: int = 3):
    """Random scores, first labels, overlaps."""
    g = torch.Generator().manual_seed(seed)
    members = (torch.rand(n, 20, generator=g) < 0.3).float()
    inter = members @ members.T
    area = members.sum(1)
    union = (area[:, None] + area - inter).clamp_min(1)
    logits = torch.randn(2 + 2 * branches, n, classes + 1, generator=g, dtype=torch.float64, requires_grad=True)
    scores = RoiScores(
        logits[0].softmax(1),
        logits[1].softmax(0),
        logits[2 : 2 + branches].softmax(2),
        logits[2 + branches :].sigmoid(),
    )
    cluster = torch.randint(0, 5, (n,), generator=g)
    class_of = torch.tensor([-1, 2, 1, 2, 0])  # clusters 1 and 3 share a class, 4 is background
    tags = torch.zeros(classes)
    tags[:2] = 1
    sample = sample_of(tags, class_of[cluster], cluster)
    return scores, sample, Overlaps(inter / union, inter / area.clamp_min(1)), logits


def labels_of(seed: int, n: int = 30, classes: int = 4) -> PseudoLabels:
    g = torch.Generator().manual_seed(seed)
    class_ids = torch.randint(-1, 3, (n,), generator=g)
    weight = torch.rand(n, generator=g, dtype=torch.float64) * (class_ids >= 0)
    return PseudoLabels(class_ids, (torch.rand(n, generator=g) < 0.5).double(), weight, class_ids > 0)


def slow_bce(p: float, target: float) -> float:
    p = min(max(p, EPS), 1 - EPS)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def image_label(tags) -> list[float]:
    return [1.0, *tags.tolist()]


@pytest.mark.parametrize("image", ["2007_000100", "2007_000104"])
@pytest.mark.parametrize("stable", [False, True])
def test_equals_the_published_program(reference, image, stable):
    with np.load(reference / "expected" / "mining_and_losses.npz") as f:
        file = {key.removeprefix(f"{image}."): torch.from_numpy(f[key]) for key in f.files if key.startswith(image)}
    with np.load(reference / "expected" / "proposals.npz") as f:
        over = Overlaps(*(torch.from_numpy(f[f"{image}.{name}"]).float() for name in ("iou", "containment")))
    # `mat` holds the cluster number in the column of the class.
    cluster = file["mat"].amax(1).long()
    class_ids = torch.where(cluster > 0, file["mat"].argmax(1), -1)
    scores = RoiScores(
        file["cls"],
        file["det"],
        torch.stack([file[f"rcls{k}"] for k in range(3)]),
        torch.stack([file[f"riou{k}"] for k in range(3)]),
    )
    criterion = Criterion(CIMMiner(anti_noise=False), stable=stable)
    losses, _ = criterion(scores, sample_of(file["labels"][0], class_ids, cluster), over)
    assert losses["mil"].item() == pytest.approx(file["mil_loss"].item(), abs=1e-5)
    assert losses["pcl"].item() == pytest.approx(file["pcl_loss"].item(), abs=1e-5)
    for k in range(3):
        cls, iou, bag = file[f"loss{k}"].tolist()
        assert losses[f"cls{k}"].item() == pytest.approx(cls, abs=1e-6)
        assert losses[f"iou{k}"].item() == pytest.approx(3 * iou, abs=1e-6)
        assert losses[f"bag{k}"].item() == pytest.approx(bag, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_mil_and_clusters_equal_plain_loops(seed):
    scores, sample, _, _ = scene(seed)
    cls, det = scores.cls.detach(), scores.det.detach()
    columns = range(cls.shape[1])
    target = image_label(sample.tags)
    mil = np.mean([slow_bce(float((cls[:, c] * det[:, c]).sum()), target[c]) for c in columns])
    assert mil_loss(cls, det, sample.tags).item() == pytest.approx(mil)

    total = 0.0
    for number in range(1, 5):
        members = (sample.cluster == number).nonzero()[:, 0].tolist()
        if not members:
            continue
        c = int(sample.class_ids[members[0]])
        rows = cls[members] if c == 0 else cls[members].mean(0, keepdim=True)
        total += len(members) * np.mean([slow_bce(float(row[j]), float(j == c)) for row in rows for j in columns])
    expected = total / int((sample.class_ids >= 0).sum())
    assert cluster_loss(cls, sample.class_ids, sample.cluster).item() == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_branch_losses_equal_plain_loops(seed):
    scores, sample, _, _ = scene(seed)
    labels = labels_of(seed)
    cls, iou = scores.refine_cls[0].detach(), scores.refine_iou[0].detach()
    rows = range(len(cls))
    used = [i for i in rows if labels.class_ids[i] >= 0]
    front = [i for i in rows if labels.class_ids[i] > 0]
    expected = sum(labels.weight[i] * -math.log(cls[i, labels.class_ids[i]]) for i in used) / len(used)
    assert class_loss(cls, labels).item() == pytest.approx(float(expected))

    def smooth(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    expected = sum(labels.weight[i] * smooth(float(iou[i, labels.class_ids[i]] - labels.integrity[i])) for i in front)
    assert integrity_loss(iou, labels).item() == pytest.approx(float(expected) / len(front))

    total, target = 0.0, image_label(sample.tags)
    for c in range(cls.shape[1]):
        group = [i for i in rows if labels.class_ids[i] == c] if target[c] else list(rows)
        if group:
            best = max(group, key=lambda i: cls[i, c] * iou[i, c])
            weight = labels.weight[best] if target[c] else 1.0
            total += float(weight) * slow_bce(float(cls[best, c] * iou[best, c]), target[c])
    assert bag_loss(cls, iou, labels, sample.tags).item() == pytest.approx(total / cls.shape[1])


@pytest.mark.parametrize("miner", [CIMMiner(), MISTMiner(), OICRMiner(), PCLMiner()])
def test_every_miner_trains_every_branch(miner):
    scores, sample, over, logits = scene(1)
    losses, notes = Criterion(miner)(scores, sample, over, torch.Generator().manual_seed(0))
    assert set(losses) == {"mil", "pcl", *(f"{name}{k}" for name in ("cls", "iou", "bag") for k in range(3))}
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all() and (logits.grad.abs().sum((1, 2)) > 0).all()
    for k in range(3):
        shares = notes[f"labelled{k}"] + notes[f"background{k}"] + notes[f"ignored{k}"]
        assert shares.item() == pytest.approx(1)
        assert 0 < notes[f"mined{k}"] <= notes[f"seeds{k}"]
    assert notes["skipped"] == 0


def test_weights_are_in_one_place():
    scores, sample, over, _ = scene(2)
    miner = CIMMiner(anti_noise=False)
    plain, _ = Criterion(miner, LossWeights(1, 1, 1, 1, 1, 1))(scores, sample, over)
    factors = LossWeights(mil=2, pcl=3, cls=5, iou=7, bag=11, first_branch=13)
    weighted, _ = Criterion(miner, factors)(scores, sample, over)
    expected = {"mil": 2, "pcl": 3, "cls0": 5 * 13, "cls1": 5, "iou0": 7 * 13, "iou2": 7, "bag1": 11}
    assert {name: (weighted[name] / plain[name]).item() for name in expected} == pytest.approx(expected)


def test_without_integrity():
    scores, sample, over, logits = scene(3)
    criterion = Criterion(CIMMiner(anti_noise=False), integrity=False)
    losses, _ = criterion(scores, sample, over)
    assert not any(name.startswith("iou") for name in losses)
    ones = RoiScores(scores.cls, scores.det, scores.refine_cls, torch.ones_like(scores.refine_iou))
    expected, _ = Criterion(CIMMiner(anti_noise=False))(ones, sample, over)
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    sum(losses.values()).backward()
    assert not logits.grad[5:].any()


@pytest.mark.parametrize("branches", [1, 2])
def test_without_first_labels_and_fewer_branches(branches):
    scores, sample, over, _ = scene(4, branches=branches)
    losses, _ = Criterion(MISTMiner(), first_labels=False)(scores, sample, over)
    assert set(losses) == {"mil", *(f"{name}{k}" for name in ("cls", "iou", "bag") for k in range(branches))}


def test_branches_where_nothing_is_mined_are_skipped():
    scores, sample, over, _ = scene(5)
    blind = CIMMiner(big_fraction=0.0)  # every proposal counts as big
    losses, notes = Criterion(blind)(scores, sample, over)
    assert notes["skipped"] == 3
    assert all(value == 0 for name, value in losses.items() if name not in ("mil", "pcl"))


def test_without_any_first_label_pcl_is_zero():
    scores, sample, _, _ = scene(6)
    nothing = torch.full_like(sample.class_ids, -1)
    for stable in (False, True):
        assert cluster_loss(scores.cls, nothing, torch.zeros_like(nothing), stable) == 0


@pytest.mark.parametrize("stable", [False, True])
def test_no_proposals_give_finite_losses(stable):
    empty = torch.zeros(0, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    sample = sample_of(torch.tensor([1.0, 0, 0, 0]), none, none)
    scores = RoiScores(empty, empty, torch.zeros(3, 0, 5), torch.zeros(3, 0, 5))
    losses, _ = Criterion(CIMMiner(), stable=stable)(scores, sample, Overlaps(torch.zeros(0, 0), torch.zeros(0, 0)))
    assert set(losses) == {"mil", "pcl"} and all(value.isfinite() for value in losses.values())


def test_absent_labels_give_zero_branch_losses():
    scores, sample, _, _ = scene(7)
    n = len(scores.cls)
    zeros = torch.zeros(n, dtype=torch.float64)
    ignored = PseudoLabels(torch.full((n,), -1), zeros, zeros, zeros > 0)
    assert class_loss(scores.refine_cls[0], ignored) == 0 and integrity_loss(scores.refine_iou[0], ignored) == 0
    bag = bag_loss(scores.refine_cls[0], scores.refine_iou[0], ignored, sample.tags)
    assert bag > 0  # absent classes still speak


def test_stable_losses_equal_the_published_where_nothing_is_clamped():
    scores, sample, over, _ = scene(8)
    labels = Criterion(CIMMiner(anti_noise=False)).mine(scores, sample.tags, over)
    plain, stable = (
        Criterion(CIMMiner(), stable=stable).unweighted(scores, sample, labels) for stable in (False, True)
    )
    for name in plain:
        assert plain[name].item() == pytest.approx(stable[name].item(), rel=1e-9), name


def test_stable_losses_still_teach_a_surely_wrong_network():
    """Background probability 1 everywhere: the clamp leaves (next to) no gradient, the stable form all of it."""
    _, sample, over, _ = scene(9)
    sizes = []
    for stable in (False, True):
        logits = torch.zeros(8, 30, 5)
        logits[[0, 2, 3, 4], :, 0] = 40.0
        logits.requires_grad_()
        scores = RoiScores(logits[0].softmax(1), logits[1].softmax(0), logits[2:5].softmax(2), logits[5:].sigmoid())
        losses, _ = Criterion(CIMMiner(), stable=stable)(scores, sample, over, torch.Generator().manual_seed(0))
        (losses["mil"] + losses["pcl"]).backward()
        assert logits.grad.isfinite().all()
        sizes.append(logits.grad[0].abs().max().item())
    assert sizes[0] < 1e-6 and sizes[1] > 1e-2


def test_half_precision_scores_are_summed_in_float32():
    scores, sample, over, _ = scene(10)
    half = RoiScores(*(getattr(scores, name).detach().bfloat16() for name in vars(scores)))
    full = RoiScores(*(getattr(half, name).float() for name in vars(half)))
    criterion = Criterion(MISTMiner())
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = criterion(half, sample, over)
    exact, _ = criterion(full, sample, over)
    assert all(mixed[name].dtype == torch.float32 and torch.equal(mixed[name], exact[name]) for name in exact)


def test_config_reaches_miner_and_criterion():
    mining = MiningConfig(seed_fraction=0.2, contain_threshold=0.7, anti_noise=False, integrity=False)
    criterion = build_criterion(mining, LossConfig(pcl=5, first_labels=False, stable=True))
    assert criterion.miner == CIMMiner(seed_fraction=0.2, contain_threshold=0.7, anti_noise=False)
    assert criterion.weights == LossWeights(pcl=5)
    assert (criterion.integrity, criterion.first_labels, criterion.stable) == (False, False, True)
    kinds = {"cim": CIMMiner, "mist": MISTMiner, "oicr": OICRMiner, "pcl": PCLMiner}
    for method, kind in kinds.items():
        assert build_miner(MiningConfig(method=method)) == kind()
