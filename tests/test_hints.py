"""What commands print as the next thing to do, or as what mends an error, can be done: it is run here."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from small_job import SMALL, words

from cim.cli.jobs.run import resolve
from cim.cli.main import main, parse
from cim.config.loading import save_config
from cim.datasets.drawn import make_demo

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))  # at the end: tools/test.py and others have common names

from docs_commands import check_command, check_settings  # noqa: E402
from docs_text import Code  # noqa: E402

# ---------------------------------------------------------------------- every hint in the code


def texts() -> list[tuple[str, str]]:
    """(where, text) of every text in the code but docstrings; CONFIG stands for what is filled in."""
    found = []
    for path in sorted((ROOT / "cim").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                pieces = (part.value if isinstance(part, ast.Constant) else "CONFIG" for part in node.values)
                found.append((where, "".join(map(str, pieces))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                found.append((where, node.value))
    return found


_WORD = r"(?:--?[a-z][\w-]*(?:=\S+)?|[A-Z][A-Z_|]*|[\w./-]+=\S+|(?<=--from )[a-z]+|(?<=--split )[a-z]+|iou|containment)"
_COMMAND = re.compile(rf"(?<![\w./-])cim [a-z]+(?: {_WORD})*(?![\w=])")


def hints(text: str) -> list[str]:
    """The commands in a text for people, and no word after them."""
    return [match.rstrip(",;.)") for match in _COMMAND.findall(text)]


NO_COMMANDS = ("cim grouping",)  # the name of a maker of proposals


def test_every_command_and_setting_that_the_code_names_exists():
    problems, seen = [], 0
    for where, text in texts():
        for command in hints(text):
            if command in NO_COMMANDS or where.startswith("intervals"):
                continue
            seen += 1
            problems += [f"{where}: {told} ({command})" for _, told in check_command(Code(command, 0, "inline"), ROOT)]
        problems += [f"{where}: {told}" for _, told in check_settings(Code(text, 0, "inline"))]
    assert not problems and seen > 50


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cim scor CONFIG", "no command cim scor; score?"),
        ("nothing; cim score CONFIG --splits train", "cim score: no option --splits"),
        ("cim labels CONFIG, or --set loss.first_labels=false", None),
    ],
)
def test_the_check_above_would_notice(text, found):
    told = [told for command in hints(text) for _, told in check_command(Code(command, 0, "inline"), ROOT)]
    assert told == ([found] if found else [])


# ---------------------------------------------------------------------- run


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Stages use all cores unless told otherwise; starting processes for eleven pictures takes longest."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config, its name with a space, of drawn photos and nothing else; the tests below fill its folder in order."""
    folder = tmp_path_factory.mktemp("a job")
    make_demo(folder / "drawn", train=8, val=3)
    settings = resolve(parse(words(folder)))
    truth = str(folder / "drawn" / "train_instances.json")
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"train_annotations": truth})})
    save_config(settings, folder / "config.yaml")
    return folder / "config.yaml"


def do(line: str) -> None:
    """Run a command as it was printed."""
    command = shlex.split(line)
    assert command[0] == "cim" and main(command[1:]) == 0, line


def test_what_check_says_is_to_be_done_in_this_order(config, capsys):
    for _ in range(2):  # the first round makes what the second one looks at
        code = main(["check", str(config), "--set", "train.workers=0"])
        told = capsys.readouterr().out
        if code:
            for line in told.split("to fix, in this order:")[1].strip().splitlines():
                do(line.strip())
            capsys.readouterr()
    assert code == 0 and "export: ready" in told


def next_of(told: str) -> str:
    (line,) = [line for line in told.splitlines() if line.startswith("next: ")]
    return line.removeprefix("next: ")


@pytest.mark.parametrize(
    "more", [[], ["--split", "train"], ["--checkpoint"], ["--output"], ["--set", "infer.nms_iou=0.4"]]
)
def test_what_score_names_as_next(config, tmp_path, caplog, more):
    if more == ["--checkpoint"]:
        (tmp_path / "another run").mkdir()
        shutil.copy(config.parent / "run" / "train" / "final.pth", tmp_path / "another run")
        more = ["--checkpoint", str(tmp_path / "another run")]
    if more == ["--output"]:
        more = ["--output", str(tmp_path / "elsewhere")]
    caplog.set_level("INFO")
    assert main(["score", str(config), "--workers", "1", *more]) == 0
    do(next_of("\n".join(record.getMessage() for record in caplog.records)))


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize("other", [False, True])
def test_what_is_missing_without_detections(config, tmp_path, capsys, command, other):
    shutil.copy(config.parent / "run" / "train" / "final.pth", tmp_path / "final.pth")
    more = ["--checkpoint", str(tmp_path)] if other else ["--set", "name=x"]
    more += ["--split", "val"] if command == "export" else []
    shutil.rmtree(config.parent / "run" / "detections", ignore_errors=True)
    assert main([command, str(config), *more]) == 2
    do(capsys.readouterr().err.strip().rpartition("to fix: ")[2])
    assert main([command, str(config), *more]) == 0


def test_what_a_finished_job_says_of_new_photos(config, tmp_path, capsys, monkeypatch):
    from cim.cli.jobs import run as job

    monkeypatch.setattr(job, "run_stages", lambda *_: None)  # its stages are what the tests above have run
    assert main([*words(config.parent)[: -len(SMALL) - 1], "--no-refine"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("new photos:")]
    photo = str(config.parent / "drawn" / "images" / "val")
    line = line.removeprefix("new photos:").strip().replace("PHOTO_OR_FOLDER", shlex.quote(photo))
    do(f"{line} --output {shlex.quote(str(tmp_path))} --device cpu")
