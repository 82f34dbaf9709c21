"""CVAT's own code for masks agrees with the XML, and datumaro, which reads it, gives the masks back."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from compared import same_masks, tell

SPLITS = ("train", "val")


@pytest.mark.parametrize("split", SPLITS)
def test_runs_are_those_of_cvat(exported, split):
    masks = pytest.importorskip("cvat_sdk.masks", reason="cvat-sdk is not installed")
    root = ElementTree.parse(exported.folder / "cvat" / split / "annotations.xml").getroot()
    truth = exported.truth(split)
    count = 0
    for image in root.iter("image"):
        size = {"image_width": int(image.get("width")), "image_height": int(image.get("height"))}
        for element, mark in zip(image.iter("mask"), truth[image.get("name")], strict=True):
            left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
            points = [*map(int, element.get("rle").split(",")), left, top, left + width - 1, top + height - 1]
            assert points == masks.encode_mask(mark.mask())
            assert (masks.decode_mask(points, **size) == mark.mask()).all()
            count += 1
    tell("cvat-sdk", f"{count} masks of {split}, all bit for bit")


@pytest.mark.parametrize("split", SPLITS)
def test_datumaro_reads_the_xml(exported, split):
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    dataset = datumaro.Dataset.import_from(str(exported.folder / "cvat" / split), "cvat")
    truth = exported.truth(split)
    assert len(dataset) == len(truth)
    for item in dataset:
        marks = truth[f"{item.id.rsplit('/', 1)[-1]}.jpg"]
        assert same_masks([annotation.image for annotation in item.annotations], marks)
    tell("datumaro", f"{len(dataset)} photos of {split} from CVAT's XML, all masks bit for bit")
