"""METHOD section 5 word by word, one pair of proposals at a time: what the vectorised miners must equal."""

from __future__ import annotations

import math

import numpy as np


def slow_nms(score, iou, fraction, threshold):
    """Kept proposals of one class, highest first."""
    count = math.ceil(fraction * len(score))
    kept = []
    for j in sorted(range(len(score)), key=lambda i: -score[i])[:count]:
        if all(iou[j, i] < threshold for i in kept):
            kept.append(j)
    return kept


def slow_big(containment, contain_threshold=0.85, big_fraction=0.9):
    """Step 1."""
    n = len(containment)
    return [sum(containment[i, j] > contain_threshold for j in range(n)) >= big_fraction * n for i in range(n)]


def slow_complete(d, seeds, containment, big, contain_threshold=0.85):
    """Step 3: for every seed the best proposal around it."""
    found = []
    for j in seeds:
        best = None
        for i in range(len(d)):
            if containment[i, j] > contain_threshold and not big[i] and (best is None or d[i] > d[best]):
                best = i
        if best is not None and best not in found:
            found.append(best)
    return found


def slow_top_group(score, groups=3, rounds=20):
    """Members of the highest k-means group, the centres first evenly spread."""
    centres = [min(score) + (max(score) - min(score)) * k / (groups - 1) for k in range(groups)]

    def nearest(x):
        return min(range(groups), key=lambda k: (abs(x - centres[k]), k))

    for _ in range(rounds):
        parts = [[x for x in score if nearest(x) == k] for k in range(groups)]
        centres = [sum(part) / len(part) if part else centre for part, centre in zip(parts, centres, strict=True)]
    highest = nearest(max(score))
    return [i for i, x in enumerate(score) if nearest(x) == highest]


def slow_clusters(weight, iou, graph_iou=0.4, most=5):
    """(centre, highest weight of its cluster) of one class, one after the other."""
    alive, found = slow_top_group(weight), []
    while alive and len(found) < most:
        near = {i: [j for j in alive if j == i or iou[i, j] > graph_iou] for i in alive}
        centre = max(alive, key=lambda i: (len(near[i]), -i))
        found.append((centre, max(weight[j] for j in near[centre])))
        alive = [j for j in alive if j not in near[centre]]
    return found


def slow_spread(truths, iou, t_cls, t_iou, background=0.0):
    """Step 6 from (proposal, class, weight) of the pseudo ground truths."""
    n = len(iou)
    class_ids, integrity, weight = np.full(n, -1), np.zeros(n), np.zeros(n)
    for i in range(n):
        best = None
        for g, c, w in truths:
            if best is None or iou[i, g] > best[0]:
                best = (iou[i, g], c, w)
        overlap, c, w = best
        if overlap == 0 or overlap < background:
            continue
        class_ids[i] = c if overlap >= t_cls else 0
        integrity[i] = overlap > t_iou
        weight[i] = w
    return class_ids, integrity, weight


def slow_mine(
    method,
    s,
    d,
    tags,
    iou,
    containment,
    branch,
    containment_on=True,
    big_as_background=False,
    cluster_seeds=False,
    background=0.0,
):
    """(class_ids, integrity, weight, mined) of CIM (without sampling) or MIST; None when nothing is mined."""
    t_cls, t_iou = 0.25 + 0.1 * branch, 0.5 + 0.1 * branch
    w = s * d
    big = slow_big(containment) if method == "cim" else None
    owner = {}
    for c in np.flatnonzero(tags):
        if cluster_seeds:
            clusters = slow_clusters(w[:, c], iou)
            found = [centre for centre, _ in clusters]
            for centre, highest in clusters:
                w[centre, c] = highest
        else:
            found = slow_nms((w if method == "mist" else s)[:, c], iou, 0.1, t_cls)
        if method == "cim" and containment_on:
            found = slow_complete(d[:, c], found, containment, big)
        for i in found:
            if i not in owner or w[i, c] > w[i, owner[i]]:  # step 4
                owner[i] = c
    if not owner:
        return None
    truths = sorted(((i, c + 1, w[i, c]) for i, c in owner.items()), key=lambda t: (t[1], t[0]))
    class_ids, integrity, weight = slow_spread(truths, iou, t_cls, t_iou, background)
    if big_as_background:
        class_ids[big], integrity[big] = 0, 0
    mined = np.zeros(len(iou), bool)
    mined[list(owner)] = True
    return class_ids, integrity, weight, mined
