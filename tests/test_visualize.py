"""Painting instances, and the tool that does it for a data set."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from doors import run_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from skimage.color import rgb2lab
from small_photo_set import disc, rle, write_photo_set

from cim.core.errors import CimError
from cim.pictures import visualize
from cim.pictures.photo_set import PhotoSet
from cim.pictures.visualize import class_colour, decode, draw_instances, shrink, side_by_side

ROOT = Path(__file__).resolve().parent.parent
SIZE = (80, 100)
PHOTO = np.full((*SIZE, 3), 128, np.uint8)


def test_fill_is_a_blend_and_the_outside_stays():
    mask = disc(SIZE, 40, 50, 25)
    drawn = draw_instances(PHOTO, mask[None], class_ids=[4], alpha=0.5)
    expected = (128 + np.array(class_colour(4))) / 2
    np.testing.assert_allclose(drawn[40, 50], expected, atol=1)
    assert (drawn[~disc(SIZE, 40, 50, 29)] == 128).all()
    assert (PHOTO == 128).all()  # the photo itself is not painted


def test_small_instance_stays_visible_on_a_large_one():
    large, small = disc(SIZE, 40, 50, 35), disc(SIZE, 40, 50, 10)
    one = draw_instances(PHOTO, np.stack([small, large]), class_ids=[0, 1])
    other = draw_instances(PHOTO, np.stack([large, small]), class_ids=[1, 0])
    np.testing.assert_array_equal(one, other)
    assert abs(one[40, 50].astype(int) - one[40, 22]).max() > 20


@pytest.mark.parametrize("kind", ["compressed", "uncompressed", "polygon", "mask"])
def test_all_kinds_of_masks_are_painted_alike(kind):
    mask = np.zeros(SIZE, bool)
    mask[20:60, 30:70] = True
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel("F").astype(int), prepend=0, append=2))).tolist()
    start = int(np.flatnonzero(mask.ravel("F"))[0])
    given_as = {
        "compressed": [rle(mask)],
        "uncompressed": [{"size": list(SIZE), "counts": [start, *runs]}],
        "polygon": [[[30, 20, 70, 20, 70, 60, 30, 60]]],
        "mask": mask[None],
    }[kind]
    np.testing.assert_array_equal(draw_instances(PHOTO, given_as), draw_instances(PHOTO, mask[None]))


@pytest.mark.parametrize("masks", [np.zeros((0, *SIZE), bool), [], np.zeros((2, *SIZE), bool)])
def test_nothing_to_paint(masks):
    labels = ["a"] * len(masks)
    np.testing.assert_array_equal(draw_instances(PHOTO, masks, labels=labels, scores=[0.5] * len(masks)), PHOTO)


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [5, 5], "counts": [25]},
        {"size": list(SIZE), "counts": [10, 10]},
        {"size": list(SIZE), "counts": "zzzz~~"},
        {"size": list(SIZE), "counts": rle(disc(SIZE, 40, 50, 20))["counts"][:-3]},
        {"counts": "1"},
        [[1, 2]],
        7,
    ],
)
def test_broken_masks_are_refused(broken):
    with pytest.raises(CimError, match=r"damaged mask|another size"):
        decode(broken, SIZE)


def test_masks_of_another_size_are_refused():
    with pytest.raises(CimError, match=r"expected \[80, 100\]; found \[4, 4\]"):
        draw_instances(PHOTO, np.ones((1, 4, 4), bool))


@pytest.mark.parametrize("blind", [None, "deutan", "protan"])
def test_the_first_classes_are_told_apart_by_everyone(blind):
    """At least 12 units of CIELAB between any two of the first 20 colours, also for colour-blind sight."""
    matrices = {
        None: np.eye(3),
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    }
    rgb = np.array([class_colour(k) for k in range(20)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(matrices[blind])
    linear = np.clip(linear, 0, 1)
    seen = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen[None])[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(20)
    assert distance.min() > 12


def test_colours_of_many_classes_differ():
    assert len({class_colour(k) for k in range(80)}) == 80


def test_labels_change_the_picture_and_survive_missing_fonts(monkeypatch):
    mask = disc(SIZE, 40, 50, 25)[None]
    plain = draw_instances(PHOTO, mask)
    bitmap = ImageFont.load_default_imagefont()
    for fallback in (ImageFont.load_default, lambda size: bitmap):  # Pillow with and without FreeType

        def none(*_args, **_kwargs):
            raise OSError("cannot open resource")

        visualize._font.cache_clear()
        with monkeypatch.context() as patch:
            if fallback is ImageFont.load_default:
                patch.setattr(visualize, "_FONTS", ("no such font.ttf",))
                patch.setattr(visualize, "_EAST_ASIAN_FONTS", ())
            else:
                patch.setattr(ImageFont, "truetype", none)
                patch.setattr(ImageFont, "load_default", fallback)
            for text in ("dog", "Hündin", "犬"):
                drawn = draw_instances(PHOTO, mask, labels=[text], scores=[0.87])
                assert (drawn != plain).any()
        visualize._font.cache_clear()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-5, 60), st.integers(-5, 60), st.integers(1, 40), st.text("aWg ", max_size=12)),
        max_size=6,
    ),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_any_layout_is_drawn(items, height, width):
    photo = np.zeros((height, width, 3), np.uint8)
    masks = [disc((height, width), y, x, r) for y, x, r, _ in items]
    masks = np.stack(masks) if masks else np.zeros((0, height, width), bool)
    drawn = draw_instances(photo, masks, labels=[i[3] for i in items], scores=[0.5] * len(items))
    assert drawn.shape == photo.shape and drawn.dtype == np.uint8


def test_side_by_side_and_shrink():
    left, right = np.full((40, 60, 3), 10, np.uint8), np.full((40, 60, 3), 200, np.uint8)
    plain = side_by_side(left, right)
    assert plain.shape[0] == 40 and (plain[:, :60] == 10).all() and (plain[:, -60:] == 200).all()
    titled = side_by_side(left, right, ("Truth", "Found"))
    assert titled.shape[0] > 40 and (titled[-40:, :60] == 10).all() and (titled[:-40] < 128).any()
    assert shrink(left, 30).shape == (20, 30, 3) and shrink(left, 90) is left


# ---------------------------------------------------------------------- the tool


def main(arguments: list[str]) -> int:
    return run_tool("visualize", *arguments)


def _arguments(paths, output, *more):
    names = ("results", "annotations", "images")
    given = [text for name in names for text in (f"--{name}", str(paths[name]))]
    return [*given, "--output", str(output), "--workers", "1", *more]


@pytest.fixture
def paths(tmp_path):
    return write_photo_set(tmp_path / "data")


@pytest.mark.parametrize(("mode", "width"), [("predictions", 120), ("truth", 120), ("both", 246)])
def test_tool_makes_every_picture(paths, tmp_path, mode, width):
    assert main(_arguments(paths, tmp_path / "out", "--mode", mode)) == 0
    made = sorted((tmp_path / "out").glob("*.jpg"))
    assert [path.stem for path in made] == [f"photo_{k}" for k in range(4)]
    assert Image.open(made[0]).width == width


def test_tool_resumes_and_refuses_to_mix(paths, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(_arguments(paths, out, "--max-images", "2")) == 0
    assert sorted(path.stem for path in out.glob("*.jpg")) == ["photo_0", "photo_2"]  # spread over all four
    assert main(_arguments(paths, out)) == 0
    assert "2 pictures made, 2 were there" in capsys.readouterr().out
    assert main(_arguments(paths, out, "--mode", "truth")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(_arguments(paths, out, "--mode", "truth", "--overwrite")) == 0


def test_processes_share_the_work(paths, tmp_path):
    assert main([*_arguments(paths, tmp_path / "out"), "--workers", "2"]) == 0
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4


def test_score_threshold_leaves_out_weak_detections(paths, tmp_path):
    def picture(threshold):
        out = tmp_path / threshold
        assert main(_arguments(paths, out, "--mode", "predictions", "--score-threshold", threshold)) == 0
        return np.asarray(Image.open(out / "photo_3.jpg")).astype(int)

    assert abs(picture("0.01") - picture("0.5")).max() > 40  # photo 3 has only the weak one


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_id": 99}, "unknown image"),
        ({"category_id": 5}, "unknown category"),
        ({"segmentation": rle(np.ones((4, 4), bool))}, "mask of another size"),
        ({"segmentation": {"size": [90, 120], "counts": "abc"}}, "damaged mask"),
    ],
)
def test_bad_results_are_one_line(paths, tmp_path, capsys, change, told):
    content = json.loads(paths["results"].read_text())
    content[1] |= change
    paths["results"].write_text(json.dumps(content))
    assert main(_arguments(paths, tmp_path / "out")) == 2
    message = capsys.readouterr().err.strip()
    assert told in message and "results.json" in message and len(message.splitlines()) == 1


def test_a_damaged_photo_harms_no_other(paths, tmp_path):
    (paths["images"] / "photo_1.png").write_bytes(b"no photo")
    Image.new("RGB", (7, 7)).save(paths["images"] / "photo_2.png")
    assert main(_arguments(paths, tmp_path / "out")) == 2
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.jpg")) == ["photo_0", "photo_3"]


def test_nothing_given(capsys):
    assert main([]) == 2
    assert "--annotations" in capsys.readouterr().err


def test_annotations_without_masks_need_predictions_mode(paths, tmp_path, capsys):
    content = json.loads(paths["annotations"].read_text())
    del content["annotations"]
    paths["annotations"].write_text(json.dumps(content))
    assert main(_arguments(paths, tmp_path / "out")) == 0
    assert main(_arguments(paths, tmp_path / "other", "--mode", "both")) == 2
    assert "needs annotated masks" in capsys.readouterr().err


def test_same_file_names_in_two_folders_stay_apart(paths):
    content = json.loads(paths["annotations"].read_text())
    content["images"][0]["file_name"] = "a/photo.jpg"
    content["images"][1]["file_name"] = "b/photo.jpg"
    paths["annotations"].write_text(json.dumps(content))
    stems = PhotoSet.read(paths["annotations"], paths["images"]).stems
    assert stems == {10: "photo-10", 11: "photo-11", 12: "photo_2", 13: "photo_3"}


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["resnet50_voc"]),
        (["coco", "runs/a b"], ["coco", "--set", "work_dir=runs/a b"]),
        (["coco", "--max-images", "5"], ["coco", "--max-images", "5"]),
        (["coco", "runs/x", "--mode", "both"], ["coco", "--mode", "both", "--set", "work_dir=runs/x"]),
    ],
)
def test_script_passes_its_arguments_on(tmp_path, given, passed):
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    script = ROOT / "scripts" / "visual_result_mmcv.sh"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    told = subprocess.run(["bash", str(script), *given], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.stdout.splitlines() == [str(ROOT / "tools" / "visualize.py"), *passed]
