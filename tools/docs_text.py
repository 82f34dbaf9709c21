"""Markdown for tools/check_docs.py: the code in a page, its links, the files it names."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

Found = list[tuple[int, str]]  # line, problem

_FENCE = re.compile(r"^\s*(```|~~~)\s*(?:bash )?(\w*)")
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$", re.M)
_OURS = re.compile(r"(?<![\w./-])(?:tools|scripts|configs|docs|benchmarks|cim|tests)/[\w./-]*\w\.(?:py|sh|yaml|md)\b")
_NEW = re.compile(r"# ([\w/]+\.py)\n")
_FOREIGN = {"tools/dist_train.sh"}  # of mmdetection, named in docs/EXPORT.md


@dataclass(frozen=True)
class Code:
    """A piece of code of a page.

    Attributes:
        text: commands of several lines joined.
        line: where it begins, from 1.
        kind: language of a fence ("" without; "example" for a worked example, which a test runs), "indented" or
            "inline".
    """

    text: str
    line: int
    kind: str


@dataclass(frozen=True)
class Page:
    """A page: its file, its prose (code blanked out, same lines) and its code."""

    path: Path
    prose: str
    code: list[Code]


def read_page(path: Path) -> Page:
    """Split a markdown file into prose and code."""
    prose, code, block, begin, kind = [], [], [], 0, None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and kind is None:
            kind, block, begin = fence[2], [], number + 1
        elif fence:
            code += _pieces(block, begin, kind)
            kind = None
        elif kind is not None:
            block.append(line)
        elif line.startswith("    "):
            code.append(Code(line.strip(), number, "indented"))
        else:
            prose.append(line)
            continue
        prose.append("")
    text = "\n".join(prose)
    for match in re.finditer(r"`([^`]+)`", text):
        code.append(Code(" ".join(match[1].split()), text.count("\n", 0, match.start()) + 1, "inline"))
    return Page(path, re.sub(r"`[^`]+`", lambda m: "\n" * m[0].count("\n"), text), _joined(code))


def _pieces(block: list[str], begin: int, kind: str) -> list[Code]:
    if kind in ("yaml", "python"):
        return [Code("\n".join(block), begin, kind)]
    return [Code(line.strip(), begin + i, kind) for i, line in enumerate(block)]


def _joined(code: list[Code]) -> list[Code]:
    """Lines that end in a backslash become one with the next."""
    result: list[Code] = []
    for piece in code:
        if result and result[-1].text.endswith("\\") and result[-1].kind == piece.kind:
            last = result.pop()
            piece = Code(last.text[:-1].rstrip() + " " + piece.text, last.line, last.kind)
        result.append(piece)
    return result


def check_links(page: Page) -> Found:
    """Relative links lead to files, anchors to headings."""
    found: Found = []
    for match in _LINK.finditer(page.prose):
        line = page.prose.count("\n", 0, match.start()) + 1
        address, _, anchor = match[2].partition("#")
        if re.match(r"\w+:", address):
            continue
        target = page.path.parent / address if address else page.path
        if not target.exists():
            what = "picture not there" if match[1] else "link leads nowhere"
            found.append((line, f"{what}: {match[2]}"))
        elif anchor and anchor not in anchors(target):
            found.append((line, f"no such heading: {match[2]}"))
    return found


def anchors(path: Path) -> set[str]:
    """The anchors that headings of a page get."""
    headings = _HEADING.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def made_by(page: Page) -> set[str]:
    """Files that the page tells to write: Python blocks that open with their name."""
    blocks = [_NEW.match(piece.text) for piece in page.code if piece.kind == "python"]
    return {block[1] for block in blocks if block}


def check_paths(piece: Code, root: Path, made: set[str]) -> Found:
    """Files of the repository that code names are there, or made by the page."""
    names = dict.fromkeys(_OURS.findall(piece.text))
    known = _FOREIGN | made
    return [(piece.line, f"no such file: {name}") for name in names if name not in known and not (root / name).exists()]


def check_python(piece: Code, root: Path, made: set[str]) -> Found:
    """Python blocks compile, and what they import from ``cim`` is there."""
    if piece.kind != "python":
        return []
    try:
        tree = ast.parse(piece.text)
    except SyntaxError as error:
        return [(piece.line + (error.lineno or 1) - 1, f"not Python: {error.msg}")]
    found: Found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cim."):
            path = f"{node.module.replace('.', '/')}.py"
            missing = [] if path in made else _not_in(root / path, [alias.name for alias in node.names])
            found += [(piece.line + node.lineno - 1, f"nothing to import: {node.module}.{name}") for name in missing]
    return found


def _not_in(module: Path, names: list[str]) -> list[str]:
    """The names that a module does not define; all of them where there is no such module."""
    if not module.is_file():
        return names
    text = module.read_text(encoding="utf-8")
    return [name for name in names if not re.search(rf"^(?:class |def |from .* import .*\b)?{name}\b", text, re.M)]
