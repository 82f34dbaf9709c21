"""Tags out of a COCO json: which categories each image has. Masks are dropped while the file is read.

A large json is parsed once: its tags stay beside it (:mod:`cim.datasets.tags.cache`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from cim.core.errors import CimError
from cim.datasets.base import Dataset
from cim.datasets.tags.cache import Stamp, keep_tags, kept_tags
from cim.datasets.tags.json_lists import Unusual, read_lists
from cim.datasets.tags.table import TableRecords, TagFile, TaggedImage, TagTable


class _Pair(NamedTuple):
    """All that is kept of an annotation."""

    image_id: Any
    category_id: Any
    difficult: bool


_KINDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": (int, type(None)), "width": (int, type(None))},
    "categories": {"id": int, "name": str},
}
_MASK_KEYS = {"image_id", "category_id", "counts"}  # what :func:`_without_masks` knows annotations and masks by


def read_tag_file(path: str | Path, fix: str | None = None) -> TagFile:
    """Read the image list, the categories and the tags of a COCO json, or what an earlier call kept of it.

    Each annotation shrinks to (image, category) the moment it is parsed, so masks are neither kept nor needed,
    and a file without any masks gives the same result. Crowd annotations count: a crowd of people is people.
    What VOC marks as ``difficult`` gives no tag, as in PCL's and OICR's programs and in VOC's own lists per class.

    Raises:
        CimError: missing file, no json, missing keys, an unknown category or image, an id or file name used twice.
    """
    path = Path(path)
    stamp = Stamp.of(path)
    file = kept_tags(path, stamp)
    if file is None:
        file = parse_tag_file(path, fix)
        keep_tags(file, stamp)
    return file


def parse_tag_file(path: Path, fix: str | None = None) -> TagFile:
    """:func:`read_tag_file` without anything kept: entry by entry where the file is a plain one, else as a whole."""
    try:
        content = read_lists(path, ("images", "annotations", "categories"), _slim)
        if not content.keys() & _MASK_KEYS:
            return _tag_file(content, path)
    except (Unusual, OSError, CimError, ValueError, RecursionError):
        pass  # the whole says best what is wrong
    return _tag_file(_load(path, fix), path)


def open_tag_file(name: str, path: Path, photos: Path, fix: str) -> Dataset:
    """A data set in the published manner: a COCO json (with image sizes) and a folder of photos.

    The photos are not touched; ``cim check`` does that.

    Raises:
        CimError: see :func:`read_tag_file`; also an image without its size, or one outside the folder.
    """
    file = read_tag_file(path, fix)
    image = file.images.without_size()
    if image is not None:
        raise CimError("image without height and width", path=path, found=image.file_name, fix=fix)
    image = file.images.leading_outside()
    if image is not None:
        raise CimError("photo outside the images folder", path=path, found=image.file_name, expected=f"below {photos}")
    records = TableRecords.of(file.images, photos)
    return Dataset(name, file.classes, file.category_ids, records, path if file.annotated else None)


def _load(path: Path, fix: str | None) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, object_hook=_without_masks)
    except FileNotFoundError:
        raise CimError("missing annotation file", path=path, fix=fix) from None
    except IsADirectoryError:
        raise CimError("a folder where a json file should be", path=path) from None
    except (ValueError, RecursionError) as error:  # no json or UTF-8, endless digits, lists in lists in lists
        raise CimError("not a json file (truncated?)", path=path, found=error, fix=fix) from None


def _without_masks(entry: dict[str, Any]) -> Any:
    """json hook: annotations become pairs, run-length masks nothing; all other objects stay."""
    if "category_id" in entry or "image_id" in entry:
        return _Pair(entry.get("image_id"), entry.get("category_id"), bool(entry.get("difficult")))
    if "counts" in entry:
        return None
    return entry


def _slim(entry: dict[str, Any]) -> Any:
    """The same, and of an image only what is wanted later."""
    entry = _without_masks(entry)
    if isinstance(entry, dict) and "file_name" in entry:
        return {key: entry[key] for key in _KINDS["images"] if key in entry}
    return entry


def _tag_file(content: Any, path: Path) -> TagFile:
    _check(content, path)
    classes, category_ids = _categories(content, path)
    tags = _tags(content, path, {number: index for index, number in enumerate(category_ids)})
    images = []
    for entry in content["images"]:
        size = (int(entry["height"]), int(entry["width"])) if entry.get("height") and entry.get("width") else None
        images.append(TaggedImage(entry["id"], entry["file_name"], size, tuple(sorted(tags[entry["id"]]))))
    return TagFile(path, classes, category_ids, TagTable.of(images), "annotations" in content)


def _check(content: Any, path: Path) -> None:
    if not isinstance(content, dict):
        raise CimError("not a COCO json", path=path, expected="an object with images and categories")
    for key, needed in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        entries = content.get(key)
        if not isinstance(entries, list):
            raise CimError("not a COCO json", path=path, expected=f"a list '{key}'", found=sorted(content))
        for entry in entries:
            lacking = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if lacking:
                raise CimError(f"entry of '{key}' without '{lacking[0]}'", path=path, found=str(entry)[:80])
            wrong = [name for name, kind in _KINDS[key].items() if not isinstance(entry.get(name), kind)]
            if wrong:
                raise CimError(f"entry of '{key}' with a strange '{wrong[0]}'", path=path, found=str(entry)[:80])
    if not isinstance(content.get("annotations", []), list):
        raise CimError("not a COCO json", path=path, expected="a list 'annotations', or none")


def _categories(content: dict[str, Any], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    names, ids = tuple(str(entry["name"]) for entry in entries), tuple(entry["id"] for entry in entries)
    for kind, values in (("name", names), ("id", ids)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise CimError(f"category {kind} used twice", path=path, found=twice[0])
    return names, ids


def _tags(content: dict[str, Any], path: Path, index: dict[Any, int]) -> dict[Any, set[int]]:
    tags: dict[Any, set[int]] = {}
    names = set()
    for entry in content["images"]:
        if entry["id"] in tags:
            raise CimError("image id used twice", path=path, found=f"{entry['id']} ({entry['file_name']})")
        if entry["file_name"] in names:
            raise CimError("file name used twice", path=path, found=entry["file_name"])
        tags[entry["id"]] = set()
        names.add(entry["file_name"])
    for pair in content.get("annotations", ()):
        if not isinstance(pair, _Pair):
            raise CimError("annotation without image_id and category_id", path=path, found=str(pair)[:80])
        if not isinstance(pair.image_id, int | str) or pair.image_id not in tags:
            raise CimError("annotation of an unknown image", path=path, found=f"image_id {pair.image_id}")
        if not isinstance(pair.category_id, int) or pair.category_id not in index:
            raise CimError("annotation of an unknown category", path=path, found=f"category_id {pair.category_id}")
        if not pair.difficult:
            tags[pair.image_id].add(index[pair.category_id])
    return tags
