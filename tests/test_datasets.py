"""Data sets: tags from json, csv and folders; masks never read; every kind of bad input in one clear line."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cim.config.build import build_dataset
from cim.config.schema import DataConfig
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.datasets.coco import open_coco
from cim.datasets.folder import open_folder, read_vocabulary
from cim.datasets.tags.coco_json import read_tag_file
from cim.datasets.tags.csv_file import csv_rows
from cim.datasets.voc import CLASSES, image_id, open_voc

ROOT = Path(__file__).resolve().parent.parent


def photo(path: Path, size: tuple[int, int] = (20, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(path, **options)
    return path


def coco_json(path: Path, images, annotations, categories, masks: bool = True) -> Path:
    """images: (id, name); annotations: (image id, category id); categories: (id, name)."""
    square = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
    content = {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "iscrowd": 0, **({"segmentation": square} if masks else {})}
            for n, (i, c) in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder data set: two training photos, one validation photo, annotations with odd ids."""
    for name in ("train/a.jpg", "train/b.png", "val/v.jpg"):
        photo(tmp_path / name)
    (tmp_path / "train.csv").write_text("image,labels\na.jpg,cat\nb.png,dog cat\n")
    (tmp_path / "val.csv").write_text("image,labels\nv.jpg,dog\n")
    coco_json(tmp_path / "val.json", [(77, "v.jpg")], [(77, 9)], [(9, "dog"), (4, "cat")])
    return tmp_path


def shop_config(root: Path, **changes) -> DataConfig:
    values = {
        "images": "train",
        "tags": "train.csv",
        "val_images": "val",
        "val_tags": "val.csv",
        "val_annotations": "val.json",
    }
    values.update(changes)
    return DataConfig(dataset="folder", **{key: str(root / name) for key, name in values.items() if name is not None})


# ---------------------------------------------------------------------- folders


