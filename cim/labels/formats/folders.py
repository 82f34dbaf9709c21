"""Folders that an export makes: whole or not at all, with the photos linked or copied into them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from cim.core.errors import CimError, cannot_write
from cim.core.photo import photo_size
from cim.datasets.photo_files import PhotoFinder
from cim.labels.formats.marks import TRAIN, VAL, Photo

Placing = Literal["link", "copy"]


@contextmanager
def new_folder(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well; else it is removed.

    Raises:
        CimError: ``target`` holds something and is not to be replaced, or cannot be written.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise CimError("not a folder", path=target, fix="choose another --output")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CimError("not an empty folder", path=target, fix="choose another --output, or --overwrite")
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except OSError as error:
        raise cannot_write(target, error, "choose another --output") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def place(photo: Photo, target: Path, how: Placing) -> None:
    """The photo at ``target``, as a link to it or as a copy.

    A hard link where both lie on one disk, else a symbolic one; some programs refuse symbolic links that lead outside.

    Raises:
        CimError: it is not there, or this file system has no links.
    """
    if not photo.path.is_file():
        raise CimError("missing photo", path=photo.path, fix="--images FOLDER")
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "copy":
        shutil.copyfile(photo.path, target)
        return
    source = photo.path.resolve()
    try:
        target.hardlink_to(source)
        return
    except OSError:  # another disk, or one without such links
        pass
    try:
        target.symlink_to(source)
    except OSError as error:
        raise CimError("cannot link a photo", path=target, found=error.strerror, fix="--photos copy") from None


@dataclass
class Names:
    """File names of photos in a new folder: as they were, but no two that differ only in their extension.

    Programs that keep a file of labels per photo would write both to one file.

    Attributes:
        flat: no sub-folders: ``cat/1.jpg`` becomes ``cat__1.jpg``.
    """

    flat: bool = False
    _taken: set[str] = field(default_factory=set)

    def of(self, photo: Photo) -> PurePosixPath:
        """The name, of the same extension; another one each time."""
        name = PurePosixPath(photo.name.replace("/", "__") if self.flat else photo.name)
        stem, number = name.stem, 1
        while self._key(photo, name) in self._taken:
            number += 1
            mark = name.suffix[1:] if number == 2 else str(number)
            name = name.with_name(f"{stem}_{mark}{name.suffix}")
        self._taken.add(self._key(photo, name))
        return name

    def _key(self, photo: Photo, name: PurePosixPath) -> str:
        return f"{photo.split}/{name.with_suffix('')}".lower()  # some file systems do not tell capitals apart


CLASSES = "labels.txt"


def write_classes(folder: Path, classes: tuple[str, ...]) -> None:
    """``labels.txt``, a class a line: their order, for formats that keep none."""
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def read_classes(folder: Path, used: set[str]) -> tuple[str, ...]:
    """Those of ``labels.txt`` in its order, if there is one; then those that are used besides, sorted.

    LabelMe's own ``__ignore__`` and ``_background_`` are no classes.
    """
    path = folder / CLASSES
    listed = read_lines(path) if path.is_file() else []
    known = tuple(name.strip() for name in listed if name.strip() and name.strip() not in _NO_CLASSES)
    return (*known, *sorted(used - set(known)))


def read_lines(path: Path) -> list[str]:
    """The lines of a text.

    Raises:
        CimError: it cannot be read, or is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CimError("not a text file in UTF-8", path=path, found=error) from None


_NO_CLASSES = ("__ignore__", "_background_")


def split_files(source: Path, pattern: str) -> list[tuple[str, Path]]:
    """(split, file): ``source`` itself if it is a file, else ``pattern`` below it, with the split's name for ``{}``.

    Raises:
        CimError: nothing of the kind.
    """
    if source.is_file():
        return [(TRAIN, source)]
    found = [(split, source / pattern.format(split)) for split in (TRAIN, VAL)]
    found = [(split, path) for split, path in found if path.is_file()]
    if not found:
        expected = f"a file, or a folder with {pattern.format(TRAIN)}"
        raise CimError("no labels of this format here", path=source, expected=expected)
    return found


@dataclass
class PhotoFolder:
    """The photos that labels of another program are about; nothing outside their folder is ever touched."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise CimError("no such folder of photos", path=self.root, fix="--images FOLDER")
        self._finder = PhotoFinder(self.root)

    def photo(
        self,
        name: str,
        where: str | Path,
        size: tuple[int, int] | None = None,
        split: str = TRAIN,
        image_id: int | str | None = None,
    ) -> Photo:
        """The photo of this name below the folder; names without an extension or with other capitals are understood.

        Args:
            where: the file of labels, for messages.
            size: (H, W) as the labels say.

        Raises:
            CimError: none of this name, more than one, one outside the folder, or one of another size.
        """
        path = self._finder.find(name, str(where))
        true = photo_size(path)
        if size is not None and tuple(size) != true:
            raise CimError("photo of another size than its labels (H, W)", path=path, expected=tuple(size), found=true)
        return Photo(path.relative_to(self.root).as_posix(), path, true, split, image_id)
