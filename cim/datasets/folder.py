"""Any folder of photos with tags: a tags.csv, one sub-folder per class, or a COCO json; what else is known."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.photo import photo_size
from cim.datasets.base import Dataset, Record
from cim.datasets.marks.join import with_known
from cim.datasets.photo_files import PHOTO_SUFFIXES, PhotoFinder, folders_in, photos_in
from cim.datasets.tags.coco_json import TagFile, read_tag_file
from cim.datasets.tags.csv_file import counted, csv_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tagged:
    """One photo of a listing: name relative to the images folder, its path, class names, size and numbers if told."""

    name: str
    path: Path
    labels: tuple[str, ...]
    image_id: int | str | None = None
    size: tuple[int, int] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The photos of one folder and their labels, before classes become numbers.

    Attributes:
        source: the csv, json or folder that the labels came from.
        photos: in the order of the source.
        classes: class names; sorted, or in the order of the json.
        category_ids: ids of the json; None elsewhere.
    """

    source: Path
    photos: tuple[_Tagged, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] | None = None


class Vocabulary(NamedTuple):
    """The classes of a folder data set and the ids that they carry in COCO json."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_vocabulary(
    images: str | Path, tags: str | Path | None = None, category_source: str | Path | None = None
) -> Vocabulary:
    """The classes that the training tags name; no photo is opened.

    Args:
        images, tags: see :func:`open_folder`.
        category_source: COCO json whose category ids the classes take over, by name; None: the ids of the tags' own
            json, else 1..C. Only its list of categories is used.

    Raises:
        CimError: as :func:`open_folder`.
    """
    listing = _training_listing(Path(images), tags)
    return _vocabulary(listing, category_source)


def open_folder(
    images: str | Path,
    tags: str | Path | None = None,
    *,
    annotations: str | Path | None = None,
    category_source: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
    negatives: str | Path | None = None,
    known: Sequence[str | Path] = (),
    rejected: bool = True,
    leave_out: str | Path | Container[str] | None = None,
    name: str = "folder",
) -> Dataset:
    """A data set from a folder of photos.

    Args:
        images: folder of photos.
        tags: csv with the header ``image,labels`` (labels separated by spaces, semicolons, or commas in quotes, with
            their number where it is known: ``dog*3``, and those that are not there: ``!dog``); or a COCO json, masks
            ignored; or None: one sub-folder per class. With a ``vocabulary``, None means: as ``annotations`` say;
            without those, class sub-folders; without those, photos of unknown content.
        annotations: COCO json with masks of these photos, for evaluation; its image ids become the records' ids, by
            file name. Elsewhere the id is the tags' json's, or the file name relative to ``images``.
        category_source: see :func:`read_vocabulary`.
        vocabulary: classes of the training photos, for any other split; None: this is the training split.
        negatives: folder of further photos that show none of the classes; their ids begin with "negatives/".
        known: files of marked instances of these photos (:func:`cim.datasets.marks.read.read_marks`); later ones count
            before earlier ones.
        rejected: heed the masks that these files say were deleted.
        leave_out: listed photos that are not to be used: their paths, or a json {"photos": {path: reason}} as
            ``cim run`` writes it.
        name: of the data set, for messages.

    Raises:
        CimError: anything missing, unreadable, unknown or given twice; each message names the file and line.
    """
    images = Path(images)
    truth = None if annotations is None else read_tag_file(annotations)
    if vocabulary is None:
        listing = _training_listing(images, tags)
        vocabulary = _vocabulary(listing, category_source)
    else:
        listing = _other_listing(images, tags, truth)
        _check_known(listing, vocabulary.classes)
    if not listing.photos:
        raise CimError("no photos here", path=listing.source, expected=", ".join(PHOTO_SUFFIXES))
    if truth is not None:
        _check_categories(truth, vocabulary.classes)
    if negatives is not None:
        listing = replace(listing, photos=listing.photos + _negatives(Path(negatives)))
    index = {label: number for number, label in enumerate(vocabulary.classes)}
    find_id = _id_lookup(listing, truth)
    if leave_out is not None:
        unwanted = _left_out(Path(leave_out)) if isinstance(leave_out, str | Path) else leave_out
        listing = replace(listing, photos=tuple(photo for photo in listing.photos if str(photo.path) not in unwanted))
        if not listing.photos:
            raise CimError("every photo is left out", path=images, fix="replace the photos that cannot be read")
    records = _records(listing, index, find_id)
    counts = [{index[label]: n for label, n in photo.counts.items() if label in index} for photo in listing.photos]
    records = with_known(records, counts, vocabulary.classes, images, known, rejected)
    return Dataset(name, *vocabulary, records, None if annotations is None else Path(annotations))


def listed_photos(
    images: Path,
    tags: Path | None = None,
    *,
    annotations: Path | None = None,
    negatives: Path | None = None,
    training: bool = True,
) -> list[Path]:
    """The photos that :func:`open_folder` would take; none is opened, and its errors about photos are not raised.

    Args:
        images, tags, annotations, negatives: as there.
        training: whether these are the training photos.

    Raises:
        CimError: a folder or file that is missing or damaged, or a tagged photo that does not exist.
    """
    if training:
        listing = _training_listing(images, tags)
    else:
        listing = _other_listing(images, tags, None if annotations is None else read_tag_file(annotations))
    return [photo.path for photo in (*listing.photos, *(_negatives(negatives) if negatives else ()))]


# ---------------------------------------------------------------------- listings


def _negatives(folder: Path) -> tuple[_Tagged, ...]:
    _check_folder(folder)
    return tuple(_Tagged(f"negatives/{path.relative_to(folder).as_posix()}", path, ()) for path in photos_in(folder))


def _left_out(path: Path) -> Container[str]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("photos"), dict):
        raise CimError("not a list of photos to leave out", path=path, expected='{"photos": {path: reason}}')
    return content["photos"]


def _training_listing(images: Path, tags: str | Path | None) -> Listing:
    _check_folder(images)
    if tags is not None:
        return _from_tags(images, Path(tags))
    if not _has_class_folders(images):
        raise CimError(
            "no tags for these photos",
            path=images,
            expected="one sub-folder per class",
            fix="name a tags.csv (data.tags; cim run: --tags)",
        )
    return _class_folders(images)


def _other_listing(images: Path, tags: str | Path | None, truth: TagFile | None) -> Listing:
    _check_folder(images)
    if tags is not None:
        return _from_tags(images, Path(tags))
    if truth is not None:
        return _from_tag_file(images, truth)
    return _class_folders(images) if _has_class_folders(images) else _untagged(images)


def _check_folder(images: Path) -> None:
    if not images.is_dir():
        raise CimError("no such folder of photos", path=images, fix="set data.images (data.val_images)")


def _from_tags(images: Path, tags: Path) -> Listing:
    if not tags.is_file():
        raise CimError("no such tag file", path=tags, fix="set data.tags (data.val_tags) to a csv or a COCO json")
    if tags.suffix.lower() == ".json":
        return _from_tag_file(images, read_tag_file(tags))
    return _from_csv(images, tags)


def _from_csv(images: Path, path: Path) -> Listing:
    finder, photos = PhotoFinder(images), []
    seen: dict[Path, int] = {}
    for line, name, labels in csv_rows(path):
        where = f"{path}, line {line}"
        if not name:
            raise CimError("no image named", path=where)
        photo = finder.find(name, where)
        if photo in seen:
            raise CimError("photo named twice", path=where, found=f"{name}, already in line {seen[photo]}")
        seen[photo] = line
        labels, counts = counted(labels, where)
        photos.append(_Tagged(photo.relative_to(images).as_posix(), photo, labels, counts=counts))
    if not photos:
        raise CimError("no photos in the tag file", path=path, expected="lines of image,labels")
    classes = tuple(sorted({label for photo in photos for label in photo.labels}))
    if not classes:
        raise CimError("no photo has a label", path=path, expected="lines of image,labels")
    return Listing(path, tuple(photos), classes)


def _from_tag_file(images: Path, file: TagFile) -> Listing:
    finder, photos = PhotoFinder(images), []
    seen: dict[Path, str] = {}
    for image in file.images:
        photo = finder.find(image.file_name, str(file.path))
        if photo in seen:
            raise CimError("photo named twice", path=file.path, found=f"{image.file_name} and {seen[photo]}")
        seen[photo] = image.file_name
        labels = tuple(file.classes[tag] for tag in image.tags)
        photos.append(_Tagged(image.file_name, photo, labels, image.image_id, image.size))
    return Listing(file.path, tuple(photos), file.classes, file.category_ids)


def _class_folders(images: Path) -> Listing:
    folders = folders_in(images)
    photos = [
        _Tagged(photo.relative_to(images).as_posix(), photo, (folder.name,))
        for folder in folders
        for photo in photos_in(folder)
    ]
    return Listing(images, tuple(photos), tuple(folder.name for folder in folders if any(photos_in(folder))))


def _untagged(images: Path) -> Listing:
    photos = tuple(_Tagged(photo.name, photo, ()) for photo in photos_in(images))
    return Listing(images, photos, ())


def _has_class_folders(images: Path) -> bool:
    return any(photos_in(folder) for folder in folders_in(images))


# ---------------------------------------------------------------------- classes and ids


def _check_known(listing: Listing, classes: tuple[str, ...]) -> None:
    for photo in listing.photos:
        for label in photo.labels:
            if label not in classes:
                raise CimError(
                    f"label '{label}' is no class of the training photos",
                    path=listing.source,
                    expected=_some(classes),
                    found=f"'{label}' at {photo.name}",
                )


def _vocabulary(listing: Listing, category_source: str | Path | None) -> Vocabulary:
    if category_source is None:
        return Vocabulary(listing.classes, listing.category_ids or tuple(range(1, len(listing.classes) + 1)))
    source = read_tag_file(category_source)
    known = dict(zip(source.classes, source.category_ids, strict=True))
    unused = itertools.count(max(known.values(), default=0) + 1)
    ids = tuple(known[label] if label in known else next(unused) for label in listing.classes)
    return Vocabulary(listing.classes, ids)


def _check_categories(truth: TagFile, classes: tuple[str, ...]) -> None:
    used = {truth.classes[tag] for image in truth.images for tag in image.tags}
    unknown = sorted(used - set(classes))
    if unknown:
        raise CimError(
            f"annotations of '{unknown[0]}', which is no class of the training photos",
            path=truth.path,
            expected=_some(classes),
        )


def _id_lookup(
    listing: Listing, truth: TagFile | None
) -> Callable[[_Tagged], tuple[int | str, tuple[int, int] | None]]:
    """Function photo -> (image id, expected size or None); ids come from the annotations wherever there are any."""
    if truth is None:
        return lambda photo: (photo.name if photo.image_id is None else photo.image_id, photo.size)
    by_name = {image.file_name: image for image in truth.images}
    strangers = by_name.keys() - {photo.name for photo in listing.photos}
    if strangers:
        raise CimError(
            f"{len(strangers)} annotated images are not among the tagged photos, e.g. '{min(strangers)}'",
            path=truth.path,
            fix=f"add them to {listing.source}, or match the names (capitals count)",
        )

    def find(photo: _Tagged) -> tuple[int | str, tuple[int, int] | None]:
        if photo.name not in by_name:
            raise CimError(f"no image '{photo.name}' in the annotations", path=truth.path, fix="match the file names")
        image = by_name[photo.name]
        return image.image_id, image.size

    return find


def _records(
    listing: Listing, index: dict[str, int], find_id: Callable[[_Tagged], tuple[int | str, tuple[int, int] | None]]
) -> tuple[Record, ...]:
    records, failures = [], []
    for photo in listing.photos:
        image_id, expected = find_id(photo)
        try:
            size = _checked_size(photo.path, expected)
        except CimError as error:
            failures.append(error)
            continue
        records.append(Record(image_id, photo.path, size, tuple(sorted(index[label] for label in photo.labels))))
    if failures:
        first, message = failures[0], failures[0].message
        if len(failures) > 1:
            for failure in failures:
                logger.error("cannot be used: %s", failure)
            message = f"{len(failures)} photos cannot be used, first {message}"
        raise CimError(message, path=first.path, expected=first.expected, found=first.found, fix=first.fix)
    return tuple(records)


def _checked_size(path: Path, expected: tuple[int, int] | None) -> tuple[int, int]:
    size = photo_size(path)
    if expected is not None and expected != size:
        message, fix = "photo of another size than its annotation says (H, W)", "use the photo that was annotated"
        raise CimError(message, path=path, expected=expected, found=size, fix=fix)
    return size


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
