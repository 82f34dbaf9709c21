"""Which photos are worth a look, in the report and in files for tools that people correct masks with."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_review import CAT, LEFT, SIZE, WHOLE, small_review, text

from cim.cli.jobs import run as run_folder
from cim.cli.main import main, parse
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.datasets.base import Dataset, Record
from cim.datasets.coco_writer import encode
from cim.datasets.marks.read import read_marks
from cim.labels.formats.marks import LabelSet, Mark, Photo
from cim.labels.formats.table import FORMATS, write_formats
from cim.labels.mask_file import MaskFile, Scored
from cim.labels.worth import Ranking, rank, worth_a_look
from cim.review.desk import open_desk
from cim.review.session import Session

CAT_ID, DOG_ID = 1, 2  # categories of the small review


def ranked(config: Config) -> Ranking:
    return rank(config, build_dataset(config.data, "train"))


def reasons(config: Config) -> dict[str, tuple[str, ...]]:
    """By photo, most doubtful first."""
    return {str(look.record.image_id): look.reasons for look in ranked(config).looks}


def second_opinion(config: Config, proposals: dict[str, list[tuple[int, int, float]]]) -> Path:
    """Labels as Mask R-CNN writes them: by photo, (category, proposal, score)."""
    folder = Path(config.work_dir) / "pseudo_labels"
    content = json.loads((folder / "msrcnn_pseudo_label_0.3.json").read_text())
    numbers = {image["source_id"]: image["id"] for image in content["images"]}
    content["annotations"] = [
        {"id": n, "image_id": image_id, "category_id": category, "score": score, "iscrowd": 0}
        | {"segmentation": {"size": list(SIZE), "counts": text(proposal)}}
        for n, (image_id, category, proposal, score) in enumerate(
            ((numbers[name], *one) for name, found in proposals.items() for one in found), 1
        )
    ]
    path = folder / "msrcnn_pseudo_label_round2.json"
    write_json(path, content)
    return path


def test_the_class_found_least_surely_comes_first(tmp_path):
    config, _ = small_review(tmp_path)
    assert reasons(config) == {
        "doubt.png": ("dog: the best mask scores 0.20",),
        "sure.png": ("dog: the best mask scores 0.90",),
    }
    assert [round(look.doubt, 3) for look in ranked(config).looks] == [0.8, 0.1]


def test_a_class_without_a_mask_and_a_count_that_is_not_reached(tmp_path):
    config, _ = small_review(tmp_path, "sure.png,dog*4 cat\ndoubt.png,dog\n")
    assert reasons(config) == {
        "sure.png": ("cat: not found", "dog: 1 of 4 found"),
        "doubt.png": ("dog: the best mask scores 0.20",),
    }


def test_mask_rcnn_that_sees_another_mask(tmp_path):
    config, _ = small_review(tmp_path)
    second_opinion(config, {"sure.png": [(DOG_ID, LEFT, 0.9), (DOG_ID, WHOLE, 0.1)], "doubt.png": [(CAT_ID, CAT, 1.0)]})
    assert reasons(config)["sure.png"] == ("dog: Mask R-CNN sees another mask (IoU 0.50)",)
    second_opinion(config, {"sure.png": [(DOG_ID, LEFT, 0.9), (DOG_ID, WHOLE, 0.6)]})
    assert reasons(config)["sure.png"] == ("dog: the best mask scores 0.90",)


def test_a_second_opinion_that_is_damaged_is_told_and_left_out(tmp_path, caplog):
    config, _ = small_review(tmp_path)
    before = reasons(config)
    second_opinion(config, {"sure.png": [(DOG_ID, LEFT, 0.9)]}).write_text("{")
    assert reasons(config) == before
    assert "not compared with Mask R-CNN" in caplog.text


def test_what_a_person_drew_whole_is_beyond_doubt(tmp_path):
    _, run = small_review(tmp_path)
    line = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": list(SIZE), "counts": text(WHOLE)}}
    images = [{"id": 1, "file_name": "doubt.png", "height": SIZE[0], "width": SIZE[1]}]
    known = {"images": images, "annotations": [line], "categories": [{"id": 1, "name": "dog"}]}
    write_json(tmp_path / "known.json", known)
    told = load_config(run / "config.yaml", [f"data.known=[{tmp_path / 'known.json'}]"])
    assert reasons(told)["doubt.png"] == ("cat: the best mask scores 0.70",)


class OneAtATime(dict):
    """Masks by image id, which refuses to hand out those of a photo while those of another one are held."""

    class Held(list):
        """A list that can be watched."""

    last = staticmethod(lambda: None)

    def get(self, image_id, default=()):
        assert self.last() is None, "the masks of two photos are held"
        found = self.Held(self[image_id])
        self.last = weakref.ref(found)
        return found


def test_masks_of_two_photos_are_never_held_together():
    square = encode(np.ones(SIZE, bool))["counts"]
    records = tuple(Record(n, Path(f"{n}.jpg"), SIZE, (0,)) for n in range(20))
    masks = {record.image_id: [Scored(0, square, record.image_id / 20)] for record in records}
    dataset = Dataset("many", ("dog",), (1,), records)
    looks = worth_a_look(dataset, OneAtATime(masks), OneAtATime(masks))
    assert [look.record.image_id for look in looks] == list(range(20))
    with pytest.raises(AssertionError, match="two photos"):
        kept = OneAtATime(masks)
        assert kept.get(0) and [kept.get(n) for n in range(2)]


def label_file(path: Path, masks: dict[int, list[tuple[str, float]]], **changed: object) -> Path:
    """Labels of dogs (run lengths, score) on images."""
    images = [{"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in masks]
    pairs = [(n, *one) for n, found in masks.items() for one in found]
    lines = [
        {"id": k, "image_id": n, "category_id": 1, "score": score, "iscrowd": 0}
        | {"segmentation": {"size": list(SIZE), "counts": text}}
        for k, (n, text, score) in enumerate(pairs, 1)
    ]
    if changed:
        lines[-1] |= changed
    write_json(path, {"images": images, "annotations": lines, "categories": [{"id": 1, "name": "dog"}]})
    return path


def two_photos() -> Dataset:
    return Dataset("two", ("cat", "dog"), (5, 6), tuple(Record(n, Path(f"{n}.jpg"), SIZE, (1,)) for n in (1, 2)))


def test_a_label_file_gives_the_masks_of_one_photo_best_first(tmp_path):
    masks = {1: [(text(LEFT), 0.2), (text(WHOLE), 0.9)], 2: [], 7: [(text(CAT), 0.5)]}
    found = MaskFile(label_file(tmp_path / "l.json", masks), two_photos())
    assert dict(found) == {1: [Scored(1, text(WHOLE), 0.9), Scored(1, text(LEFT), 0.2)]}
    assert found.get(2, ()) == ()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_id": 9}, "unknown image"),
        ({"category_id": 9}, "unknown category"),
        ({"score": "high"}, "score 'high'"),
        ({"segmentation": {"size": list(SIZE), "counts": "QQ0"}}, "damaged"),
        ({"segmentation": {"size": [40, 61], "counts": [2440]}}, "labels of other photos"),
        ({"segmentation": None}, "damaged mask"),
    ],
)
def test_a_damaged_label_file_is_told_before_anything_is_ranked(tmp_path, changed, told):
    path = label_file(tmp_path / "l.json", {1: [(text(LEFT), 0.2)], 2: [(text(LEFT), 0.2)]}, **changed)
    with pytest.raises(CimError, match=told) as error:
        MaskFile(path, two_photos())
    assert "l.json" in str(error.value) and "\n" not in str(error.value)


def test_polygons_and_crowds_in_a_label_file(tmp_path):
    outline = {"segmentation": [[4, 10, 20, 10, 20, 30, 4, 30]]}
    masks = {1: [(text(WHOLE), 0.9)], 2: [(text(LEFT), 0.2)]}
    assert MaskFile(label_file(tmp_path / "l.json", masks, **outline), two_photos())[2] == [Scored(1, text(LEFT), 0.2)]
    assert 2 not in MaskFile(label_file(tmp_path / "c.json", masks, iscrowd=1), two_photos())


def most_memory(path: Path, photos: int) -> int:
    """Bytes held at once while photos with one mask of 40,000 runs each are ranked."""
    size = (200, 200)
    checks = encode((np.indices(size).sum(0) % 2).astype(bool))
    images = [{"id": n, "file_name": f"{n}.jpg", "height": size[0], "width": size[1]} for n in range(photos)]
    line = {"category_id": 1, "score": 0.5, "iscrowd": 0, "segmentation": checks}
    lines = [{"id": n, "image_id": n, **line} for n in range(photos)]
    write_json(path, {"images": images, "annotations": lines, "categories": [{"id": 1, "name": "dog"}]})
    dataset = Dataset("many", ("dog",), (1,), tuple(Record(n, Path(f"{n}.jpg"), size, (0,)) for n in range(photos)))
    tracemalloc.start()
    try:
        assert len(worth_a_look(dataset, MaskFile(path, dataset), {})) == photos
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_masks_of_a_label_file(tmp_path):
    few, many = tmp_path / "few.json", tmp_path / "many.json"
    grown = most_memory(many, 300) - most_memory(few, 100)
    assert grown < (many.stat().st_size - few.stat().st_size) / 10


def test_a_review_has_the_same_order_and_says_why(tmp_path):
    config, run = small_review(tmp_path, "sure.png,dog*20\ndoubt.png,dog cat\n")
    overview = Session(open_desk(config, run / "corrections.json"), run / "corrections.json").overview()["photos"]
    assert {photo["name"]: tuple(photo["reasons"]) for photo in overview} == reasons(config)
    assert overview[0]["name"] == "sure.png" and overview[0]["reasons"] == ["dog: 1 of 20 found"]


def test_the_report_shows_them_and_writes_them_down(tmp_path):
    _, run = small_review(tmp_path)
    assert main(["report", str(run)]) == 0
    written = json.loads((run / "worth_a_look.json").read_text())
    assert written["photos"][0] == {
        "image": "doubt.png",
        "doubt": 0.8,
        "reasons": ["dog: the best mask scores 0.20"],
    }
    page = (run / "report.html").read_text()
    assert 'alt="What was found on doubt.png"' in page and "dog: the best mask scores 0.20" in page


def test_the_most_doubtful_photos_go_to_a_tool_and_come_back(tmp_path):
    _, run = small_review(tmp_path)
    config = str(run / "config.yaml")
    assert main(["export", config, "--review", "1", "--format", "labelme"]) == 0
    folder = run / "to_review" / "labelme"
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["doubt.json", "doubt.png"]
    told = load_config(config, [f"data.known=[{folder}]"])
    known = {record.image_id: record.known for record in build_dataset(told.data, "train")}
    assert [one.mask for one in known["doubt.png"].marks] == [text(CAT), text(WHOLE)]
    assert not known["sure.png"]


def test_a_run_notices_what_is_corrected_inside_its_own_folder(tmp_path):
    _, run = small_review(tmp_path)
    assert main(["export", str(run / "config.yaml"), "--review", "--format", "labelme"]) == 0
    folder = run / "to_review" / "labelme"
    words = ["run", "--images", str(tmp_path / "photos"), "--tags", str(tmp_path / "tags.csv"), "--output", str(run)]
    args = parse([*words, "--known", str(folder)])
    state, digest = run_folder.state_of(args), run_folder.known_photos(args).known_digest
    content = json.loads((folder / "train" / "doubt.json").read_text())
    content["shapes"].pop()
    (folder / "train" / "doubt.json").write_text(json.dumps(content))
    assert run_folder.state_of(args) != state
    assert run_folder.known_photos(args).known_digest != digest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--review", "--format", "yolo"], "nobody corrects labels in this format"),
        (["--review"], "--review without --format"),
        (["--review", "--format", "cvat", "--val", "0.5"], "--val beside --review"),
    ],
)
def test_options_that_do_not_go_with_a_review_are_one_line(tmp_path, capsys, options, told):
    _, run = small_review(tmp_path)
    assert main(["export", str(run / "config.yaml"), *options]) == 2
    assert told in capsys.readouterr().err


# ---------------------------------------------------------------------- nothing is lost on the way


def _holed(shift: int) -> np.ndarray:
    """A mask bool [40, 60] of two parts, one of them with a hole."""
    mask = np.zeros(SIZE, bool)
    mask[2:20, 3 + shift : 30 + shift] = True
    mask[8:12, 10 + shift : 15 + shift] = False
    mask[30:33, 50] = True
    return mask


def _known_file(folder: Path, name: str) -> Path:
    """What a person hands back; Label Studio's predictions are taken over as its *Submit* does."""
    if name == "cvat":
        return folder / "train" / "annotations.xml"
    if name == "labelme":
        return folder
    path = folder / "train.json"
    tasks = json.loads(path.read_text())
    done = [{"data": task["data"], "annotations": [{"result": task["predictions"][0]["result"]}]} for task in tasks]
    write_json(path, done)
    return path


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.correcting])
def test_masks_come_back_from_every_tool_bit_for_bit(tmp_path, name):
    """Masks of several parts with holes, photos of one name in several folders: the round loses nothing."""
    names, photos = ("1.png", "a/1.png", "b/1.png"), tmp_path / "photos"
    for photo in names:
        (photos / photo).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(photos / photo), np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "tags.csv").write_text("image,labels\n" + "".join(f"{photo},cat dog\n" for photo in names))
    masks = {photo: [encode(_holed(3 * n)), encode(_holed(3 * n + 1))] for n, photo in enumerate(names)}

    def walk():
        for photo in names:
            yield Photo(photo, photos / photo, SIZE), [Mark(k, rle, score=0.4) for k, rle in enumerate(masks[photo])]

    list(write_formats(LabelSet(("cat", "dog"), walk), [name], tmp_path / "out"))
    given = _known_file(tmp_path / "out" / name, name)
    assert len(list(read_marks(given))) == 6
    data = [f"data.images={photos}", f"data.tags={tmp_path / 'tags.csv'}", f"data.known=[{given}]"]
    for record in build_dataset(load_config("demo", data).data, "train"):
        photo = record.path.relative_to(photos).as_posix()
        assert [one.class_id for one in record.known.marks] == [0, 1]
        assert [one.mask for one in record.known.marks] == [rle["counts"] for rle in masks[photo]]
        assert record.known.counts == ((0, 1), (1, 1))
