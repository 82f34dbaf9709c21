"""Instance masks on any photo with a trained network: no annotations, no prepared files.

Opens neither PyTorch nor onnxruntime by itself: :func:`load_model` opens the one that the file needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from PIL import Image

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Instances
from cim.prediction.photos import Photo, as_photo, path_of, several
from cim.prediction.result import Prediction

if TYPE_CHECKING:
    from torch import Tensor

_READERS = 2  # threads that decode photos while the network works
_END = object()


Asked = Iterator[tuple[Photo, Any, Any]]
"""Photos with their tags and proposals, as the user gave them."""


class Question(NamedTuple):
    """A photo, uint8 [H, W, 3], and what is asked of it: classes 0..C-1 and proposals; None: all, and built-in ones."""

    photo: np.ndarray
    tags: Sequence[int] | None = None
    regions: RegionSet | None = None


Detector = Callable[[Sequence[Question], float], list[Instances]]
"""Photos and a score threshold -> the instances of each, whatever the other photos are."""


@dataclass(frozen=True)
class Predictor:
    """A trained network with its classes; made by :func:`load_model`."""

    classes: tuple[str, ...]
    detector: Detector

    @overload
    def predict(
        self,
        image: str | Path | Image.Image | np.ndarray | Tensor,
        tags: Sequence[str | int] | None = None,
        regions: RegionSet | np.ndarray | None = None,
        score_threshold: float = 0.3,
        *,
        bgr: bool = False,
        batch: int = 8,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...] | Iterator[Any],
        tags: Any = None,
        regions: Iterable[Any] | None = None,
        score_threshold: float = 0.3,
        *,
        bgr: bool = False,
        batch: int = 8,
    ) -> list[Prediction]: ...
    def predict(
        self,
        image: Any,
        tags: Any = None,
        regions: Any = None,
        score_threshold: float = 0.3,
        *,
        bgr: bool = False,
        batch: int = 8,
    ) -> Prediction | list[Prediction]:
        """Instances of one photo, or of several.

        Args:
            image: a file, a PIL image, uint8 [H, W, 3] RGB (also [H, W], grey), or a tensor [3, H, W], uint8 or
                floating 0..1. Several photos: a folder, a pattern such as ``"holiday/*.jpg"``, a list or an iterator of
                photos, an array [B, H, W, 3], a tensor [B, 3, H, W].
            tags: only these classes (names or indices), when the user knows what is in the picture. Of several photos:
                the same for all, or for each its own: a list of such lists, or a dict from file names to them.
            regions: proposals to choose from: a RegionSet or masks [N, H, W]; None: the built-in ones. Of several
                photos: a list with an entry for each. Mask R-CNN does not look at them.
            score_threshold: only instances that score more.
            bgr: arrays and tensors hold blue, green, red, as OpenCV's do.
            batch: how many of several photos are looked at together.

        Returns:
            The prediction; of several photos (for a type checker: of a list, tuple or iterator) a list of predictions.

        Raises:
            CimError: unreadable photo, unknown class, or proposals of another size.
        """
        if several(image) is not None:
            return list(self.stream(image, tags, regions, score_threshold, bgr=bgr, batch=batch))
        question = self._question(image, tags, regions, bgr)
        (found,) = self.detector([question], score_threshold)
        return Prediction(question.photo, found, self.classes, path_of(image))

    def stream(
        self,
        images: Any,
        tags: Any = None,
        regions: Iterable[Any] | None = None,
        score_threshold: float = 0.3,
        *,
        bgr: bool = False,
        batch: int = 8,
        skipped: Callable[[CimError], object] | None = None,
    ) -> Iterator[Prediction]:
        """:meth:`predict` for as many photos as there are: one prediction after the other, in their order, none kept.

        Files are read while the network works. An iterator is asked for ``batch`` photos, and for more only when these
        are done: for a camera, 1.

        Args:
            skipped: called with what is wrong with a file that cannot be read, which is then left out; None: it ends
                the stream.

        Raises:
            CimError: as :meth:`predict`; more or fewer tags or regions than photos.
        """
        if batch < 1:
            raise CimError("no photos in a batch", expected="1 or more", found=batch)
        found = several(images)
        photos = [images] if found is None else found
        early = 0 if isinstance(photos, Iterator) else batch
        asked = _with_regions(_with_tags(photos, tags), regions)
        with ThreadPoolExecutor(_READERS) as readers:

            def read(one: tuple[Photo, Any, Any]) -> tuple[Path | None, Future[Question]]:
                return path_of(one[0]), readers.submit(self._question, *one, bgr)

            for together in _groups(map(read, asked), batch, early):
                both = [(path, _result(future, path, skipped)) for path, future in together]
                readable = [(path, question) for path, question in both if question is not None]
                answers = self.detector([question for _, question in readable], score_threshold) if readable else []
                for (path, question), answer in zip(readable, answers, strict=True):
                    yield Prediction(question.photo, answer, self.classes, path)

    def _question(self, photo: Photo, tags: Any, regions: Any, bgr: bool) -> Question:
        chosen = None if tags is None else class_indices(tags, self.classes)
        pixels = as_photo(photo, bgr)
        return Question(pixels, chosen, _as_regions(regions, pixels))


def load_model(path: str | Path, device: str = "auto", weights: str | Path | None = None) -> Predictor:
    """A network from a checkpoint of ``cim train`` or ``cim refine``, or an ONNX file of ``cim export-model``.

    Args:
        path: the file, or the folder of a run.
        device: "auto" (CUDA when present), "cpu", "cuda", ...
        weights: where the ImageNet weights of the proposals' trunk are now (CIM networks; default: where they were).

    Raises:
        CimError: no such file, not a checkpoint, or of a kind that does not detect.
    """
    if Path(path).suffix.lower() == ".onnx":
        from cim.mask_rcnn.onnx_file import open_onnx

        network = open_onnx(path, device)
        return Predictor(network.classes, photos_alone(network.detect))
    from cim.prediction.networks import open_checkpoint  # PyTorch

    return Predictor(*open_checkpoint(Path(path), device, weights))


def photos_alone(
    detect: Callable[[Sequence[np.ndarray], Sequence[Sequence[int] | None], float], list[Instances]],
) -> Detector:
    """The detector of a network that looks at no proposals."""
    return lambda asked, threshold: detect([one.photo for one in asked], [one.tags for one in asked], threshold)


def class_indices(tags: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """Indices 0..C-1 of class names or indices.

    Raises:
        CimError: unknown class.
    """
    indices = []
    for tag in [tags] if isinstance(tags, str) else tags:
        index = classes.index(tag) if tag in classes else tag
        if not isinstance(index, int | np.integer) or not 0 <= index < len(classes):
            raise CimError("unknown class", expected=f"one of {', '.join(classes)}", found=tag)
        indices.append(int(index))
    return sorted(set(indices))


# ---------------------------------------------------------------------- several photos


def _with_tags(photos: Iterable[Photo], tags: Any) -> Iterator[tuple[Photo, Any]]:
    """Every photo with its tags."""
    if isinstance(tags, Mapping):
        return ((photo, _looked_up(tags, photo)) for photo in photos)
    alike = tags is None or isinstance(tags, str)
    if alike or (isinstance(tags, Sequence) and all(isinstance(tag, str | int | np.integer) for tag in tags)):
        return ((photo, tags) for photo in photos)
    return _paired(photos, tags, "tags")


def _looked_up(tags: Mapping[str, Any], photo: Photo) -> Any:
    path = path_of(photo)
    if path is None:
        raise CimError("tags by file name for a photo that is no file", fix="give a list with the tags of each photo")
    for name in (str(path), path.name, path.stem):
        if name in tags:
            return tags[name]
    raise CimError("no tags for this photo", path=path, fix=f"add {path.name}, or leave out the photo")


def _with_regions(asked: Iterator[tuple[Photo, Any]], regions: Iterable[Any] | None) -> Asked:
    """Every photo with its tags and proposals."""
    if regions is None:
        return ((photo, tags, None) for photo, tags in asked)
    return ((photo, tags, own) for (photo, tags), own in _paired(asked, regions, "regions"))


def _paired(photos: Iterable[Any], values: Iterable[Any], what: str) -> Iterator[tuple[Any, Any]]:
    for photo, value in zip_longest(photos, values, fillvalue=_END):
        if photo is _END or value is _END:
            raise CimError(f"not as many {what} as photos", expected="an entry for each, in their order")
        yield photo, value


def _groups(items: Iterator[Any], size: int, early: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items (the last may be shorter); so many are taken from ``items`` before they are needed."""
    taken: deque[Any] = deque()
    while True:
        taken.extend(islice(items, size + early - len(taken)))
        if not taken:
            return
        yield [taken.popleft() for _ in range(min(size, len(taken)))]


def _result(
    future: Future[Question], path: Path | None, skipped: Callable[[CimError], object] | None
) -> Question | None:
    """What was read; None for a file that could not be, once ``skipped`` knows."""
    try:
        return future.result()
    except CimError as error:
        if skipped is None or path is None or error.path is None or Path(error.path) != path:  # not this file's fault
            raise
        skipped(error)
        return None


def _as_regions(regions: RegionSet | np.ndarray | None, photo: np.ndarray) -> RegionSet | None:
    if regions is None:
        return None
    if not isinstance(regions, RegionSet):
        if np.ndim(regions) != 3:
            raise CimError("not proposals", expected="RegionSet or masks [N, H, W]", found=list(np.shape(regions)))
        regions = RegionSet.from_masks(np.asarray(regions))
    if regions.size != photo.shape[:2]:
        raise CimError(
            "proposals of another size than the photo", expected=list(photo.shape[:2]), found=list(regions.size)
        )
    return regions
