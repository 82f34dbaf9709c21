"""Finding photos in a folder by the names that people write."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cim.core.errors import CimError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def photos_in(folder: Path) -> list[Path]:
    """What is directly in a folder and called like a photo, sorted; hidden files left out.

    Raises:
        CimError: the folder cannot be listed.
    """
    return [path for path in _entries(folder) if path.suffix.lower() in PHOTO_SUFFIXES]


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted; hidden ones left out. Raises as :func:`photos_in`."""
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _not_listed(folder, error) from None


def photos_below(folder: Path) -> tuple[list[Path], list[CimError]]:
    """What is called like a photo in a folder and the folders in it, sorted, and an error per folder that cannot be
    listed. Links to folders are not followed: they may lead in circles."""
    errors: list[CimError] = []
    found = [
        Path(root, name)
        for root, folders, files in os.walk(folder, onerror=lambda e: errors.append(_not_listed(Path(e.filename), e)))
        for name in folders + files
        if Path(name).suffix.lower() in PHOTO_SUFFIXES
    ]
    return sorted(found), errors


def _not_listed(folder: Path, error: OSError) -> CimError:
    fix = "let this user read it, or take it out"
    return CimError("cannot list this folder of photos", path=folder, found=error.strerror, fix=fix)


def leads_outside(name: str) -> bool:
    """Whether a name that a file gives a photo leads out of the folder that it is relative to."""
    relative = PurePosixPath(name.replace("\\", "/"))
    return relative.is_absolute() or ".." in relative.parts


@dataclass
class PhotoFinder:
    """Files by the names that people write: exact, without the extension, or with other capitals."""

    root: Path
    _by_stem: dict[str, list[Path]] = field(default_factory=dict)

    def find(self, name: str, where: str) -> Path:
        """The photo meant by ``name``, relative to the root.

        Raises:
            CimError: none, more than one, or outside the root; a folder in the root that cannot be listed.
        """
        relative = PurePosixPath(name.replace("\\", "/"))
        if leads_outside(name):
            raise CimError(
                "photo outside the images folder", path=where, found=name, expected=f"a name below {self.root}"
            )
        exact = self.root / relative
        try:
            if exact.is_file():
                return exact
        except OSError as error:  # a name longer than the file system takes
            raise CimError("no such photo", path=where, found=f"{name[:60]}... ({error.strerror})") from None
        found = self._alike(relative)
        if len(found) > 1:
            raise CimError(
                f"more than one file for '{name}'",
                path=where,
                found=", ".join(path.relative_to(self.root).as_posix() for path in found),
                fix="write the full file name",
            )
        if not found:
            near = difflib.get_close_matches(relative.name.lower(), [Path(stem).name for stem in self._by_stem], n=1)
            raise CimError(
                f"no photo '{name}' in {self.root}", path=where, fix=f"did you mean {near[0]}?" if near else None
            )
        return found[0]

    def _alike(self, relative: PurePosixPath) -> list[Path]:
        """Photos of the same folder and stem, capitals aside; if the extension agrees too, only those."""
        if not self._by_stem:
            photos, errors = photos_below(self.root)
            if errors:
                raise errors[0]
            for path in photos:
                self._by_stem.setdefault(_stem_key(path.relative_to(self.root)), []).append(path)
        found = self._by_stem.get(_stem_key(relative), [])
        same = [path for path in found if path.suffix.lower() == relative.suffix.lower()]
        return same or found


def _stem_key(relative: PurePosixPath | Path) -> str:
    known = relative.suffix.lower() in PHOTO_SUFFIXES
    return (relative.with_suffix("") if known else relative).as_posix().lower()
