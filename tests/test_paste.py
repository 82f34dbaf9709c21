"""Small masks in their photos: bit for bit, and nothing outside, damaged or endless."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cim.datasets.marks.paste import png_mask, runs_mask

SIZE = (20, 30)
SMALL = np.array([[True, False, True], [False, True, True]])


def png(pixels: np.ndarray, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def whole(x: int, y: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + 2, x : x + 3] = SMALL
    return mask


@pytest.mark.parametrize(("x", "y"), [(0, 0), (4, 7), (27, 18)])
def test_a_small_mask_lies_where_its_corner_says(x, y):
    assert (png_mask(png(SMALL), (x, y), SIZE) == whole(x, y)).all()
    assert (png_mask(png(SMALL.astype(np.uint8) * 7), (x, y), SIZE) == whole(x, y)).all()
    assert (runs_mask("0, 1,1,1, 1,2", (x, y, 3, 2), SIZE) == whole(x, y)).all()


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -1), (28, 0), (0, 19), (10**30, 0)])
def test_nothing_leaves_the_photo(x, y):
    for make in (lambda: png_mask(png(SMALL), (x, y), SIZE), lambda: runs_mask("0,6", (x, y, 3, 2), SIZE)):
        with pytest.raises(ValueError, match="leaves the photo"):
            make()


@pytest.mark.parametrize("text", ["", "???", "AAAA", png(SMALL)[:40], png(SMALL.astype(np.uint8), "JPEG"), None, 7])
def test_what_is_no_png(text):
    with pytest.raises(ValueError, match=r"no PNG|base64|padding|digit"):
        png_mask(text, (0, 0), SIZE)


def test_a_large_png_is_refused_before_it_is_unpacked():
    with pytest.raises(ValueError, match="mask of"):
        png_mask(png(np.zeros((5000, 5000), bool)), (0, 0), SIZE)


def test_runs_of_background_alone():
    assert not runs_mask("6", (0, 0, 3, 2), SIZE).any()


@pytest.mark.parametrize("runs", ["", "0,7", "-1,7", "0,x", "1e30", f"0,{10**30}", "0,6,0,1", "2,2.5,1.5"])
def test_what_are_no_runs(runs):
    with pytest.raises(ValueError):
        runs_mask(runs, (0, 0, 3, 2), SIZE)


@pytest.mark.parametrize("box", [(0, 0, 0, 2), (0, 0, 3, -2), (0, 0, 10**9, 10**9)])
def test_boxes_without_pixels_or_without_end(box):
    with pytest.raises(ValueError, match="leaves the photo"):
        runs_mask("0,6", box, SIZE)
