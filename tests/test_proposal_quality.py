"""Recall and composition of proposals, on pictures small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from doors import call_tool
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.cli.common import run
from cim.core.regions import RegionSet
from cim.proposals.quality import KINDS, classify, decode_masks, measure, summarise
from cim.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent

H, W = 10, 20


def block(x1: int, x2: int, y1: int = 0, y2: int = H) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y1:y2, x1:x2] = True
    return mask


OBJECTS = np.stack([block(2, 6), block(10, 14)])  # 40 pixels each


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (block(2, 6), "complete"),
        (block(2, 9), "complete"),  # 40 / 70
        (block(2, 14), "merge"),
        (block(0, 9), "spill"),  # 40 / 90
        (block(3, 4), "part"),
        (block(15, 20), "background"),
        (block(5, 10), "mixed"),  # 10 of 50 on an object
        (block(2, 5, 0, 4), "part"),
    ],
)
def test_every_kind(mask: np.ndarray, kind: str) -> None:
    found = measure(RegionSet.from_masks(mask[None]), OBJECTS, [1, 2], (1,))
    assert KINDS[int(found.composition[0].argmax())] == kind
    assert found.composition.sum() == 1


def slow_kind(mask: np.ndarray, objects: np.ndarray) -> str:
    """Pixel by pixel, in the order of the definition."""
    ious = [(mask & o).sum() / (mask | o).sum() for o in objects]
    held = [o for o in objects if (mask & o).sum() >= 0.8 * o.sum()]
    if any(iou >= 0.5 for iou in ious):
        return "complete"
    if len(held) > 1:
        return "merge"
    if any(mask.sum() >= 2 * o.sum() for o in held):
        return "spill"
    if any((mask & o).sum() >= 0.8 * mask.sum() for o in objects):
        return "part"
    return "background" if (mask & objects.any(0)).sum() < 0.1 * mask.sum() else "mixed"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_kinds_and_best_overlaps_as_pixel_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        boxes = [np.sort(rng.integers(0, 8, (2, 2)), axis=0) + np.array([[0], [1]]) for _ in range(count)]
        return np.stack([block(b[0, 0], b[1, 0], b[0, 1], b[1, 1]) for b in boxes])

    objects, masks, scores = some(2), some(6), rng.random(6)
    found = measure(RegionSet.from_masks(masks, scores), objects, [5, 6], (1, 3, 6))
    order = np.argsort(-scores)
    kinds = [slow_kind(masks[i], objects) for i in order]
    iou = np.array([[(masks[i] & o).sum() / (masks[i] | o).sum() for i in order] for o in objects])
    for row, count in enumerate((1, 3, 6)):
        np.testing.assert_allclose(found.best[row], iou[:, :count].max(1))
        assert found.composition[row].tolist() == [kinds[:count].count(kind) for kind in KINDS]


def test_summary_counts_objects_not_photos() -> None:
    perfect = measure(RegionSet.from_masks(OBJECTS), OBJECTS, [1, 2], (1, 10))
    nothing = measure(RegionSet.from_masks(np.zeros((0, H, W), bool)), OBJECTS[:1], [1], (1, 10))
    empty = measure(RegionSet.from_masks(OBJECTS), np.zeros((0, H, W), bool), [], (1, 10))
    summary = summarise([perfect, nothing, empty], {1: "cat", 2: "dog", 3: "none"})
    assert (summary["images"], summary["objects"]) == (3, 3)
    assert summary["counts"][1]["abo"] == pytest.approx(1 / 3)
    assert summary["counts"][10]["recall@0.75"] == pytest.approx(2 / 3)
    assert summary["counts"][10]["proposals"] == pytest.approx(4 / 3)
    assert summary["counts"][10]["complete"] == summary["counts"][10]["background"] == 0.5
    assert summary["per_class"]["cat"]["counts"][10]["abo"] == 0.5
    assert summary["per_class"]["none"]["counts"][10]["abo"] is None
    assert summary["per_size"]["small"]["objects"] == 3


def test_nothing_measured() -> None:
    assert summarise([], {})["counts"][10]["abo"] is None
    assert classify(*np.zeros((2, 0, 0)), np.zeros(0), np.zeros(0), np.zeros(0)).shape == (0,)
    assert decode_masks([], (3, 4)).shape == (0, 3, 4)


def dataset(root: Path, images: int = 2) -> Path:
    """Annotated photos with perfect, badly ranked proposals."""
    store = Store.create(root / "store", "regions", {"maker": "toy", "trained_on_masks": False})
    annotations = []
    for image_id in range(1, images + 1):
        masks = np.stack([block(0, 3), *OBJECTS])
        store.save_regions(image_id, RegionSet.from_masks(masks, np.array([0.9, 0.5, 0.1])))
        for x, category in ((2, 1), (10, 2)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": [[x, 0, x + 4, 0, x + 4, H, x, H]],
                    "area": 40,
                    "bbox": [x, 0, 4, H],
                    "iscrowd": 0,
                }
            )
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    path = root / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_tool_writes_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = dataset(tmp_path)
    arguments = ["--proposals", str(tmp_path / "store"), "--annotations", str(truth), "--counts", "3", "1", "2"]
    assert call_tool("proposal_recall", *arguments, "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "recall.json").read_text())["counts"]
    assert list(found) == ["1", "2", "3"]
    assert [found[n]["recall@0.75"] for n in found] == [0, 0.5, 1]
    assert [round(found[n]["oracle@0.50"], 3) for n in found] == [0, 50, 100]
    assert (tmp_path / "out" / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert "| cat | 2 | 1.000 |" in capsys.readouterr().out


def test_tool_names_photos_without_proposals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = dataset(tmp_path)
    (tmp_path / "store" / "2.npz").unlink()
    arguments = ["--proposals", str(tmp_path / "store"), "--annotations", str(truth), "--no-oracle"]
    assert run(lambda: call_tool("proposal_recall", *arguments)) == 2
    assert "1 of 2 annotated photos" in capsys.readouterr().err
    assert call_tool("proposal_recall", *arguments, "--allow-missing") == 0
    assert run(lambda: call_tool("proposal_recall", "--proposals", tmp_path, "--annotations", truth)) == 2
    assert run(lambda: call_tool("proposal_recall", *arguments, "--counts", "0")) == 2