def test_folder_splits_share_classes_and_ids_follow_the_annotations(shop):
    train, val = build_dataset(shop_config(shop), "train"), build_dataset(shop_config(shop), "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert train.category_ids == val.category_ids == (4, 9)
    assert [(r.image_id, r.size, r.tags) for r in train] == [("a.jpg", (20, 30), (0,)), ("b.png", (20, 30), (0, 1))]
    assert [(r.image_id, r.tags, r.path.name) for r in val] == [(77, (1,), "v.jpg")]
    assert train.annotations is None
    assert val.annotations == shop / "val.json"
    assert val.by_id[77] is val[0]


def test_folder_validation_without_tags_takes_them_from_the_annotations_or_has_none(shop):
    val = build_dataset(shop_config(shop, val_tags=None), "val")
    assert [(r.image_id, r.tags) for r in val] == [(77, (1,))]
    bare = build_dataset(shop_config(shop, val_tags=None, val_annotations=None), "val")
    assert [(r.image_id, r.tags) for r in bare] == [("v.jpg", ())]
    assert bare.category_ids == (1, 2)


def test_folder_of_class_folders(tmp_path):
    for name in ("dog/1.jpg", "cat/1.jpg", "cat/2.JPG", "empty/readme.txt"):
        if name.endswith("txt"):
            (tmp_path / "empty").mkdir()
            (tmp_path / name).write_text("no photo")
        else:
            photo(tmp_path / name, format="JPEG")
    data = open_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [(r.image_id, r.tags) for r in data] == [("cat/1.jpg", (0,)), ("cat/2.JPG", (0,)), ("dog/1.jpg", (1,))]


def test_folder_with_a_json_of_tags(tmp_path):
    photo(tmp_path / "x" / "a.jpg")
    photo(tmp_path / "x" / "b.jpg")
    tags = coco_json(
        tmp_path / "t.json", [(5, "a.jpg"), (3, "b.jpg")], [(5, 2), (5, 1), (5, 2)], [(2, "z"), (1, "y")], False
    )
    data = open_folder(tmp_path / "x", tags)
    assert data.classes == ("y", "z")
    assert data.category_ids == (1, 2)
    assert [(r.image_id, r.tags) for r in data] == [(5, (0, 1)), (3, ())]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_size_is_that_of_the_upright_photo(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photo(tmp_path / "cat" / f"turned.{suffix}", (20, 30), exif=exif)
    assert open_folder(tmp_path)[0].size == read_photo(path).shape[:2] == (30, 20)


def test_a_damaged_exif_block_says_nothing(tmp_path):
    path = photo(tmp_path / "cat" / "a.webp", (20, 30), exif=b"Exif\0\0no TIFF at all")
    assert open_folder(tmp_path)[0].size == read_photo(path).shape[:2] == (20, 30)


def test_floating_pixels_that_are_no_numbers(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    values[0, 0], values[2, 3] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tiff")
    grey = read_photo(tmp_path / "a.tiff")[:, :, 0]
    assert grey[0, 0] == 0 and grey[2, 3] == grey.max() == 255


def test_size_of_a_truncated_png_comes_from_its_header(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    record = open_folder(tmp_path)[0]
    assert record.size == (50, 60)
    with pytest.raises(CimError, match="damaged photo"):
        read_photo(record.path)


def test_photo_named_without_extension_or_with_other_capitals(tmp_path):
    photo(tmp_path / "p" / "Sea.JPG", format="JPEG")
    (tmp_path / "t.csv").write_text("image,labels\nsea,fish\n")
    assert [r.image_id for r in open_folder(tmp_path / "p", tmp_path / "t.csv")] == ["Sea.JPG"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5),
    st.sampled_from([" ", ";", ",", ", ", " ; "]),
)
def test_labels_are_parted_at_every_separator(tmp_path_factory, labels, separator):
    path = tmp_path_factory.getbasetemp() / "labels.csv"
    path.write_text(f'\ufeffid,image , labels\n1,x.jpg,"{separator.join(labels)}"\n', encoding="utf-8")
    assert list(csv_rows(path)) == [(2, "x.jpg", tuple(sorted(set(labels))))]


CSV_ERRORS = [
    ("image,label\na.jpg,cat\n", "no column 'labels'"),
    ("image:labels\na.jpg:cat\n", "no column 'image'"),
    ("", "no column 'image'"),
    ("image,labels\n", "no photos in the tag file"),
    ("image,labels\na.jpg,cat\nb.png,;\n", "photo without a label"),
    ("image,labels\n,cat\n", "no image named"),
    ("image,labels\na.jpg,cat,dog\n", "more values than columns"),
    ("image,labels\nc.jpg,cat\n", "no photo 'c.jpg'"),
    ("image,labels\na.jpg,cat\na.jpg,dog\n", "already in line 2"),
    ("image,labels\na.jpg,cat\nA.JPG,dog\n", "already in line 2"),
    ("image,labels\ntwo,cat\n", "more than one file for 'two': "),
    ("image,labels\n../a.jpg,cat\n", "outside the images folder"),
    ("image,labels\nbroken.jpg,cat\n", "not a readable photo"),
    ('image,labels\na.jpg,"cat\nb.png,dog\n', "not a csv file"),
    ('image,labels\na.jpg,"cat\nb.png,dog"\n', "a quote that is not closed"),
    (f"image,labels\n{'a' * 300}.jpg,cat\n", "no such photo"),
    ("image,labels\ntext.jpg,cat\n", "not a readable photo"),
]


@pytest.mark.parametrize(("text", "message"), CSV_ERRORS)
def test_bad_csv(tmp_path, text, message):
    for name in ("a.jpg", "b.png", "two.jpg", "two.png"):
        photo(tmp_path / "p" / name)
    (tmp_path / "p" / "broken.jpg").write_bytes((tmp_path / "p" / "a.jpg").read_bytes()[:12])
    (tmp_path / "p" / "text.jpg").write_text("not a photo")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CimError) as error:
        open_folder(tmp_path / "p", tmp_path / "t.csv")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_csv_in_another_encoding(tmp_path):
    photo(tmp_path / "p" / "a.jpg")
    (tmp_path / "t.csv").write_bytes("image,labels\na.jpg,Vögel\n".encode("latin-1"))
    with pytest.raises(CimError, match="UTF-8"):
        open_folder(tmp_path / "p", tmp_path / "t.csv")


def test_validation_label_unknown_to_training(shop):
    (shop / "val.csv").write_text("image,labels\nv.jpg,cow\n")
    with pytest.raises(CimError, match=r"label 'cow' is no class of the training photos.*expected cat, dog"):
        build_dataset(shop_config(shop), "val")


def test_annotated_category_unknown_to_training(shop):
    coco_json(shop / "val.json", [(77, "v.jpg")], [(77, 1)], [(1, "cow")])
    with pytest.raises(CimError, match="annotations of 'cow'"):
        build_dataset(shop_config(shop), "val")


def test_annotations_and_photos_must_name_the_same_images(shop):
    coco_json(shop / "val.json", [(77, "other.jpg")], [], [(9, "dog"), (4, "cat")])
    with pytest.raises(CimError, match=r"1 annotated images are not among the tagged photos, e.g. 'other.jpg'"):
        build_dataset(shop_config(shop), "val")
    coco_json(shop / "val.json", [], [], [(9, "dog"), (4, "cat")])
    with pytest.raises(CimError, match=r"no image 'v.jpg' in the annotations"):
        build_dataset(shop_config(shop), "val")


def test_photo_of_another_size_than_annotated(shop):
    photo(shop / "val" / "v.jpg", (30, 20))
    with pytest.raises(CimError, match=r"another size.*expected \(20, 30\); found \(30, 20\)"):
        build_dataset(shop_config(shop), "val")


def test_class_missing_from_the_annotations_gets_an_unused_id(shop):
    coco_json(shop / "val.json", [(77, "v.jpg")], [(77, 9)], [(9, "dog")])
    assert build_dataset(shop_config(shop), "train").category_ids == (10, 9)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "trainaug", "no such split of a folder data set"),
        ({"images": None}, "train", "no training photos given"),
        ({"images": "nowhere"}, "train", "no such folder of photos"),
        ({"tags": None}, "train", "no tags for these photos"),
        ({"tags": "nowhere.csv"}, "train", "no such tag file"),
        ({"val_images": None, "val_tags": None, "val_annotations": None}, "val", "no validation photos given"),
        ({"val_annotations": "nowhere.json"}, "val", "missing annotation file"),
    ],
)
def test_bad_settings(shop, changes, split, message):
    with pytest.raises(CimError, match=message):
        build_dataset(shop_config(shop, **changes), split)


