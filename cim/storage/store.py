"""Artefacts on disk: a folder with one file per image and a manifest that says what they are.

One file per image makes every stage resumable (what is there is done), parallel (nobody shares a
file) and flat in memory. The manifest records kind, maker and settings, so that artefacts made with
other settings are never mixed silently. Where a file system suffers from so many files, one holds
them all (cim/storage/entries.py); who reads or writes a store need not know.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cim.core.errors import CimError
from cim.core.files import as_json, npz_content, read_json, write_json
from cim.core.leftovers import MANIFEST, sweep
from cim.core.locks import LOCK
from cim.core.regions import RegionSet
from cim.storage.entries import PACK, Folder, Pack, entries_at

PHOTOS = "photos.jsonl"  # which photos the artefacts were made from (cim/storage/photos.py)
FORMAT = 1
_LONGEST = 180  # characters of a name; file systems take 255, temporary files need some


@dataclass(frozen=True)
class Store:
    """A folder of per-image artefacts of one kind.

    Attributes:
        root: the folder.
        kind: "regions", "clusters", "peaks", "detections", ...
        provenance: who made them, from what and with which settings; for regions also
            ``trained_on_masks``: True, False or None (unknown).
    """

    root: Path
    kind: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls, root: str | Path, kind: str, provenance: dict[str, Any], overwrite: bool = False, packed: bool = False
    ) -> Store:
        """A store to write into; an existing one of the same kind and settings is continued, and what killed writers
        left there is removed.

        Args:
            packed: a new one holds all in one file; one that is there keeps its form.

        Raises:
            CimError: the folder holds something else, or was made with other settings.
        """
        root, provenance = Path(root), as_json(provenance)
        sweep(root)
        if overwrite and (root / MANIFEST).exists():
            cls.open(root, kind)  # refuse to delete what is not ours
            packed = packed or (root / PACK).is_file()
            _clear(root)
        if (old := cls.agreeing(root, kind, provenance)) is not None:
            return old
        if root.exists() and not root.is_dir():
            raise CimError("output is not a folder", path=root, fix="choose another output folder")
        if packed:
            Pack.create(root / PACK)
        write_json(root / MANIFEST, {"format": FORMAT, "kind": kind, "provenance": provenance}, indent=1)
        return cls(root, kind, provenance)

    @classmethod
    def agreeing(cls, root: str | Path, kind: str, provenance: dict[str, Any]) -> Store | None:
        """The store that :meth:`create` would continue; None where there is none yet.

        Raises:
            CimError: the folder holds something else, or was made with other settings.
        """
        root, provenance = Path(root), as_json(provenance)
        if not (root / MANIFEST).exists():
            return None
        old = cls.open(root, kind)
        if old.provenance != provenance:
            changed = {
                k for k in old.provenance.keys() | provenance.keys() if old.provenance.get(k) != provenance.get(k)
            }
            raise CimError(
                f"{kind} made with other settings ({', '.join(sorted(changed))})",
                path=root,
                expected={k: provenance.get(k) for k in sorted(changed)},
                found={k: old.provenance.get(k) for k in sorted(changed)},
                fix="choose another output folder; --overwrite deletes what is there",
            )
        return old

    @staticmethod
    def kind_at(root: str | Path) -> str | None:
        """What the store in a folder holds; None where there is no store.

        Raises:
            CimError: damaged manifest.
        """
        path = Path(root) / MANIFEST
        manifest = read_json(path) if path.is_file() else {}
        if not isinstance(manifest, dict):
            raise CimError("damaged manifest", path=path, found=type(manifest).__name__)
        return manifest.get("kind")

    @classmethod
    def open(cls, root: str | Path, kind: str, fix: str | None = None) -> Store:
        """An existing store.

        Raises:
            CimError: missing, or of another kind; ``fix`` says which command makes it.
        """
        root = Path(root)
        if not (root / MANIFEST).is_file():
            raise CimError(f"no {kind} here", path=root, fix=fix)
        manifest = read_json(root / MANIFEST, fix=fix)
        found = manifest.get("kind") if isinstance(manifest, dict) else None
        if found != kind:
            raise CimError("folder holds another kind of artefact", path=root, expected=kind, found=found, fix=fix)
        provenance = manifest.get("provenance", {})
        if not isinstance(provenance, dict):
            raise CimError("damaged manifest", path=root / MANIFEST, found=type(provenance).__name__, fix=fix)
        return cls(root, kind, provenance)

    @property
    def entries(self) -> Folder | Pack:
        """What is stored, by name, in the form that it has now."""
        return entries_at(self.root)

    def path(self, image_id: int | str, ending: str = ".npz") -> Path:
        """File of one image; below the one file that holds all, where there is one."""
        return self.entries.path(entry_name(image_id, ending))

    def has(self, image_id: int | str, ending: str = ".npz") -> bool:
        return self.entries.has(entry_name(image_id, ending))

    def seen(self, ending: str = ".npz") -> Callable[[int | str], bool]:
        """:meth:`has` of what is there now, for many images: the folder is looked at once."""
        names = frozenset(self.entries.names())
        return lambda image_id: entry_name(image_id, ending) in names

    def __len__(self) -> int:
        return len(self.entries.names())

    def write(self, image_id: int | str, content: bytes, ending: str = ".npz") -> None:
        """The file of one image, atomically.

        Raises:
            CimError: the disk cannot be written, or is full.
        """
        self.entries.write(entry_name(image_id, ending), content)

    def read(self, image_id: int | str, ending: str = ".npz") -> bytes | None:
        """What :meth:`write` wrote; None where there is nothing.

        Raises:
            CimError: damaged pack.
            OSError: the file cannot be read.
        """
        return self.entries.read(entry_name(image_id, ending))

    @property
    def mend(self) -> str:
        """What to do about a damaged file."""
        if isinstance(self.entries, Folder):
            return "delete it and run again"
        return f"cim pack --undo {self.root}, delete it and run again"

    def save(self, image_id: int | str, **arrays: np.ndarray) -> None:
        """Arrays of one image, atomically."""
        self.write(image_id, npz_content(**arrays))

    def remove(self, image_id: int | str, ending: str = ".npz") -> None:
        """What :meth:`write` wrote, if anything.

        Raises:
            CimError: the disk cannot be written, or the pack is damaged.
        """
        self.entries.remove(entry_name(image_id, ending))

    def load(self, image_id: int | str, only: str | None = None) -> dict[str, np.ndarray]:
        """What :meth:`save` wrote.

        Args:
            only: the name of the one array that is wanted, if it is there; others are not decoded.

        Raises:
            CimError: missing or damaged.
        """
        path = self.path(image_id)
        try:
            content = self.read(image_id)
            if content is None:
                raise CimError(f"no {self.kind} for image {image_id}", path=path)
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if only is None or key == only}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("something beside arrays")
            return arrays
        except CimError:
            raise
        except Exception as error:  # zip, zlib, value, end of file: all mean a damaged file
            raise CimError(f"damaged {self.kind} file", path=path, found=error, fix=self.mend) from error

    def save_regions(self, image_id: int | str, regions: RegionSet, **kept: np.ndarray) -> None:
        """Proposals of one image, and what else is ``kept`` with them."""
        self.save(image_id, **regions.arrays(), **kept)

    def load_regions(self, image_id: int | str) -> RegionSet:
        entries, name = self.entries, entry_name(image_id)
        return RegionSet.load(entries.path(name), entries.read(name) if isinstance(entries, Pack) else None)


def entry_name(image_id: int | str, ending: str = ".npz") -> str:
    """File name of one image; ids with characters that file systems dislike are escaped."""
    name = quote(str(image_id), safe="", errors="surrogateescape")  # names of photos that are not UTF-8
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    if name.startswith("."):  # hidden files are temporary ones
        name = "%2E" + name[1:]
    return name + ending


def _clear(root: Path) -> None:
    """Everything in a store goes but the lock of the command that asks for it; the manifest last, since a store without
    one would be taken for new; before it the table of photos, without which artefacts are taken as they are; before
    that the pack, after what belongs to it."""
    if (root / PACK).is_file():
        with suppress(CimError):  # a damaged one goes as well
            Pack(root / PACK).settle()
    last = (PACK, PHOTOS, MANIFEST)
    for path in sorted(root.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
