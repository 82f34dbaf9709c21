"""XML from anywhere, read without what makes XML dangerous."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cim.core.errors import CimError

_BLOCK = 2**16  # bytes parsed at once


def read_xml(path: Path, largest: int, fix: str | None = None) -> ElementTree.Element:
    """The root of an XML file from anywhere: document types, and with them entities, are refused.

    Args:
        largest: bytes.
        fix: what to do about a file that is not as it should be.

    Raises:
        CimError: missing, too large, damaged, or with a document type.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CimError("missing annotation", path=path, fix=fix) from None
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from None
    if size > largest:
        raise CimError("annotation too large", path=path, expected=f"at most {largest} bytes", found=size)
    builder = ElementTree.TreeBuilder()
    for _ in _parse(path, builder.start, builder.end, builder.data, fix):
        pass
    return builder.close()


def elements(path: Path, names: tuple[str, ...], fix: str | None = None) -> Iterator[ElementTree.Element]:
    """The elements of these names in a file of any size, one after the other; none inside another one of them.

    Raises:
        CimError: as :func:`read_xml`, but for the size.
    """
    done: list[ElementTree.Element] = []
    builder: ElementTree.TreeBuilder | None = None
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal builder, depth
        if builder is None and name in names:
            builder, depth = ElementTree.TreeBuilder(), 0
        if builder is not None:
            builder.start(name, attributes)
            depth += 1

    def end(name: str) -> None:
        nonlocal builder, depth
        if builder is not None:
            builder.end(name)
            depth -= 1
            if not depth:
                done.append(builder.close())
                builder = None

    def data(text: str) -> None:
        if builder is not None:
            builder.data(text)

    for _ in _parse(path, start, end, data, fix):
        yield from done
        done.clear()
    yield from done


def _parse(path: Path, start: Any, end: Any, data: Any, fix: str | None) -> Iterator[None]:
    """Feed a file to these handlers, block by block."""
    parser = expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise CimError("annotation with a document type, which is refused", path=path, fix=fix)

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                parser.Parse(block, False)
                yield
        parser.Parse(b"", True)
    except FileNotFoundError:
        raise CimError("missing annotation", path=path, fix=fix) from None
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from None
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise CimError("damaged annotation", path=path, found=error, fix=fix) from None


def text_in(root: ElementTree.Element, name: str, path: Path, fix: str | None = None) -> str:
    """The text of a child, without blanks around it.

    Raises:
        CimError: no such child, or an empty one.
    """
    found = root.find(name)
    if found is None or not (found.text or "").strip():
        raise CimError(f"annotation without {name}", path=path, fix=fix)
    return (found.text or "").strip()


def number_in(root: ElementTree.Element, name: str, path: Path, fix: str | None = None) -> int:
    """A child as a whole number; decimals, which some files have, are rounded.

    Raises:
        CimError: no such child, or no number.
    """
    text = text_in(root, name, path, fix)
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        raise CimError(f"bad {name}", path=path, expected="a number", found=text[:40]) from None