# ---------------------------------------------------------------------- VOC and COCO


def test_voc_reference(reference):
    data = open_voc(reference / "VOC2012", "trainaug")
    assert data.classes == CLASSES == tuple(sorted(CLASSES))
    assert data.category_ids == tuple(range(1, 21))
    for record in data:
        assert record.image_id == image_id(record.path.name)
        assert record.path.is_file()
        with Image.open(record.path) as image:
            assert record.size == image.size[::-1]
    assert {r.image_id: r.tags for r in data} == {2007000100: (9,), 2007000104: (11,)}
    assert data.annotations.name == "voc_2012_trainaug.json"


def test_voc_image_id():
    assert image_id("2007_000100.jpg") == 2007000100
    with pytest.raises(CimError, match="not a VOC image name"):
        image_id("cat.jpg")


def test_voc_missing_json_names_the_command(tmp_path):
    with pytest.raises(CimError, match=r"voc_2012_val.json; to fix: cim voc"):
        open_voc(tmp_path, "val")
    with pytest.raises(CimError, match="no such VOC split"):
        open_voc(tmp_path, "train")


def test_coco_keeps_gaps_in_the_category_ids(tmp_path):
    coco_json(
        tmp_path / "annotations/instances_val2017.json",
        [(139, "000000000139.jpg")],
        [(139, 90), (139, 1)],
        [(1, "person"), (90, "toothbrush")],
    )
    data = open_coco(tmp_path, "val2017")
    assert data.category_ids == (1, 90)
    assert data[0].tags == (0, 1)
    assert data[0].path == tmp_path / "val2017" / "000000000139.jpg"


def test_coco_test_dev_has_no_tags_and_no_annotations(tmp_path):
    path = coco_json(
        tmp_path / "annotations/image_info_test-dev2017.json", [(1, "000000000001.jpg")], [], [(1, "person")]
    )
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    data = open_coco(tmp_path, "test-dev2017")
    assert data[0].tags == ()
    assert data[0].path.parent.name == "test2017"
    assert data.annotations is None
    with pytest.raises(CimError, match="no such COCO split"):
        open_coco(tmp_path, "train2014")


