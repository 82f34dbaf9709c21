"""XML from anywhere, read without what makes XML dangerous."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cim.core.errors import CimError


def read_xml(path: Path, largest: int, fix: str) -> ElementTree.Element:
    """The root of an XML file from anywhere: document types, and with them entities, are refused.

    Args:
        largest: bytes.
        fix: what to do about a file that is not as it should be.

    Raises:
        CimError: missing, too large, damaged, or with a document type.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CimError("missing annotation", path=path, fix=fix) from None
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from None
    if len(content) > largest:
        raise CimError("annotation too large", path=path, expected=f"at most {largest} bytes", found=len(content))
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise CimError("annotation with a document type, which is refused", path=path, fix=fix)

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise CimError("damaged annotation", path=path, found=error, fix=fix) from None
