"""A review as it goes on: the decisions in memory and on disk, checked against each other at every step, and undo."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from cim.core.errors import CimError
from cim.core.run_lengths import as_text, compressed
from cim.review import decisions as edits
from cim.review.corrections import Decisions, photo_name, read_corrections, version_of, write_corrections
from cim.review.decisions import NOTHING, Decision, Found, Shape
from cim.review.desk import Desk, Sheet


class Conflict(Exception):
    """The corrections are not those that the change was made on."""


class Session:
    """One review. All methods may be called from several threads; photos are named by their place on the desk.

    What a change was made on is told by a version, which is that of the file: a second page, a second program and an
    editor are noticed in the same way, and none of them is overwritten.
    """

    def __init__(self, desk: Desk, path: Path) -> None:
        """Reads the corrections.

        Raises:
            CimError: damaged ones, or those of another run.
        """
        self.desk, self.path = desk, path
        self._lock = threading.Lock()
        self._version = version_of(path)
        self._decisions: Decisions = read_corrections(path, desk.dataset, desk.images)
        self._past: list[tuple[int, Decision | None]] = []  # places, and what was decided there before

    def overview(self) -> dict[str, Any]:
        """Version, classes, and of every photo its name and state, in order of doubt."""
        with self._lock:
            self._refresh()
            photos = [
                {"name": photo_name(sheet.record, self.desk.images), "doubt": round(sheet.doubt, 3)}
                | {"reasons": list(sheet.reasons), "state": self._state_of(sheet)}
                for sheet in self.desk.sheets
            ]
            return {"version": self._version, "photos": photos}

    def photo(self, place: int) -> dict[str, Any]:
        """What a page needs to show a photo, but for pixels and proposals.

        Raises:
            CimError: no such photo, no proposals.
        """
        sheet = self.sheet(place)
        record, regions = sheet.record, self.desk.regions(sheet)
        with self._lock:
            self._refresh()
            return {
                "name": photo_name(record, self.desk.images),
                "size": [int(side) for side in record.size],
                "classes": [{"id": tag, "name": self.desk.dataset.classes[tag]} for tag in record.tags],
                "regions": list(regions.members.shape),
                "ranking": self.desk.ranking(sheet, regions).tolist(),
                **self._shown(place),
            }

    def change(self, place: int, version: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one change, save it, and say how the photo looks now.

        Args:
            version: of the corrections that the change was made on.
            what: ``do``: accept or delete (``key`` of a mask), accept all, add (``class_id``, ``proposal``), number
                (``class_id``, ``number`` or None), undo (of the last change, whatever its photo).

        Raises:
            Conflict: the corrections have changed since; nothing was done.
            CimError: a change that makes no sense; nothing was done.
        """
        with self._lock:
            self._refresh()
            if version != self._version:
                raise Conflict
            if what.get("do") == "undo":
                return self._undo()
            sheet = self.sheet(place)
            before = self._decisions.get(sheet.record.image_id)
            after = self._changed(sheet, before or NOTHING, what)
            if after != (before or NOTHING):
                self._save(sheet, after)
                self._past.append((place, before))
            return self._shown(place)

    def sheet(self, place: int) -> Sheet:
        """Raises:
        CimError: no such photo.
        """
        if not 0 <= place < len(self.desk.sheets):
            raise CimError("no such photo", expected=f"0 to {len(self.desk.sheets) - 1}", found=place)
        return self.desk.sheets[place]

    # ------------------------------------------------------------------ inside, with the lock held

    def _refresh(self) -> None:
        version = version_of(self.path)
        if version != self._version:
            self._decisions = read_corrections(self.path, self.desk.dataset, self.desk.images)
            self._version, self._past = version, []

    def _save(self, sheet: Sheet, decision: Decision | None) -> None:
        changed = dict(self._decisions)
        if decision is None:
            changed.pop(sheet.record.image_id, None)
        else:
            changed[sheet.record.image_id] = decision
        write_corrections(self.path, changed, self.desk.dataset, self.desk.images)
        self._decisions, self._version = changed, version_of(self.path)

    def _undo(self) -> dict[str, Any]:
        if not self._past:
            raise CimError("nothing to undo", found="no change since this review began, or since another one's change")
        place, before = self._past[-1]
        self._save(self.desk.sheets[place], before)
        self._past.pop()
        return self._shown(place)

    def _changed(self, sheet: Sheet, decision: Decision, what: Mapping[str, Any]) -> Decision:
        do, found = what.get("do"), sheet.found
        if do == "accept all":
            return edits.accept_all(decision, found)
        if do in ("accept", "delete"):
            shapes = {key_of(shape): shape for shape in self._shapes(found, decision)}
            if what.get("key") not in shapes:
                raise CimError("no such mask on this photo", found=what.get("key"))
            shape = shapes[str(what["key"])]
            return edits.accept(decision, found, [shape]) if do == "accept" else edits.delete(decision, found, shape)
        class_id = what.get("class_id")
        if class_id not in sheet.record.tags:
            raise CimError("no such class on this photo", expected=list(sheet.record.tags), found=class_id)
        if do == "add":
            return edits.add(decision, found, Shape(class_id, self._mask(sheet, what.get("proposal"))))
        number = what.get("number")
        if do == "number" and (number is None or type(number) is int):
            return edits.set_number(decision, class_id, number)
        raise CimError("no such change", found=dict(what))

    def _mask(self, sheet: Sheet, proposal: object) -> str:
        regions = self.desk.regions(sheet)
        if type(proposal) is not int or not 0 <= proposal < len(regions):
            raise CimError("no such proposal", expected=f"0 to {len(regions) - 1}", found=proposal)
        return as_text(compressed(regions.rles([proposal]), regions.size)[0]["counts"])

    def _shapes(self, found: Found, decision: Decision) -> tuple[Shape, ...]:
        return (*decision.accepted, *edits.undecided(decision, found))

    def _state_of(self, sheet: Sheet) -> str:
        decision = self._decisions.get(sheet.record.image_id)
        if decision is None:
            return "open"
        return "done" if edits.settled(decision, sheet.record.tags) else "begun"

    def _shown(self, place: int) -> dict[str, Any]:
        sheet = self.desk.sheets[place]
        found, decision = sheet.found, self._decisions.get(sheet.record.image_id, NOTHING)
        shapes = [
            {"key": key_of(shape), "class_id": shape.class_id, "accepted": shape in decision.accepted}
            | {"score": found.scores.get(shape), "mask": shape.mask}
            for shape in self._shapes(found, decision)
        ]
        deleted = [{"key": key_of(shape), "class_id": shape.class_id, "mask": shape.mask} for shape in decision.deleted]
        numbers = [
            {"class_id": tag, "number": decision.numbers.get(tag), "told": found.told.get(tag)}
            for tag in sheet.record.tags
        ]
        return {
            "version": self._version,
            "place": place,
            "state": self._state_of(sheet),
            "shapes": shapes,
            "deleted": deleted,
            "numbers": numbers,
            "undo": len(self._past),
        }


def key_of(shape: Shape) -> str:
    """A short name of a mask, the same as long as it is the same mask."""
    return sha256(f"{shape.class_id} {shape.mask}".encode()).hexdigest()[:12]