JSON_ERRORS = [
    (([(1, "a")], [(2, 1)], [(1, "x")]), "annotation of an unknown image.*image_id 2"),
    (([(1, "a")], [(1, 7)], [(1, "x")]), "annotation of an unknown category.*category_id 7"),
    (([(1, "a"), (1, "b")], [], [(1, "x")]), "image id used twice"),
    (([(1, "a"), (2, "a")], [], [(1, "x")]), "file name used twice"),
    (([(1, "a")], [], [(1, "x"), (1, "y")]), "category id used twice"),
    (([(1, "a")], [], [(1, "x"), (2, "x")]), "category name used twice"),
]


@pytest.mark.parametrize(("content", "message"), JSON_ERRORS)
def test_bad_annotations(tmp_path, content, message):
    with pytest.raises(CimError, match=message):
        read_tag_file(coco_json(tmp_path / "x.json", *content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not a json file"),
        ("[]", "not a COCO json"),
        ('{"images": []}', "expected a list 'categories'"),
        ('{"images": [{"id": 1}], "categories": []}', "entry of 'images' without 'file_name'"),
        ('{"images": [], "categories": [], "annotations": [{"id": 1}]}', "annotation without image_id"),
        ('{"images": [], "categories": [], "annotations": null}', "expected a list 'annotations'"),
        ('{"images": [{"id": [1], "file_name": "a"}], "categories": []}', "entry of 'images' with a strange 'id'"),
        ('{"images": [{"id": 1, "file_name": 5}], "categories": []}', "with a strange 'file_name'"),
        ('{"images": [], "categories": [{"id": "1", "name": "a"}]}', "entry of 'categories' with a strange 'id'"),
    ],
)
def test_not_a_coco_json(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CimError, match=message):
        read_tag_file(tmp_path / "x.json")


# ---------------------------------------------------------------------- training sees tags only


def strip_masks(source: Path, target: Path) -> None:
    content = json.loads(source.read_text())
    for annotation in content["annotations"]:
        for key in ("segmentation", "bbox", "area", "part"):
            annotation.pop(key, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content))


def test_records_are_the_same_without_any_mask_in_the_json(tmp_path, shop):
    coco_json(
        tmp_path / "with/annotations/voc_2012_trainaug.json",
        [(1, "a.jpg"), (2, "b.jpg")],
        [(1, 2), (2, 1)],
        [(1, "x"), (2, "y")],
    )
    strip_masks(
        tmp_path / "with/annotations/voc_2012_trainaug.json", tmp_path / "without/annotations/voc_2012_trainaug.json"
    )
    with_masks, without = open_voc(tmp_path / "with", "trainaug"), open_voc(tmp_path / "without", "trainaug")
    assert [(r.image_id, r.size, r.tags, r.path.name) for r in with_masks] == [
        (r.image_id, r.size, r.tags, r.path.name) for r in without
    ]
    before = build_dataset(shop_config(shop), "val").records
    strip_masks(shop / "val.json", shop / "val.json")
    assert build_dataset(shop_config(shop), "val").records == before


def test_reference_records_are_the_same_without_masks(tmp_path, reference):
    source = reference / "VOC2012" / "annotations" / "voc_2012_trainaug.json"
    strip_masks(source, tmp_path / "annotations" / source.name)
    stripped = open_voc(tmp_path, "trainaug")
    assert [(r.image_id, r.tags) for r in stripped] == [
        (r.image_id, r.tags) for r in open_voc(reference / "VOC2012", "trainaug")
    ]


def test_nothing_of_a_mask_is_kept(tmp_path):
    path = coco_json(tmp_path / "x.json", [(1, "a")], [(1, 1)], [(1, "x")])
    assert "9.0" in path.read_text()
    assert "9.0" not in repr(read_tag_file(path))


TRAINING = ("training", "engine", "prm", "mining", "config.build", "models", "datasets.base")


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("cim.")}


