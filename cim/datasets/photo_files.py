"""Finding photos in a folder by the names that people write."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cim.core.errors import CimError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def photos_in(folder: Path) -> list[Path]:
    """The photos directly in a folder, by suffix, sorted; hidden files left out."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
    )


@dataclass
class PhotoFinder:
    """Files by the names that people write: exact, without the extension, or with other capitals."""

    root: Path
    _by_stem: dict[str, list[Path]] = field(default_factory=dict)

    def find(self, name: str, where: str) -> Path:
        """The photo meant by ``name``, relative to the root.

        Raises:
            CimError: none, more than one, or outside the root.
        """
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
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
            for path in sorted(self.root.rglob("*")):
                if path.suffix.lower() in PHOTO_SUFFIXES:
                    self._by_stem.setdefault(_stem_key(path.relative_to(self.root)), []).append(path)
        found = self._by_stem.get(_stem_key(relative), [])
        same = [path for path in found if path.suffix.lower() == relative.suffix.lower()]
        return same or found


def _stem_key(relative: PurePosixPath | Path) -> str:
    known = relative.suffix.lower() in PHOTO_SUFFIXES
    return (relative.with_suffix("") if known else relative).as_posix().lower()
