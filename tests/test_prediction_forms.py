"""A prediction in the forms of other libraries, as files, and as pictures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cim import Prediction
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.run_lengths import compressed
from cim.core.types import Instances

SIZE = (30, 40)


def found(count: int = 2, path: Path | None = Path("holiday/a.jpg")) -> Prediction:
    """A rectangle with a hole, of the second class, and a square at the corner, of the first."""
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 5:20, 10:30], masks[0, 9:12, 15:20], masks[1, 20:, 30:] = True, False, True
    regions = RegionSet.from_masks(masks)
    scores, class_ids = np.array([0.9, 0.4], np.float32)[:count], np.array([1, 0])[:count]
    rles = compressed(regions.rles(), SIZE)[:count]
    instances = Instances("photo", SIZE, class_ids, scores, regions.boxes[:count], rles, np.arange(count))
    photo = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    return Prediction(photo, instances, ("cat", "dog"), path)


def test_says_what_it_is():
    assert repr(found()) == "<a.jpg, 40 x 30: dog 0.90, cat 0.40>"
    assert repr(found(0, None)) == "<photo, 40 x 30: nothing found>"


def test_rows_are_plain():
    rows = found().rows()
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["label"] == "dog" and rows[0]["score"] == pytest.approx(0.9) and rows[0]["area"] == 285
    assert [rows[0][edge] for edge in ("x1", "y1", "x2", "y2")] == [10, 5, 30, 20]
    assert rows[1]["class_id"] == 0 and rows[1]["photo"] == str(Path("holiday/a.jpg"))
    assert found(0).rows() == [] and found(path=None).rows()[0]["photo"] is None


def test_rows_are_what_pandas_takes():
    pandas = pytest.importorskip("pandas", reason="needs pip install 'cim[pandas]'")
    table = pandas.DataFrame(found().rows())
    assert table.groupby("label")["area"].sum().to_dict() == {"cat": 100, "dog": 285}


def test_supervision():
    supervision = pytest.importorskip(
        "supervision", reason="supervision is not installed: pip install 'cim[supervision]'"
    )
    one = found()
    theirs = one.to_supervision()
    assert isinstance(theirs, supervision.Detections) and len(theirs) == 2
    assert np.array_equal(theirs.mask, one.masks) and np.array_equal(theirs.xyxy, one.boxes)
    assert theirs["class_name"].tolist() == ["dog", "cat"] and theirs[theirs.confidence > 0.5].class_id.tolist() == [1]
    assert theirs.area.tolist() == [285, 100]
    assert (supervision.MaskAnnotator().annotate(one.image.copy(), theirs) != one.image).any()
    assert len(found(0).to_supervision()) == 0


def test_supervision_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(CimError, match=r"supervision is not installed; to fix: pip install 'cim\[supervision\]'"):
        found().to_supervision()


def test_crops():
    one = found()
    plain = one.crops()
    assert [crop.shape for crop in plain] == [(15, 20, 3), (10, 10, 3)]
    assert np.array_equal(plain[0], one.image[5:20, 10:30])
    wide = one.crops(margin=0.5)
    assert [crop.shape for crop in wide] == [(28, 40, 3), (15, 15, 3)]  # up to the edge of the photo
    cut = one.crops(cut_out=True)[0]
    assert cut.shape == (15, 20, 4) and np.array_equal(cut[..., 3] > 0, one.masks[0, 5:20, 10:30])
    assert not (cut[4:7, 5:10, 3]).any() and np.array_equal(cut[..., :3], plain[0])
    plain[0][:] = 0
    assert one.image[5:20, 10:30].any(), "a crop is the user's own"
    assert found(0).crops() == []


def test_saved_as_the_ending_says(tmp_path):
    one = found()
    coco = COCO(str(one.save(tmp_path / "deep" / "one.json")))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [str(Path("holiday/a.jpg"))]
    assert [coco.cats[a["category_id"]]["name"] for a in coco.loadAnns(coco.getAnnIds())] == ["dog", "cat"]
    assert np.array_equal(coco.annToMask(coco.loadAnns([1])[0]).astype(bool), one.masks[0])
    with Image.open(one.save(tmp_path / "one.PNG")) as picture:
        assert np.array_equal(np.asarray(picture), one.overlay())
    assert (tmp_path / "one.txt") == one.save(str(tmp_path / "one.txt"))
    assert (tmp_path / "one.txt").read_text().splitlines() == one.to_yolo()
    assert found(0).save(tmp_path / "none.txt").read_text() == ""
    with pytest.raises(CimError, match=r"no such form of a prediction: .*one\.gif; expected \.json, \.txt, \.jpg"):
        one.save(tmp_path / "one.gif")


def test_yolo_lines():
    lines = found().to_yolo()
    assert [line.split()[0] for line in lines] == ["1", "0"]
    points = np.array(lines[1].split()[1:], float).reshape(-1, 2) * (40, 30)
    assert points.min(0) == pytest.approx([30, 20], abs=0.5) and points.max(0) == pytest.approx([39, 29], abs=0.5)
    assert all(0 <= float(number) <= 1 for line in lines for number in line.split()[1:])
    assert [line.split()[-1] for line in found().to_yolo(scores=True)] == ["0.900000", "0.400000"]
    assert found(0).to_yolo() == []


def test_a_notebook_shows_a_picture():
    one = found()
    with Image.open(io.BytesIO(one._repr_jpeg_())) as picture:
        assert picture.format == "JPEG" and picture.size == (40, 30)
        assert np.abs(np.asarray(picture).astype(int) - one.overlay()).mean() < 30
    wide = Prediction(np.zeros((100, 3000, 3), np.uint8), found(0).instances, ("cat", "dog"))
    with Image.open(io.BytesIO(wide._repr_jpeg_())) as picture:
        assert picture.size == (1024, 34)


def test_show_opens_the_viewer_outside_a_notebook(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(np.asarray(picture)))
    found().show()
    assert np.array_equal(shown[0], found().overlay())