def files_of(module: str) -> list[Path]:
    path = ROOT / Path(*module.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [f for f in (path.with_suffix(".py"),) if f.is_file()]


def training_files() -> list[Path]:
    """Everything that training imports, directly or not."""
    waiting = [file for name in TRAINING for file in files_of(f"cim.{name}")]
    seen = set(waiting)
    while waiting:
        for module in imports_of(waiting.pop()):
            new = set(files_of(module)) - seen
            seen |= new
            waiting += new
    return sorted(seen)


def touches_masks(path: Path) -> list[str]:
    """Places that name the json key "segmentation", use ``Dataset.annotations`` or the class that reads both."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Constant) and node.value == "segmentation")
        or (isinstance(node, ast.Attribute) and node.attr == "annotations")
        or (isinstance(node, ast.Name | ast.alias) and getattr(node, "id", getattr(node, "name", "")) == "PhotoSet")
    ]


def test_nothing_that_training_imports_opens_masks():
    """The drawing of training pictures shares small functions with photo_set.py, whose ``PhotoSet`` it never uses.
    What a user says is known of training photos (``data.known``) comes by marks/coco.py, to which only folders lead.
    """
    files = training_files()
    assert {"folder.py", "voc.py", "coco.py", "coco_json.py", "schema.py"} <= {file.name for file in files}
    marks = ROOT / "cim" / "datasets" / "marks" / "coco.py"
    told = [place for file in {*files} - {marks} if file.name != "photo_set.py" for place in touches_masks(file)]
    assert told == []
    users = [file.name for file in files if "cim.datasets.marks.coco" in imports_of(file)]
    assert users == ["read.py"]
    assert [f.name for f in files if "cim.datasets.marks.read" in imports_of(f)] == ["join.py"]
    assert [f.name for f in files if "cim.datasets.marks.join" in imports_of(f)] == ["folder.py"]


def test_the_check_above_would_notice():
    assert touches_masks(ROOT / "cim" / "datasets" / "coco_writer.py")


def test_animals(reference):
    """The real folder data set beside the reference, when it is there."""
    root = reference.parent / "data" / "animals"
    if not root.is_dir():
        pytest.skip("no animals data set")
    config = DataConfig(
        images=str(root / "images/train"),
        tags=str(root / "train_tags.csv"),
        val_images=str(root / "images/dev"),
        val_tags=str(root / "dev_tags.csv"),
        val_annotations=str(root / "dev_instances.json"),
    )
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert (len(train), len(val), len(train.classes)) == (700, 138, 7)
    from_annotations = build_dataset(config.model_copy(update={"val_tags": None}), "val")
    assert {r.image_id: r.tags for r in val} == {r.image_id: r.tags for r in from_annotations}


def test_photos_of_no_class(shop, tmp_path):
    """Rows without labels, and a folder of negatives: records without tags."""
    (shop / "train.csv").write_text("image,labels\na.jpg,cat\nb.png,\n")
    (shop / "other").mkdir()
    Image.new("RGB", (8, 6)).save(shop / "other" / "field.png")
    found = open_folder(shop / "train", shop / "train.csv", negatives=shop / "other")
    assert [record.tags for record in found] == [(0,), (), ()] and found.classes == ("cat",)
    assert found.records[-1].image_id == "negatives/field.png" and found.records[-1].size == (6, 8)
    (shop / "train.csv").write_text("image,labels\na.jpg,\n")
    with pytest.raises(CimError, match="no photo has a label"):
        open_folder(shop / "train", shop / "train.csv")


def test_vocabulary_opens_no_photo(shop):
    (shop / "train" / "a.jpg").write_text("damaged")
    assert read_vocabulary(shop / "train", shop / "train.csv").classes == ("cat", "dog")


def test_a_data_set_of_which_all_is_wanted_stays_itself(tmp_path):
    photo(tmp_path / "a" / "x.png")
    photo(tmp_path / "b" / "y.png")
    dataset = open_folder(tmp_path)
    assert dataset.where(lambda record: True) is dataset
    some = dataset.where(lambda record: record.path.name == "y.png")
    assert [record.path.name for record in some] == ["y.png"] and some.classes == dataset.classes
    assert len(dataset.where(lambda record: False)) == 0 and len(dataset) == 2
