"""Check the documentation against the code: commands, options, configs, settings, files and links that it names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs_commands import check_command, check_settings, check_yaml
from docs_text import check_links, check_paths, check_python, made_by, read_page

from cim.cli.common import parser, run
from cim.core.errors import CimError

ROOT = Path(__file__).resolve().parent.parent

IMAGE_LIMIT = 300_000  # bytes; a repository of text stays small


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "python tools/check_docs.py\n  python tools/check_docs.py README.md docs/FAQ.md")
    result.add_argument("pages", nargs="*", type=Path, help="markdown files (default: all of the project)")
    return result


def main(argv: list[str] | None = None) -> int:
    """0 when every page is right, else 1, with one line per problem."""
    args = get_parser().parse_args(argv)
    problems, notes = check_pages(args.pages or pages_of(ROOT))
    for line in notes:
        print(f"note: {line}")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


def pages_of(root: Path) -> list[Path]:
    """The pages of the project."""
    given = [
        root / "README.md",
        root / "CHANGELOG.md",
        root / "CONTRIBUTING.md",
        root / "data" / "README.md",
        *sorted((root / "docs").glob("*.md")),
    ]
    return [page for page in given if page.is_file()]


def check_pages(pages: list[Path], root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Problems and notes, each "file:line: what". A picture that is not there yet is a note: the demo makes it."""
    problems, notes = [], []
    for path in pages:
        if not path.is_file():
            raise CimError("no such page", path=path)
        page = read_page(path)
        found, made = check_links(page), made_by(page)
        for piece in page.code:
            found += check_command(piece, root) + check_settings(piece) + check_paths(piece, root, made)
            found += check_yaml(piece) + check_python(piece, root, made)
        for line, text in found:
            target = notes if text.startswith("picture not there") else problems
            target.append(f"{path.name}:{line}: {text}")
    for picture in sorted((root / "docs" / "images").glob("*")):
        if picture.stat().st_size > IMAGE_LIMIT:
            problems.append(f"{picture.name}: {picture.stat().st_size:,} bytes; at most {IMAGE_LIMIT:,}")
    return problems, notes


if __name__ == "__main__":
    sys.exit(run(main))
