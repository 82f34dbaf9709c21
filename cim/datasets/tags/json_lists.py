"""The lists of a large json, one entry in memory at a time: a COCO file needs its tags' worth of memory, not its own.

Only well-formed, plain files are read this way. Whatever is out of the ordinary raises :class:`Unusual`, and the caller
parses the whole file with the standard library, which says what is wrong with it and where.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

_CHUNK = 2**22  # bytes read at once
_LONGEST = 2**27  # characters of one entry; beyond, it is the file that is wrong
_SECONDS = 2.0  # of reading before a progress bar shows
_SPACE = re.compile(r"[ \t\n\r]*")


class Unusual(Exception):
    """Not a plain json object of lists, or not json at all."""


def read_lists(
    path: Path, names: Collection[str], hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, list[Any] | None]:
    """Every key of the json object in ``path``; the lists of those in ``names``, None for all others.

    Args:
        names: keys whose lists are kept.
        hook: as ``json.load``'s ``object_hook``, for every object inside the outermost: what it drops is gone before
            the next entry is read.

    Raises:
        Unusual: no object, a key given twice, a key of ``names`` that is no list, no json, no UTF-8.
        OSError: no such file, or one that cannot be read.
    """
    found: dict[str, list[Any] | None] = {}
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"reading {path.name}",
            unit="B",
            unit_scale=True,
            delay=_SECONDS,
            mininterval=0.5,
            leave=False,
        ) as bar,
    ):
        text = _Text(file, json.JSONDecoder(object_hook=hook), bar.update)
        text.expect("{")
        separator = ","
        while separator == ",":
            key = text.value()
            if not isinstance(key, str) or key in found:
                raise Unusual(f"key {key!r}")
            text.expect(":")
            if key in names and text.next() != "[":
                raise Unusual(f"no list {key}")
            if key in names:
                found[key] = list(text.entries())
            else:
                found[key] = None
                text.skip()
            separator = text.take()
        if separator != "}" or text.next():
            raise Unusual("no end of the object, or text after it")
    return found


class _Text:
    """The rest of a file, as much of it as is needed in memory."""

    def __init__(self, file: BinaryIO, decoder: json.JSONDecoder, read: Callable[[int], Any]) -> None:
        self._file, self._read = file, read
        self._parse = decoder.scan_once  # type: ignore[attr-defined]  # the stubs lack it
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """The next character that is no space; "" at the end. It stays."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None  # no space is a match, too
            self._at = space.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self) -> str:
        """The same, and it is gone."""
        character = self.next()
        self._at += 1
        return character

    def expect(self, character: str) -> None:
        """Take this character.

        Raises:
            Unusual: another one comes.
        """
        if self.take() != character:
            raise Unusual(f"no {character}")

    def value(self) -> Any:
        """The next value, parsed.

        Raises:
            Unusual: none, or a damaged one.
        """
        self.next()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except (StopIteration, json.JSONDecodeError):
                if self._ended:
                    raise Unusual("no json") from None
            else:
                if end < len(self._text) or self._ended:  # else a number might go on
                    self._at = end
                    return value
            self._more()

    def skip(self) -> None:
        """Leave out the next value; of a list, entry by entry."""
        if self.next() == "[":
            deque(self.entries(), maxlen=0)
        else:
            self.value()

    def entries(self) -> Iterator[Any]:
        """The values of the list that comes next, one after the other."""
        self.expect("[")
        if self.next() == "]":
            self.take()
            return
        separator = ","
        while separator == ",":
            yield self.value()
            separator = self.take()
        if separator != "]":
            raise Unusual("no end of a list")

    def _more(self) -> None:
        """Drop what was taken and read on, twice as much for an entry that did not fit."""
        rest = self._text[self._at :]
        if len(rest) > _LONGEST:
            raise Unusual("an endless entry")
        data = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not data
        try:
            self._text, self._at = rest + self._decode(data, final=self._ended), 0
        except UnicodeDecodeError:
            raise Unusual("no UTF-8") from None
        self._read(len(data))
