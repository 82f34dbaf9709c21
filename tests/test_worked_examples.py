"""The worked examples of docs/DESIGN.md: a copy of the house, changed as the page prints, runs their commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_rooms import too_high

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "DESIGN.md"
EXAMPLES = ("miner", "trunk", "source of proposals", "data set", "command")
RUN = """
import shlex, subprocess, sys
from cim.cli.main import main

for line in sys.stdin.read().splitlines():
    print("$", line, flush=True)
    words = shlex.split(line)
    code = main(words[1:]) if words[0] == "cim" else subprocess.run(["bash", "-euc", line]).returncode
    print("exit code", code, flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: language, lines, number of its first line."""

    language: str
    lines: tuple[str, ...]
    at: int


def blocks(text: str) -> list[Block]:
    found, start, lines = [], None, text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if start is None:
                start = number
            else:
                found.append(Block(lines[start][3:], tuple(lines[start + 1 : number]), start + 2))
                start = None
    return found


def sections() -> dict[str, list[Block]]:
    """The blocks of the examples by title, those before the first under the chapter's own title."""
    chapter = "Where does a change go" + PAGE.read_text(encoding="utf-8").split("## Where does a change go")[1]
    chapter = chapter.split("\n## ")[0]
    return {part.splitlines()[0].removeprefix("A new "): blocks(part) for part in chapter.split("\n### ")}


def changed(text: str, block: Block) -> str:
    """The text with the hunks of a diff block applied; what they show must occur once."""
    for hunk in "\n".join(block.lines[1:]).split("\n@@\n"):
        lines = hunk.splitlines()
        old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
        new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{block.lines[0]}: {text.count(old)} times in the file: {old}"
        text = text.replace(old, new)
    return text


def follow(block: Block, house: Path) -> Path | None:
    """Do what a block says to a file, and return the file; commands are for later."""
    if block.language.startswith("bash"):
        return None
    path = house / block.lines[0].removeprefix("# ").removeprefix("--- ")
    if block.language == "diff":
        path.write_text(changed(path.read_text(encoding="utf-8"), block), encoding="utf-8")
    else:
        assert not path.exists(), f"{path.name} is there already"
        path.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Followed:
    """The changed copy, the files that changed by example, and what each command printed."""

    house: Path
    files: dict[str, list[Path]]
    said: dict[str, str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Followed:
    house = tmp_path_factory.mktemp("house")
    for folder in ("cim", "configs"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files, commands = {}, []
    for title, found in sections().items():
        files[title] = [path for block in found if (path := follow(block, house))]
        commands += [line for block in found if block.language == "bash example" for line in block.lines]
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        cwd=house,
        env=environment,
    )
    said = {part.splitlines()[0]: part for part in done.stdout.split("$ ")[1:]}
    assert list(said) == commands, done.stderr[-3000:]
    return Followed(house, files, {line: f"{part}\n{done.stderr[-3000:]}" for line, part in said.items()})


def lines_of(title: str) -> list[str]:
    return [line for block in sections()[title] if block.language == "bash example" for line in block.lines]


def test_the_page_has_the_five_examples():
    assert tuple(sections())[1:] == EXAMPLES
    assert all(lines_of(title) for title in sections())


@pytest.mark.parametrize("title", ["Where does a change go", *EXAMPLES])
def test_its_commands_run(followed, title):
    for line in lines_of(title):
        assert "\nexit code 0\n" in followed.said[line], followed.said[line]


@pytest.mark.parametrize("title", EXAMPLES)
def test_it_keeps_the_house_in_order(followed, title):
    for path in followed.files[title]:
        room = path.relative_to(followed.house / "cim").parts[0]
        source = path.read_text(encoding="utf-8")
        assert too_high(room, source) == set()
        folder = [module for module in path.parent.glob("*.py") if module.name != "__init__.py"]
        assert len(folder) <= 12
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(ROOT / "pyproject.toml"), *map(str, followed.files[title])]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, *settings], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_they_leave_behind_what_they_are_for(followed):
    house = followed.house
    assert (house / "runs" / "try" / "train" / "final.pth").is_file()
    assert (house / "runs" / "trunk" / "prm" / "final.pth").is_file()
    assert (house / "runs" / "beside" / "prm" / "final.pth").is_file()
    manifest = (house / "runs" / "tiles" / "manifest.json").read_text(encoding="utf-8")
    assert '"maker": "tiles"' in manifest
    assert len(list((house / "runs" / "tiles").glob("*.npz"))) == 10
    counts = [line.split() for line in followed.said["cim tags try.yaml"].splitlines()[1:6]]
    assert [name for _, name in counts] == ["beetle", "car", "fish", "owl", "robot"]
    assert sum(int(count) for count, _ in counts) >= 10


@pytest.mark.parametrize(
    ("lines", "said"),
    [(["--- x", "+new", " b"], "a\nnew\nb\nc\nc\n"), (["--- x", "-a", "@@", "-b", "+d"], "d\nc\nc\n")],
)
def test_hunks_are_applied(lines, said):
    assert changed("a\nb\nc\nc\n", Block("diff", tuple(lines), 1)) == said


@pytest.mark.parametrize("lines", [["--- x", "-gone", "+new"], ["--- x", " c", "+new"]])
def test_a_hunk_that_fits_nowhere_or_twice_is_noticed(lines):
    with pytest.raises(AssertionError, match="times in the file"):
        changed("a\nb\nc\nc\n", Block("diff", tuple(lines), 1))
