"""Photos in all the forms that they come in, and many of them at once."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
import torch
from lively import assert_same_instances, lively_mask_rcnn
from PIL import Image

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.types import Instances
from cim.mask_rcnn.detect import MaskDetector
from cim.prediction.photos import as_photo
from cim.prediction.predict import Predictor

CLASSES = ("red", "green", "blue")


class Brightest:
    """Finds one instance a photo: of the class of its brightest colour, its score the number of the call."""

    def __init__(self):
        self.calls = []

    def __call__(self, questions, threshold):
        self.calls.append(len(questions))
        return [self.found(question) for question in questions]

    def found(self, question):
        height, width = question.photo.shape[:2]
        class_id = int(question.photo.sum((0, 1)).argmax())
        count = int(question.tags is None or class_id in question.tags)
        return Instances(
            image_id="photo",
            size=(height, width),
            class_ids=np.full(count, class_id),
            score=np.full(count, float(len(self.calls)), np.float32),
            boxes=np.tile(np.array([0, 0, width, height], np.float32), (count, 1)),
            rles=[{"size": [height, width], "counts": "0"}] * count,
            proposal=np.full(count, -1),
        )


def coloured(colour: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    photo = np.zeros((*size, 3), np.uint8)
    photo[..., colour] = 200
    return photo


@pytest.fixture
def model():
    return Predictor(CLASSES, Brightest())


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        Image.fromarray(coloured(number % 3)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no photo")
    return tmp_path


def labels(found) -> list[list[str]]:
    return [one.labels for one in found]


def test_every_form_of_several_photos(model, folder):
    wanted = [["red"], ["green"], ["blue"], ["red"], ["green"]]
    paths = [folder / f"{n}.png" for n in range(5)]
    arrays = np.stack([coloured(n % 3) for n in range(5)])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    forms = [folder, str(folder), folder / "*.png", paths, tuple(map(str, paths)), arrays, list(arrays), tensor]
    forms += [tensor.float() / 255, tensor.double() / 255, [Image.open(path) for path in paths], iter(paths)]
    forms += [(photo for photo in arrays), [folder / "[0-2].png", folder / "3.png", arrays[4]]]
    for form in forms:
        assert labels(model.predict(form)) == wanted, form
        if not hasattr(form, "__next__"):
            assert labels(model.stream(form)) == wanted, form
    assert [one.path for one in model.stream(folder)] == paths
    assert model.predict(arrays)[0].path is None and model.predict(paths[1]).path == paths[1]
    assert model.predict([]) == [] and labels(model.stream(paths[2])) == [["blue"]]
    (folder / "deep").mkdir()
    paths[0].rename(folder / "deep" / "0.png")
    assert labels(model.predict(folder / "**" / "*.png")) == [["green"], ["blue"], ["red"], ["green"], ["red"]]


def test_single_tensors_and_channel_order(model):
    for colour in range(3):
        photo = coloured(colour)
        tensor = torch.from_numpy(photo).permute(2, 0, 1)
        for form in (tensor, tensor.float() / 255, tensor.half() / 255):
            assert np.abs(as_photo(form).astype(int) - photo).max() <= 0 if form.dtype != torch.half else 1
        assert model.predict(photo, bgr=True).labels == [CLASSES[2 - colour]]
        assert labels(model.predict([tensor, photo], bgr=True)) == [[CLASSES[2 - colour]]] * 2
        grey = torch.full((1, 4, 5), 7, dtype=torch.uint8)
        assert as_photo(grey).tolist() == np.full((4, 5, 3), 7).tolist()


def test_files_and_pictures_are_never_taken_for_bgr(model, folder):
    assert model.predict(folder / "0.png", bgr=True).labels == ["red"]
    assert model.predict(Image.open(folder / "0.png"), bgr=True).labels == ["red"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 5, 3),
        torch.zeros(3, 4, 5, dtype=torch.int64),
        torch.full((3, 4, 5), 255.0),
        torch.full((3, 4, 5), -1.0),
        torch.full((3, 4, 5), torch.nan),
        torch.zeros(5),
    ],
)
def test_tensors_that_are_no_photos(model, tensor):
    with pytest.raises(CimError, match=r"not a photo; expected .*0\.\.1"):
        model.predict(tensor)


def test_batches_and_their_remainder(model, folder):
    model.predict(folder, batch=2)
    assert model.detector.calls == [2, 2, 1]
    with pytest.raises(CimError, match="no photos in a batch; expected 1 or more; found 0"):
        model.predict(folder, batch=0)


def test_tags_of_each_photo(model, folder):
    everything = [["red"], ["green"], ["blue"], ["red"], ["green"]]
    assert labels(model.predict(folder, tags=["red", "green"])) == [["red"], ["green"], [], ["red"], ["green"]]
    assert labels(model.predict(folder, tags="red")) == labels(model.predict(folder, tags=[0]))
    each = [["red"], ["red"], None, [0, 1], []]
    wanted = [["red"], [], ["blue"], ["red"], []]
    assert labels(model.predict(folder, tags=each)) == wanted
    assert labels(model.predict(folder, tags=(own for own in each))) == wanted
    by_name = {"0.png": ["red"], str(folder / "1.png"): "red", "2": None, "3.png": (0, 1), "4.png": []}
    assert labels(model.predict(folder, tags=by_name)) == wanted
    assert labels(model.predict(folder, tags=None)) == everything


@pytest.mark.parametrize("count", [4, 6])
def test_not_as_many_tags_as_photos(model, folder, count):
    with pytest.raises(CimError, match="not as many tags as photos"):
        model.predict(folder, tags=[["red"]] * count)
    with pytest.raises(CimError, match="not as many regions as photos"):
        model.predict(folder, regions=[None] * count)


def test_tags_that_fit_no_photo(model, folder):
    with pytest.raises(CimError, match=r"no tags for this photo: .*0\.png"):
        model.predict(folder, tags={"1.png": ["red"]})
    with pytest.raises(CimError, match="a photo that is no file"):
        model.predict([coloured(0)], tags={"1.png": ["red"]})
    with pytest.raises(CimError, match="unknown class; expected one of red, green, blue; found grey"):
        list(model.stream(folder, tags=["grey"], skipped=[].append))


def test_a_broken_file_ends_the_stream_or_is_left_out(model, folder):
    (folder / "1.png").write_text("no photo")
    with pytest.raises(CimError, match=r"not a readable photo: .*1\.png"):
        model.predict(folder)
    skipped = []
    assert labels(model.stream(folder, skipped=skipped.append, batch=2)) == [["red"], ["blue"], ["red"], ["green"]]
    assert [error.path for error in skipped] == [folder / "1.png"]
    assert model.detector.calls[-3:] == [1, 2, 1]


def test_nothing_is_taken_from_an_iterator_before_its_time(model):
    taken = []

    def camera():
        for number in range(6):
            taken.append(number)
            yield coloured(number % 3)

    stream = model.stream(camera(), batch=2)
    assert taken == []
    assert next(stream).labels == ["red"] and taken == [0, 1]
    assert next(stream).labels == ["green"] and taken == [0, 1]
    assert next(stream).labels == ["blue"] and taken == [0, 1, 2, 3]
    stream.close()


def test_frames_of_a_video(model, tmp_path):
    path = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(5):
        writer.write(coloured(2 - number % 3, (48, 64)))  # OpenCV takes blue, green, red
    writer.release()

    def frames():
        video = cv2.VideoCapture(path)
        while (frame := video.read()[1]) is not None:
            yield frame

    found = list(model.stream(frames(), bgr=True, batch=2))
    assert labels(found) == [["red"], ["green"], ["blue"], ["red"], ["green"]] and found[0].image.shape == (48, 64, 3)


def test_files_are_read_while_the_network_works(folder, monkeypatch):
    third_was_read = threading.Event()

    def reader(path):
        if path.name == "2.png":
            third_was_read.set()
        return read_photo(path)

    def waits(questions, threshold):
        assert third_was_read.wait(20), "the second batch is not read during the first"
        return [Brightest().found(question) for question in questions]

    monkeypatch.setattr("cim.prediction.photos.read_photo", reader)
    assert len(Predictor(CLASSES, waits).predict(folder, batch=2)) == 5


def test_patterns_and_folders_without_photos(model, tmp_path):
    for nothing in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(CimError, match="no photos here"):
            model.predict(nothing)
    with pytest.raises(CimError, match="missing photo"):
        model.predict(tmp_path / "nothing.png")


def test_a_name_with_the_letters_of_a_pattern_is_a_file_where_there_is_one(model, tmp_path):
    Image.fromarray(coloured(1)).save(tmp_path / "a[1].png")
    assert model.predict(tmp_path / "a[1].png").labels == ["green"]


# ---------------------------------------------------------------------- Mask R-CNN in batches


@pytest.fixture(scope="module")
def detector():
    return MaskDetector(lively_mask_rcnn(64, 96), ("a", "b"), torch.device("cpu"))


def test_what_is_found_on_a_photo_does_not_depend_on_the_others(detector):
    rng = np.random.default_rng(0)
    sizes = [(64, 90), (90, 64), (66, 90), (64, 90), (40, 200)]
    photos = [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]
    seen = []
    hook = detector.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    together = detector.detect(photos, [None] * 5, 0.0)
    hook.remove()
    assert sorted(seen) == [1, 1, 3]
    for photo, one in zip(photos, together, strict=True):
        assert_same_instances(one, detector(photo))
