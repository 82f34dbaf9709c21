"""Readers of proposals that others made: COB's .mat files and COCO-RLE json."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy.io import loadmat, savemat

from cim.core.errors import CimError
from cim.proposals import rle
from cim.proposals.cob import cob_files, read_cob
from cim.proposals.rle import RleFile


def some_masks(count: int = 11, size: tuple[int, int] = (9, 14), seed: int = 0) -> np.ndarray:
    masks = np.random.default_rng(seed).random((count, *size)) > 0.6
    masks[:, 0, 0] = True
    return masks


def save_voc(path, masks) -> None:
    cells = np.empty((len(masks), 1), object)
    for index, mask in enumerate(masks):
        cells[index, 0] = mask.astype(np.uint8)
    savemat(path, {"maskmat": cells}, do_compression=True)


def save_coco(path, masks) -> None:
    savemat(path, {"maskmat": masks.astype(np.uint8), "scores": np.zeros(3)}, do_compression=True)


# ---------------------------------------------------------------------- COB


@pytest.mark.parametrize("save", [save_voc, save_coco])
@pytest.mark.parametrize("count", [1, 11])
def test_both_layouts(tmp_path, save, count):
    masks = some_masks(count)
    save(tmp_path / "a.mat", masks)
    np.testing.assert_array_equal(read_cob(tmp_path / "a.mat", (9, 14)).masks(), masks)
    np.testing.assert_array_equal(read_cob(tmp_path / "a.mat").masks(), masks)


def test_real_file(reference):
    path = reference / "VOC2012" / "COB_SBD_trainaug" / "2007_000104.mat"
    regions = read_cob(path, (349, 500))
    np.testing.assert_array_equal(regions.masks(), np.stack(list(loadmat(path)["maskmat"][:, 0])) != 0)


@pytest.mark.parametrize("save", [save_voc, save_coco])
def test_empty_mask_is_refused_or_kept_in_place(tmp_path, save):
    masks = some_masks()
    masks[7] = False
    save(tmp_path / "a.mat", masks)
    with pytest.raises(CimError, match=r"mask without a pixel: .*a\.mat; found mask 7 of 11"):
        read_cob(tmp_path / "a.mat")
    kept = read_cob(tmp_path / "a.mat", allow_empty=True)
    np.testing.assert_array_equal(kept.masks(), masks)
    assert kept.boxes[7].tolist() == [0, 0, 0, 0]


def test_no_proposals_in_a_file(tmp_path):
    for empty in (np.zeros((0, 0)), np.empty((0, 1), object)):
        savemat(tmp_path / "a.mat", {"maskmat": empty})
        assert read_cob(tmp_path / "a.mat", (5, 6)).masks().shape == (0, 5, 6)
        with pytest.raises(CimError, match="no proposals in this file"):
            read_cob(tmp_path / "a.mat")


def bad_files(folder) -> dict[str, str]:
    """File name -> what its message must say."""
    save_voc(folder / "whole.mat", some_masks())
    whole = (folder / "whole.mat").read_bytes()
    (folder / "half.mat").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.mat").write_bytes(b"")
    (folder / "text.mat").write_text("hello " * 100)
    (folder / "seven.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    savemat(folder / "other.mat", {"masks": np.ones((2, 3, 4)), "x": 1})
    savemat(folder / "flat.mat", {"maskmat": np.ones((3, 4))})
    cells = np.empty((2, 1), object)
    cells[0, 0], cells[1, 0] = np.ones((3, 4)), np.ones((4, 4))
    savemat(folder / "sizes.mat", {"maskmat": cells})
    return {
        "missing.mat": "no COB file for this image",
        "half.mat": "damaged .mat file",
        "nothing.mat": "damaged .mat file",
        "text.mat": "damaged .mat file",
        "seven.mat": "MATLAB 7.3 file",
        "other.mat": "without maskmat",
        "flat.mat": "another layout",
        "sizes.mat": "masks of different sizes",
        "whole.mat": "not of the photo's size",
    }


def test_bad_files_each_have_one_line(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(CimError, match=message) as caught:
            read_cob(tmp_path / name, (10, 14))
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_a_folder(tmp_path):
    with pytest.raises(CimError, match="no folder of COB files"):
        cob_files(tmp_path / "none")
    with pytest.raises(CimError, match=r"no \.mat file here"):
        cob_files(tmp_path)
    names = {"COCO_train2014_000000000009": 9, "COCO_val2014_000000000042": 42, "000000000007": 7}
    names |= {"2007_000100": 2007000100, "dog": "dog"}
    for name in names:
        save_voc(tmp_path / f"{name}.mat", some_masks(1))
    assert {path.stem: image_id for image_id, path in cob_files(tmp_path).items()} == names
    shutil.copy(tmp_path / "000000000007.mat", tmp_path / "COCO_val2014_000000000007.mat")
    with pytest.raises(CimError, match="two files for image 7"):
        cob_files(tmp_path)


# ---------------------------------------------------------------------- COCO-RLE json


def compressed(mask: np.ndarray) -> dict:
    coded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    values = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), mask.size]
    return {"size": list(mask.shape), "counts": [0] * int(values[0]) + np.diff(edges).tolist()}


@pytest.fixture
def entries() -> tuple[dict, list]:
    """Masks by image and entries in mixed order, all codings, ids with letters beyond ASCII."""
    masks = {7: some_masks(5), "é/ü.jpg": some_masks(4, (3, 5)), 8: some_masks(2, (6, 6), 1)}
    rows = [
        {"image_id": image_id, "segmentation": (compressed, uncompressed)[n % 2](mask), "score": n / 8, "note": "ß]},["}
        for image_id, some in masks.items()
        for n, mask in enumerate(some)
    ]
    return masks, rows[::2] + rows[1::2]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_json_of_any_style(tmp_path, monkeypatch, entries, chunk, options):
    masks, rows = entries
    monkeypatch.setattr(rle, "_CHUNK", chunk)
    (tmp_path / "p.json").write_text(json.dumps(rows, **options) + "\n", encoding="utf-8")
    file = RleFile.open(tmp_path / "p.json")
    assert set(file.places) == set(masks)
    for image_id, some in masks.items():
        order = [*range(0, len(some), 2), *range(1, len(some), 2)] if image_id == 7 else None
        regions = file.load(image_id, some.shape[1:])
        order = [int(8 * score) for score in regions.scores] if order is None else order
        np.testing.assert_array_equal(regions.scores, np.array(order, np.float32) / 8)
        np.testing.assert_array_equal(regions.masks(), some[order])


def test_polygons(tmp_path):
    square = {"image_id": 1, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3], [6, 0, 8, 0, 8, 2, 6, 2]]}
    (tmp_path / "p.json").write_text(json.dumps([square]))
    file = RleFile.open(tmp_path / "p.json")
    expected = np.zeros((5, 9), bool)
    expected[1:3, 1:4], expected[0:2, 6:8] = True, True
    np.testing.assert_array_equal(file.load(1, (5, 9)).masks()[0], expected)
    with pytest.raises(CimError, match="polygons need the photo's size"):
        file.load(1)


def test_images_without_entries(tmp_path):
    (tmp_path / "p.json").write_text(" [ ] ")
    file = RleFile.open(tmp_path / "p.json")
    assert file.load(5, (4, 3)).masks().shape == (0, 4, 3)
    with pytest.raises(CimError, match="no proposals for image 5"):
        file.load(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a proposals file"),
        ('{"images": []}', "not a proposals file"),
        ('[{"image_id": 1', "truncated or damaged json"),
        ('[{"image_id": 1, "segmentation": []}', "truncated or damaged json"),
        ('[{"image_id" 1}]', "truncated or damaged json"),
        ("[3 ]", "entry 0 is no proposal"),
        ('[{"image_id": 1}]', "entry 0 is no proposal"),
        ('[{"image_id": [1], "segmentation": []}]', "bad image_id"),
    ],
)
def test_bad_json(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(CimError, match=message) as caught:
        RleFile.open(tmp_path / "p.json")
    assert "p.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_json_and_other_encodings(tmp_path):
    (tmp_path / "p.json").write_text('[{"image_id": "\u00e9", "segmentation": []}]', encoding="latin1")
    with pytest.raises(CimError, match="json is not in UTF-8"):
        RleFile.open(tmp_path / "p.json")
    (tmp_path / "p.json").unlink()
    with pytest.raises(CimError, match="missing file"):
        RleFile.open(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 3], "counts": [5, 3]}, "runs add up to 8, not to 4 x 3"),
        ({"size": [4, 3], "counts": [14, -2]}, "bad mask: proposal 0 of image 1"),
        ({"size": [4, 3]}, "bad mask"),
        ({"size": ["a", 3], "counts": [12]}, "bad mask"),
        ([[1, 2, 3]], "three points"),
        ("text", "bad mask"),
        (None, "bad mask"),
        ({"size": [5, 3], "counts": [15]}, "not of the photo's size"),
        ({"size": [4, 3], "counts": "zzzzzzzzz"}, "damaged mask"),
    ],
)
def test_bad_masks(tmp_path, segmentation, message):
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "segmentation": segmentation}]))
    with pytest.raises(CimError, match=message):
        RleFile.open(tmp_path / "p.json").load(1, (4, 3))
